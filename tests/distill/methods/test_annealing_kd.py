"""Annealing-KD against its formula, stair by stair."""

import pytest

from config import ConfigError
from distill.methods.annealing_kd import AnnealingKD, AnnealingKDArgs
from model.build import HeadSpec
from tests.distill.methods.seen import seen
from tests.distill.runs import cloze_task, lm_task, take, toy_run, toy_step
from tests.toy import toy_cloze_batch, toy_lm_batch

SOFT = {
    "pretrain": ["--distill_pt_soft", "--distill_pt_soft_mse"],
    "finetune": ["--distill_ft_soft", "--distill_ft_soft_mse"],
}
# Of a run of 100 steps with tau = 4: four parts of 25.
STAIRS = {0: 1 / 4, 24: 1 / 4, 25: 2 / 4, 49: 2 / 4, 50: 3 / 4, 74: 3 / 4, 75: 1, 99: 1}


def step_at(iteration, *flags, program="finetune"):
    own = ["--student_model=annealing_kd", "--annealing_kd_max_t=4", "--train-iters=100"]
    run = toy_run(*own, *flags, program=program)
    return toy_step(run, lm_task() if program == "pretrain" else cloze_task(), iteration)


def logits_of(step, batch):
    student, teacher = seen(step, batch)
    return student.outputs[0].detach(), teacher.outputs[0]


@pytest.mark.parametrize("iteration", STAIRS)
def test_choices(iteration):
    batch = toy_cloze_batch(3, choices=3, variable=True)
    step = step_at(iteration, *SOFT["finetune"], "--distill_soft_rate=0.5", "--distill_ft_hard")
    terms = take(step, batch).terms
    s, t = logits_of(step, batch)
    square = (s - STAIRS[iteration] * t).square() * batch.choice_mask
    expected = 0.5 * float((square.sum(1) / batch.choice_mask.sum(1)).mean())
    assert float(terms["pre_loss/ft_soft_t0"]) == pytest.approx(expected, rel=1e-4)
    assert float(terms["pre_loss/fai_t_t0"]) == pytest.approx(STAIRS[iteration])
    total = expected + float(terms["Train/hard_loss"])
    assert float(terms["teacher_loss/teacher_0_t0"]) == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("iteration", [0, 25, 99])
def test_a_language_model(iteration):
    batch = toy_lm_batch(3)
    step = step_at(iteration, *SOFT["pretrain"], program="pretrain")
    assert step.method.needs_targets_only()
    terms = take(step, batch).terms
    s, t = logits_of(step, batch)
    losses = (s - STAIRS[iteration] * t).square().mean(-1)
    expected = float((losses * batch.loss_mask).sum() / batch.loss_mask.sum())
    assert float(terms["pre_loss/pt_soft_t0"]) == pytest.approx(expected, rel=1e-4)


def test_the_second_phase_is_hard_labels():
    step = step_at(0, "--distill_ft_hard")
    terms = take(step, toy_cloze_batch(3)).terms
    hard = float(terms["Train/hard_loss"])
    assert float(terms["teacher_loss/teacher_0_t0"]) == pytest.approx(hard)


def test_the_weight_can_be_left_out_of_the_log():
    step = step_at(0, *SOFT["finetune"])
    step.method.show_pre = False
    assert not any(name.startswith("pre_loss") for name in take(step, toy_cloze_batch(2)).terms)


def lines(*flags, program="finetune"):
    run = toy_run("--student_model=annealing_kd", *flags, program=program)
    return list(AnnealingKD.problems(run, HeadSpec("lm")))


def test_what_it_needs():
    for program, soft in SOFT.items():
        assert lines(*soft, program=program) == []
        (line,) = lines(soft[0], program=program)
        assert line.endswith("add " + soft[1])
    assert lines("--distill_ft_hard") == []
    (line,) = lines()
    assert "learns from labels" in line


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_tau_is_positive(value):
    with pytest.raises(ConfigError, match="--annealing_kd_max_t"):
        AnnealingKDArgs(annealing_kd_max_t=value)
