"""Stages as a function of the iteration, the seed's count of calls, and annealed weights."""

import pytest
import torch

from distill.context import Clock
from distill.stages import StagedStudent, Stages, annealed_weight
from tests.distill.runs import toy_run
from tests.toy import toy_glm


def stage_at(iteration: int, total: int, number: int) -> int:
    stages = Stages(number)
    stages.begin(iteration, total)
    return stages.now


@pytest.mark.parametrize(("total", "number"), [(30, 3), (100, 3), (7, 7), (10, 4), (2, 5)])
def test_stages_are_equal_parts_of_the_run(total, number):
    actual = [stage_at(iteration, total, number) for iteration in range(total)]
    expected = []
    for iteration in range(total):
        stage = 1
        while stage < number and iteration >= stage * total / number:
            stage += 1
        expected.append(stage)
    assert actual == expected


def test_the_last_stage_goes_on_after_the_total():
    assert stage_at(30, 30, 3) == stage_at(1000, 30, 3) == 3


def test_an_unknown_total_is_the_first_stage():
    assert stage_at(5, 0, 3) == 1


def test_a_stage_does_not_depend_on_what_was_before():
    stages = Stages(3)
    for iteration in (25, 0, 15):
        stages.begin(iteration, 30)
        assert stages.now == stage_at(iteration, 30, 3)


def test_a_stage_that_is_reached_stays_reached():
    stages = Stages(4)
    stages.begin(0, 40)
    stages.advance()
    assert stages.now == 1  # in this pass still
    stages.begin(1, 40)
    assert stages.now == 2
    stages.begin(25, 40)
    assert stages.now == 3  # time is further
    for _ in range(9):
        stages.advance()
        stages.begin(25, 40)
    assert stages.now == 4
    assert stages.ended


def test_without_time_only_an_early_end_counts():
    stages = Stages(3, timed=False)
    stages.begin(29, 30)
    assert stages.now == 1
    stages.advance()
    stages.begin(0, 30)
    assert stages.now == 2


def calls(stages: Stages, iterations: list[int], early: bool = False) -> list[int]:
    seen = []
    for iteration in iterations:
        stages.begin(iteration, 30)
        seen.append(stages.now)
        stages.count(iteration, 30, early=early)
    return seen


def test_the_seed_takes_one_stage_a_call():
    # A resumed run begins at 1 and catches up.
    assert calls(Stages(3, counted=True), [0, 9, 10, 11, 20, 20]) == [1, 1, 1, 2, 2, 3]
    assert calls(Stages(3, counted=True), [29, 29, 29, 29]) == [1, 2, 3, 3]
    assert calls(Stages(3, counted=True), [0, 0, 0], early=True) == [1, 2, 3]
    assert calls(Stages(3, counted=True, timed=False), [29, 29]) == [1, 1]


def test_calls_are_not_counted_otherwise():
    assert calls(Stages(3), [0, 0, 15, 15, 15], early=True) == [1, 1, 2, 2, 2]


def staged(*flags: str, **show: bool) -> StagedStudent:
    run = toy_run("--student_model=kd", "--train-iters=30", "--distill_pt_hard", *flags)
    return StagedStudent(toy_glm(run.model), run, **show)


def test_labels_wait_for_the_last_stage():
    student, logits = staged(), torch.zeros(2, 5, 64)
    hard = torch.tensor(3.0)
    for iteration in (0, 19):
        student.begin_pass(Clock(iteration=iteration, total=30))
        assert student.pre_loss(logits, logits, hard) == 0.0
        parts = student.pre_loss(logits, logits, hard, return_dict=True)
        assert parts == {"soft": 0.0, "hard": 0.0, "loss": 0.0}
        assert student.take_terms() == {}
    student.begin_pass(Clock(iteration=20, total=30))
    assert float(student.pre_loss(logits, logits, hard)) == 3.0
    assert float(student.pre_loss(logits, logits, hard, return_dict=True)["hard"]) == 3.0
    assert list(student.take_terms()) == ["pre_loss/pt_hard"]


def test_what_is_logged_can_be_chosen():
    student = staged(show_pre=False)
    student.begin_pass(Clock(iteration=29, total=30))
    student.pre_loss(torch.zeros(2, 5, 64), None, torch.tensor(3.0))
    assert student.take_terms() == {}


def test_logits_are_asked_for_as_labels_need_them():
    assert staged().needs_targets_only()
    assert not staged("--distill_pt_soft", "--distill_wo_loss_mask").needs_targets_only()


@pytest.mark.parametrize("steps", [1, 2, 7, 10, 2.5])
def test_annealed_weights_climb_in_equal_stairs(steps):
    weights = [annealed_weight(i / 1000, steps) for i in range(1001)]
    assert weights == sorted(weights)
    assert weights[-1] == 1.0
    assert len(set(weights)) == -(-steps // 1)
    if steps == int(steps):
        assert weights[0] == pytest.approx(1 / steps)
        for i in (1, 250, 333, 999):  # the k-th part of the run has weight k / steps
            assert weights[i] == pytest.approx((i * steps // 1000 + 1) / steps)
