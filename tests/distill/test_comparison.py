"""The loop over teachers: order, names of terms, what runs, what is handed on."""

import gc
import weakref

import pytest
import torch

from distill.comparison import Comparison
from tests.distill.runs import take, toy_run, toy_step
from tests.distill.teachers.several import (
    KD,
    PKD,
    batch_of,
    hard_each,
    hard_of,
    logits_of,
    soft_each,
    step_of,
    task_of,
)

PROGRAMS = pytest.mark.parametrize("program", ["pretrain", "finetune"])


def test_terms_of_each_teacher_and_pass():
    flags = [*PKD, "--mt_hidden_size=16:16", "--forward_repeat_num=1"]
    terms = list(take(step_of(*flags), batch_of("finetune")).terms)
    expected = []
    for suffix in ("", "_repeat1"):
        expected.append(f"Train/hard_loss{suffix}")
        for t in (0, 1):
            tail = f"_t{t}{suffix}"
            expected += [f"inter_loss/hidden_states.{k}{tail}" for k in (0, 1)]
            expected.append(f"teacher_loss/teacher_{t}{tail}")
    assert [name for name in terms if not name.startswith("pre_loss")] == expected


def answers_of(step, batch):
    found, combiner = [], step.comparison.combiner
    weigh = combiner.weigh

    def record(answer, made):
        found.append((answer, made))
        return weigh(answer, made)

    combiner.weigh = record
    take(step, batch)
    return found


@PROGRAMS
def test_what_a_combiner_is_told(program):
    step, batch = step_of(*KD, "--mt_has_loss", program=program), batch_of(program)
    if program == "pretrain":
        batch.loss_mask[1] = 0  # a sample without targets
    s, teachers = logits_of(step, batch)
    found = answers_of(step, batch)
    assert [answer.t_no for answer, _ in found] == [0, 1]
    for (answer, made), t in zip(found, teachers, strict=True):
        torch.testing.assert_close(answer.hard_loss, hard_each(t, batch))
        torch.testing.assert_close(answer.pre_loss, soft_each(s, t, batch).mean())
        assert answer.inter_loss == 0.0
        torch.testing.assert_close(made.hard_loss, hard_of(s, batch))
        assert made.hard_rate == 1.0


def test_losses_per_sample_have_the_mean_of_the_scalar():
    for program in ("pretrain", "finetune"):
        step, batch = step_of(*KD, program=program), batch_of(program)
        type(step.comparison.combiner).per_sample, old = (
            property(lambda self: (True, True)),
            type(step.comparison.combiner).per_sample,
        )
        try:
            step.comparison.combiner.weigh = lambda answer, made: answer.pre_loss.mean()
            actual = take(step, batch).loss
        finally:
            type(step.comparison.combiner).per_sample = old
        torch.testing.assert_close(actual, take(step_of(*KD, program=program), batch).loss)


def test_hard_losses_of_teachers_only_where_they_are_wanted():
    for flags, wanted in (([], False), (["--mt_has_loss"], True)):
        found = answers_of(step_of(*KD, *flags), batch_of("finetune"))
        assert all((answer.hard_loss is not None) == wanted for answer, _ in found)


def test_has_loss_alone_changes_nothing():
    losses = [
        float(take(step_of(*KD, *flags), batch_of("finetune")).loss.detach())
        for flags in ([], ["--mt_has_loss"])
    ]
    assert losses[0] == losses[1]


def test_a_teacher_that_is_disabled_does_not_run():
    flags = ["--student_model=theseus", "--mt_hidden_size=16:16", "--distill_ft_hard"]
    step, ran = step_of(*flags, "--mt_disable_operation=1:0"), []
    for number, teacher in enumerate(step.teachers):
        teacher.module.register_forward_hook(lambda *_, number=number: ran.append(number))
    found = answers_of(step, batch_of("finetune"))
    assert ran == [1]
    assert [answer.logits is None for answer, _ in found] == [True, False]


def test_a_method_without_a_loss_gives_zero_with_a_gradient():
    step = step_of("--student_model=kd")
    output = take(step, batch_of("finetune"))
    assert float(output.loss.detach()) == 0
    assert output.loss.requires_grad


class Watched:
    """A teacher that notes which captures of those before are still there when it runs."""

    def __init__(self, teacher, kept, alive):
        self.teacher, self.kept, self.alive = teacher, kept, alive
        self.module = teacher.module

    def __call__(self, *args, **options):
        gc.collect()
        self.alive.append([ref() is not None for ref in self.kept])
        found = self.teacher(*args, **options)
        self.kept += [weakref.ref(x) for x in found.captured]
        return found


def test_captures_of_a_teacher_are_gone_before_the_next_one_runs():
    step, kept, alive = step_of(*KD, "--distill_logits_parallel"), [], []
    step.comparison.teachers = [Watched(t, kept, alive) for t in step.teachers]
    with torch.no_grad():  # autograd keeps what the backward pass needs
        step(batch_of("finetune"), step.count([batch_of("finetune")]))
    assert alive == [[], [False]]


def test_without_a_combiner_in_the_method_it_is_the_average():
    step = step_of(*KD)
    expected = take(step, batch_of("finetune")).loss
    step.method.multi_teacher_model = None
    step.comparison = Comparison(step.method, step.teachers, step.task, step.run)
    torch.testing.assert_close(take(step, batch_of("finetune")).loss, expected)


def test_depths_are_each_teachers_own():
    """Layers of a teacher that is deeper than the first one are found."""
    flags = ["--mt_num_layers=2:6", "--mt_hidden_size=16:16", "--mt_num_attention_heads=4:4"]
    step, hooks = toy_step(toy_run(*PKD, *flags, program="finetune"), task_of("finetune")), []
    function = step.method.inter_loss

    def record(s, t, s_hook, t_hook, **context):
        hooks.append((context["t_no"], list(t_hook["transformer"].get("layers", {}))))
        return function(s, t, s_hook, t_hook, **context)

    step.method.inter_loss = record
    take(step, batch_of("finetune"))
    assert hooks == [(0, [1]), (1, [3])]
