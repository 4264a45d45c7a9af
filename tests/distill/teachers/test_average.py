"""The average against its formula, survival, and losses computed again."""

import pytest
import torch

from config import ConfigError
from distill.combiner import COMBINERS
from distill.context import Clock
from distill.teachers.average import Average, AverageArgs
from tests.distill.runs import all_methods, grads_of, take, toy_run, toy_step
from tests.distill.teachers.several import (
    KD,
    batch_of,
    hard_of,
    logits_of,
    problems,
    soft_each,
    step_of,
    task_of,
)
from tests.laws.test_methods import BASE

SURVIVAL = "--avgmt_teacher_survival_p=0.5"
PROGRAMS = pytest.mark.parametrize("program", ["pretrain", "finetune"])


def parts(step, batch):
    s, teachers = logits_of(step, batch)
    return [soft_each(s, t, batch).mean() for t in teachers], hard_of(s, batch)


@PROGRAMS
@pytest.mark.parametrize("summed", [False, True])
def test_the_mean_or_the_sum(program, summed):
    flags = [*KD, *(["--avgmt_sum_loss"] if summed else [])]
    step, batch = step_of(*flags, program=program), batch_of(program)
    soft, _ = parts(step, batch)
    expected = sum(soft) if summed else sum(soft) / 2
    expected.backward()
    grads = grads_of(step.student.module)
    output = take(step, batch)
    torch.testing.assert_close(output.loss, expected)
    for key, grad in grads_of(step.student.module).items():
        torch.testing.assert_close(grad, grads[key], rtol=1e-4, atol=1e-5, msg=key)
    told = [float(output.terms[f"teacher_loss/teacher_{k}_t{k}"]) for k in range(2)]
    assert told == pytest.approx([float(x.detach()) for x in soft], rel=1e-5)


def test_hard_labels_of_the_method_count_once_a_teacher():
    step, batch = step_of(*KD, "--distill_ft_hard", "--distill_hard_rate=0.5"), batch_of("finetune")
    soft, hard = parts(step, batch)
    torch.testing.assert_close(take(step, batch).loss, sum(soft) / 2 + 0.5 * hard)


@pytest.mark.parametrize("alive", [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("summed", [False, True])
def test_survivors_and_the_hard_loss(alive, summed):
    flags = [*KD, SURVIVAL, "--distill_hard_rate=0.5", *(["--avgmt_sum_loss"] if summed else [])]
    step, batch = step_of(*flags), batch_of("finetune")
    soft, hard = parts(step, batch)
    step.comparison.combiner.draw_survival = lambda n: [0.4 if a else 0.6 for a in alive]
    ran = []
    for number, teacher in enumerate(step.teachers):
        teacher.module.register_forward_hook(lambda *_, number=number: ran.append(number))
    output = take(step, batch)
    losses = [loss for loss, a in zip(soft, alive, strict=True) if a] + [0.5 * hard]
    expected = sum(losses) if summed else sum(losses) / len(losses)
    torch.testing.assert_close(output.loss, expected)
    assert ran == [k for k, a in enumerate(alive) if a]
    assert float(output.terms["multi_teacher_model/hard_loss"]) == pytest.approx(
        0.5 * float(hard.detach())
    )
    assert any(bool(g.any()) for g in grads_of(step.student.module).values())


def survivors(combiner, iteration, repeat=0):
    combiner.begin_pass(Clock(iteration=iteration, repeat=repeat))
    return tuple(combiner.compares(k) for k in range(2))


def test_draws_are_a_function_of_the_iteration():
    first, second = (step_of(*KD, SURVIVAL).comparison.combiner for _ in range(2))
    whole = [survivors(first, i) for i in range(200)]
    assert [survivors(second, i) for i in range(100, 200)] == whole[100:]
    assert set(whole) == {(a, b) for a in (True, False) for b in (True, False)}
    for teacher in zip(*whole, strict=True):
        assert 70 < sum(teacher) < 130
    assert [survivors(first, i, repeat=1) for i in range(200)] != whole
    other = step_of(*KD, SURVIVAL, "--seed=7").comparison.combiner
    assert [survivors(other, i) for i in range(200)] != whole


def test_without_survival_nothing_is_drawn_and_nothing_kept():
    combiner = step_of(*KD).comparison.combiner
    assert survivors(combiner, 0) == (True, True)
    assert combiner.combiner_state() == {}
    assert all(combiner.runs(k) for k in range(2))


def test_names():
    assert {COMBINERS[name] for name in ("avg", "tmkd", "AvgTeacher")} == {Average}
    for flags in ([], ["--multi_teacher_model=tmkd", "--avgmt_sum_loss"]):
        combiner = step_of(*KD, *flags).comparison.combiner
        assert type(combiner) is Average
        assert combiner.args.avgmt_sum_loss == bool(flags)


def test_a_probability_is_above_0_and_at_most_1():
    for wrong in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="--avgmt_teacher_survival_p"):
            AverageArgs(avgmt_teacher_survival_p=wrong)
    assert problems(*KD, SURVIVAL) == []


AGAIN = ["--avgmt_inter_checkpoint", "--avgmt_pre_checkpoint"]
LABELS = ["--distill_pt_soft", "--distill_pt_hard", "--distill_logits_parallel"]


@pytest.mark.parametrize("name", all_methods())
def test_losses_computed_again_have_the_same_gradient(name):
    outputs, grads, calls = [], [], []
    for flags in ([], AGAIN):
        words = [f"--student_model={name}", *BASE.get(name, []), *LABELS, *flags]
        words += ["--mixbaseline_inter_bl=TinyBERT,CKD", "--forward_repeat_num=1"]
        step = toy_step(toy_run(*words, "--mt_num_layers=4:3"))
        function = step.method.inter_loss

        def count(*args, _function=function, **kwargs):
            calls.append(None)
            return _function(*args, **kwargs)

        step.method.inter_loss = count
        outputs.append(take(step, batch_of("pretrain")))
        grads.append(grads_of(step.student.module))
    torch.testing.assert_close(outputs[1].loss, outputs[0].loss, rtol=0, atol=0)
    assert list(outputs[1].terms) == list(outputs[0].terms)
    for key, value in outputs[0].terms.items():
        assert float(outputs[1].terms[key]) == float(value), key
    for key, grad in grads[0].items():
        torch.testing.assert_close(grads[1][key], grad, rtol=1e-5, atol=1e-7, msg=key)
    if name not in ("kd", "theseus", "sid", "mobilebert"):  # those count, or have nothing to keep
        assert len(calls) > 2 * 4  # two passes, two teachers; and again


def test_a_method_that_counts_is_not_computed_again():
    counts = []
    for flags in ([], AGAIN):
        words = ["--student_model=sid", "--teacher_hidden_size=16", "--compat=glmkd", *flags]
        step = toy_step(toy_run(*words, *LABELS, "--mt_num_layers=4:3"))
        for iteration in range(3):
            step.state.iteration = iteration
            take(step, batch_of("pretrain"))
        counts.append(step.method.method_state())
    assert counts[0] == counts[1]


def test_terms_of_a_recomputation_are_not_logged_later():
    step = step_of(*KD, "--avgmt_pre_checkpoint")
    first = take(step, batch_of("finetune"))
    second = take(step, batch_of("finetune"))
    assert list(first.terms) == list(second.terms)
    assert {name for name in first.terms if name.startswith("pre_loss")} == {
        "pre_loss/ft_soft_t0",
        "pre_loss/ft_soft_t1",
    }


@PROGRAMS
def test_a_single_teacher_is_no_combination(program):
    flags = ["--mt_hidden_size=24", "--mt_num_layers=4", "--mt_num_attention_heads=4"]
    batch = batch_of(program)
    step = toy_step(toy_run(*KD, *flags, program=program), task_of(program))
    s, (t,) = logits_of(step, batch)
    torch.testing.assert_close(take(step, batch).loss, soft_each(s, t, batch).mean())
