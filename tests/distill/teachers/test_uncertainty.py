"""Selection of teachers by uncertainty, against loops over samples and teachers."""

import math

import pytest
import torch

from config import ConfigError
from distill.teachers.uncertainty import UncertaintyArgs
from tasks.base import token_mask
from tests.distill.runs import grads_of, take, toy_run, toy_step
from tests.distill.teachers.several import (
    KD,
    PKD,
    THREE,
    batch_of,
    entropy_each,
    hard_of,
    logits_of,
    problems,
    soft_each,
    step_of,
    task_of,
)

MT = "--multi_teacher_model=uncertainty"
PROGRAMS = pytest.mark.parametrize("program", ["pretrain", "finetune"])
NUMBERS = pytest.mark.parametrize("number", [2, 3])


def step_with(number, *flags, program="finetune"):
    if number == 2:
        return step_of(MT, *flags, program=program)
    return toy_step(toy_run(*THREE, MT, *flags, program=program), task_of(program))


def soft_weight(u, k, number):
    """One number at a time: linear from u (smallest teacher) to 1 - u (largest), mean 1."""
    row = [u + (1 - 2 * u) * j / (number - 1) for j in range(number)]
    return number * row[k] / sum(row)


def hard_weight(u, number):
    """[b, n]: the r-th of the samples by falling u belongs to teacher ceil(r n / b) - 1."""
    weights = torch.zeros(len(u), number)
    for position, sample in enumerate(sorted(range(len(u)), key=lambda i: -float(u[i])), 1):
        weights[sample, math.ceil(position * number / len(u)) - 1] = number
    return weights


def weights_of(u, number, hard):
    if hard:
        return hard_weight(u, number)
    return torch.stack([soft_weight(u, k, number) for k in range(number)], 1)


@PROGRAMS
@NUMBERS
@pytest.mark.parametrize("hard", [False, True])
def test_the_formula(program, number, hard):
    flags = [*KD, "--distill_hard_rate=0.5", *(["--uncertainty_hard"] if hard else [])]
    step, batch = step_with(number, *flags, program=program), batch_of(program)
    s, teachers = logits_of(step, batch)
    weights = weights_of(entropy_each(s, batch, batch.loss_mask), number, hard)
    losses = [(soft_each(s, t, batch) * weights[:, k]).mean() for k, t in enumerate(teachers)]
    expected = sum(losses) / number + 0.5 * hard_of(s, batch)
    expected.backward()
    grads = grads_of(step.student.module)
    output = take(step, batch)
    torch.testing.assert_close(output.loss, expected)
    for key, grad in grads_of(step.student.module).items():  # so u has no gradient
        torch.testing.assert_close(grad, grads[key], rtol=1e-4, atol=1e-5, msg=key)
    assert float(output.terms["multi_teacher_model/hard_loss"]) == pytest.approx(
        0.5 * float(hard_of(s, batch).detach()), rel=1e-5
    )


@pytest.mark.parametrize("flag", ["only_mask_pad", "wo_loss_mask"])
def test_u_of_all_tokens(flag):
    step = step_of(MT, *KD, f"--uncertainty_{flag}", program="pretrain")
    batch = batch_of("pretrain")
    assert not step.comparison.needs_targets_only
    s, teachers = logits_of(step, batch)
    u = entropy_each(s, batch, token_mask(batch.position_ids))
    losses = [
        (soft_each(s, t, batch) * soft_weight(u, k, 2)).mean() for k, t in enumerate(teachers)
    ]
    torch.testing.assert_close(take(step, batch).loss, sum(losses) / 2 + hard_of(s, batch))


def test_only_logits_of_targets_are_computed_for_u_of_targets():
    step, batch = step_of(MT, *KD, program="pretrain"), batch_of("pretrain")
    assert step.comparison.needs_targets_only
    lean = float(take(step, batch).loss.detach())
    step.method.needs_targets_only = lambda: False
    assert float(take(step, batch).loss.detach()) == pytest.approx(lean, rel=1e-6)


def test_no_weights_and_no_hard_loss():
    step, batch = step_of(MT, *KD, "--uncertainty_wo_rate"), batch_of("finetune")
    s, teachers = logits_of(step, batch)
    mean = sum(soft_each(s, t, batch).mean() for t in teachers) / 2
    torch.testing.assert_close(take(step, batch).loss, mean + hard_of(s, batch))
    step = step_of(MT, *KD, "--uncertainty_wo_rate", "--uncertainty_wo_hard")
    output = take(step, batch)
    torch.testing.assert_close(output.loss, mean)
    assert "multi_teacher_model/hard_loss" not in output.terms


@NUMBERS
def test_ranks_of_teachers(number):
    seq = {2: "1:0", 3: "1:2:0"}[number]
    step = step_with(number, *KD, f"--uncertainty_teacher_seq={seq}", "--uncertainty_wo_hard")
    batch = batch_of("finetune")
    s, teachers = logits_of(step, batch)
    u, ranks = entropy_each(s, batch), [int(word) for word in seq.split(":")]
    losses = [
        (soft_each(s, t, batch) * soft_weight(u, rank, number)).mean()
        for rank, t in zip(ranks, teachers, strict=True)
    ]
    torch.testing.assert_close(take(step, batch).loss, sum(losses) / number)


@pytest.mark.parametrize("rated", [True, False])
def test_losses_between_layers_are_weighed_by_u(rated):
    flags = [*PKD, "--mt_hidden_size=16:16", "--uncertainty_inter_entropy", "--pkd_beta=2"]
    flags += [] if rated else ["--uncertainty_wo_rate"]
    step, batch = step_of(MT, *flags, "--uncertainty_wo_hard"), batch_of("finetune")
    s, teachers = logits_of(step, batch)
    u, found = entropy_each(s, batch), []
    function = step.method.inter_loss

    def record(*args, **kwargs):
        found.append(function(*args, **kwargs))
        return found[-1]

    step.method.inter_loss = record
    output = take(step, batch)
    expected = 0.0
    for k, t in enumerate(teachers):
        pre = soft_each(s, t, batch, 1.0) * (1 - u) * (soft_weight(u, k, 2) if rated else 1)
        assert found[k].shape == (4,)
        expected = expected + (pre.mean() + (u * found[k]).mean()) / 2
    torch.testing.assert_close(output.loss, expected)


def test_without_losses_between_layers_there_is_nothing_to_balance():
    batch, losses = batch_of("finetune"), []
    for flags in ([], ["--uncertainty_inter_entropy"]):
        losses.append(float(take(step_of(MT, *KD, *flags), batch).loss.detach()))
    assert losses[0] == losses[1]


def test_choices_that_fill_the_batch_make_nobody_unsure():
    batch = batch_of("finetune")
    batch.choice_mask[0, 1:] = 0  # one choice: sure
    batch.labels[0] = 0
    step = step_of(MT, *KD)
    s, teachers = logits_of(step, batch)
    u = entropy_each(s[1:], batch_of_rows(batch, 1))
    u = torch.cat([torch.zeros(1), u])
    losses = [
        (soft_each(s, t, batch) * soft_weight(u, k, 2)).mean() for k, t in enumerate(teachers)
    ]
    torch.testing.assert_close(take(step, batch).loss, sum(losses) / 2 + hard_of(s, batch))


def batch_of_rows(batch, first):
    import dataclasses

    return dataclasses.replace(batch, choice_mask=batch.choice_mask[first:])


@PROGRAMS
def test_fillers_come_last_and_are_no_part_of_the_ranks(program):
    batch = batch_of(program)
    step = step_of(MT, *KD, "--uncertainty_hard", program=program)
    chosen = []
    combiner = step.comparison.combiner
    function = combiner._hard

    def record(*args):
        chosen.append(function(*args))
        return chosen[-1]

    combiner._hard = record
    batch.weight = torch.tensor([0.0, 1, 1, 0])
    take(step, batch)
    both = torch.stack(chosen)[:, 1:3]  # one of two samples for each teacher
    assert both.sum(1).tolist() == [2, 2]
    assert both.sum(0).tolist() == [2, 2]


@PROGRAMS
@pytest.mark.parametrize("hard", [False, True])
def test_samples_without_targets_and_a_batch_of_one(program, hard):
    flags = [*KD, *(["--uncertainty_hard"] if hard else [])]
    step = step_of(MT, *flags, program=program)
    one = batch_of(program, 1)
    empty = batch_of(program, 2)
    if program == "pretrain":
        empty.loss_mask[0] = 0
    for batch in (one, empty):
        assert torch.isfinite(take(step, batch).loss)
        assert all(g.isfinite().all() for g in grads_of(step.student.module).values())


@pytest.mark.parametrize("flags", [[], ["--uncertainty_hard"], ["--compat=MT"]])
def test_one_teacher_is_kd_with_its_hard_loss(flags):
    one = ["--mt_hidden_size=24", "--mt_num_layers=4", "--mt_num_attention_heads=4"]
    step = toy_step(toy_run(*one, MT, *KD, *flags, program="finetune"), task_of("finetune"))
    batch = batch_of("finetune")
    s, (t,) = logits_of(step, batch)
    torch.testing.assert_close(
        take(step, batch).loss, soft_each(s, t, batch).mean() + hard_of(s, batch)
    )


def seed_entropy(s, mask):
    """With gradient; positions out of the mask have logits 0."""
    s = s if mask is None else s * mask[..., None]
    p = s.softmax(-1)
    u = -(p * s.log_softmax(-1)).sum(-1) / math.log(s.size(-1))
    return u.mean(1) if u.dim() == 2 else u


MASKS = {
    (): lambda batch: batch.loss_mask,
    ("--uncertainty_wo_loss_mask",): lambda batch: None,
    ("--uncertainty_only_mask_pad",): lambda batch: (batch.labels > 0).float(),
}


@PROGRAMS
@pytest.mark.parametrize("flags", MASKS)
@pytest.mark.parametrize("hard", [False, True])
def test_compat_has_a_gradient_through_u_and_padded_masks(program, flags, hard):
    words = [*KD, "--compat=MT", *flags, *(["--uncertainty_hard"] if hard else [])]
    step, batch = step_of(MT, *words, program=program), batch_of(program)
    if program == "finetune":
        batch.choice_mask = None
    s, teachers = logits_of(step, batch)
    u = seed_entropy(s, MASKS[flags](batch) if program == "pretrain" else None)
    weights = weights_of(u, 2, hard) / (2 if hard else 1)
    losses = [(soft_each(s, t, batch) * weights[:, k]).mean() for k, t in enumerate(teachers)]
    expected = sum(losses) / 2 + hard_of(s, batch)
    expected.backward()
    grads = grads_of(step.student.module)
    torch.testing.assert_close(take(step, batch).loss, expected, rtol=1e-5, atol=1e-5)
    for key, grad in grads_of(step.student.module).items():
        torch.testing.assert_close(grad, grads[key], rtol=1e-4, atol=1e-5, msg=key)


def test_what_it_needs():
    assert problems(MT, *KD) == [] == problems(MT, *KD, "--uncertainty_teacher_seq=1:0")
    (told,) = problems(MT, *KD, "--uncertainty_hard", "--batch-size=1")
    assert told.startswith("--batch-size=1: --uncertainty_hard gives each of 2")
    assert problems(MT, *KD, "--uncertainty_hard", "--batch-size=2") == []
    (told,) = problems(MT, *KD, "--distill_ft_hard")
    assert told.startswith("--distill_ft_hard: uncertainty adds the hard loss itself")
    assert problems(MT, *KD, "--distill_ft_hard", "--uncertainty_wo_hard") == []
    for wrong in ("0", "0:0", "0:1:2", "1:2", "a:b"):
        (told,) = problems(MT, *KD, f"--uncertainty_teacher_seq={wrong}")
        assert told.startswith(f"--uncertainty_teacher_seq={wrong}: must name the ranks 0 to 1")


def test_order():
    assert UncertaintyArgs().order(3) == [0, 1, 2]
    assert UncertaintyArgs(uncertainty_teacher_seq="2:0:1").order(3) == [2, 0, 1]
    with pytest.raises(ConfigError, match="as 0:1$"):
        UncertaintyArgs(uncertainty_teacher_seq="2:0:1").order(2)
