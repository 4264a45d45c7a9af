"""GLMD against its formula; independence of p, partition and batching is in tests/laws."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from config import ConfigError
from distill.methods.glmd import GLMDArgs
from tests.distill.runs import cloze_task, take, toy_run, toy_step
from tests.toy import toy_cloze_batch, toy_lm_batch

T = 5.0


def logits_of(step, batch) -> tuple[Tensor, Tensor]:
    """Whole logits of student and teacher, choices flattened."""
    x = (batch.tokens, batch.position_ids, batch.attention_mask)
    if batch.tokens.dim() == 3:
        x = (
            batch.tokens.flatten(0, 1),
            batch.position_ids.flatten(0, 1),
            batch.attention_mask.flatten(),
        )
    models = (
        step.method.origin_model,
        getattr(step.teachers[0].module, "model", step.teachers[0].module),
    )
    with torch.no_grad():
        return tuple(model(*x)[0] for model in models)


def kl_rows(student: Tensor, teacher: Tensor) -> Tensor:
    log_q, p = F.log_softmax(student / T, -1), F.softmax(teacher / T, -1)
    return T**2 * F.kl_div(log_q, p, reduction="none").sum(-1)


def loss_of(*flags: str, program: str = "pretrain", batch=None) -> tuple[float, Tensor, Tensor]:
    """The step's loss, and the logits it was made of."""
    run = toy_run(
        "--student_model=logitsdistil", f"--distill_temperature={T}", *flags, program=program
    )
    step = toy_step(run)
    return float(take(step, batch).loss.detach()), *logits_of(step, batch)


def tokens_of(batch) -> Tensor:
    first = batch.position_ids[:, 0] > 0
    first[:, 0] = True
    return first.float()


def mean(losses: Tensor, mask: Tensor) -> float:
    return float((losses * mask).sum() / mask.sum())


@pytest.mark.parametrize("flags", [[], ["--logitsdistil_mask_pad"]])
def test_all_tokens_by_default_and_padding_never(flags):
    batch = toy_lm_batch(3)
    assert tokens_of(batch).min() == 0
    actual, student, teacher = loss_of(*flags, batch=batch)
    assert actual == pytest.approx(mean(kl_rows(student, teacher), tokens_of(batch)), rel=1e-5)


def test_the_seed_counts_padding_unless_it_is_masked_and_divides_by_it():
    batch = toy_lm_batch(3)
    actual, student, teacher = loss_of("--compat=glmkd", batch=batch)
    assert actual == pytest.approx(float(kl_rows(student, teacher).mean()), rel=1e-5)
    actual, student, teacher = loss_of("--compat=glmkd", "--logitsdistil_mask_pad", batch=batch)
    expected = float((kl_rows(student, teacher) * tokens_of(batch)).mean())
    assert actual == pytest.approx(expected, rel=1e-5)


def test_mask_a_takes_targets_or_answers():
    batch = toy_lm_batch(3)
    actual, student, teacher = loss_of("--logitsdistil_mask_a", batch=batch)
    assert actual == pytest.approx(mean(kl_rows(student, teacher), batch.loss_mask), rel=1e-5)
    batch = toy_cloze_batch(3, choices=3, variable=True)
    actual, student, teacher = loss_of("--logitsdistil_mask_a", program="finetune", batch=batch)
    real = batch.logit_mask.flatten(0, 1) * batch.choice_mask.flatten()[:, None]
    assert actual == pytest.approx(mean(kl_rows(student, teacher), real), rel=1e-5)


def test_squared_error():
    batch = toy_lm_batch(3)
    actual, student, teacher = loss_of("--logitsdistil_mse", batch=batch)
    losses = (student - teacher).square().mean(-1)
    assert actual == pytest.approx(mean(losses, tokens_of(batch)), rel=1e-5)


@pytest.mark.parametrize("top_n", ["7", "0.12"])  # 0.12 * 64 = 7.68
def test_top_n(top_n):
    batch = toy_lm_batch(3)
    actual, student, teacher = loss_of(f"--logitsdistil_top_n={top_n}", batch=batch)
    places = teacher.topk(7, -1).indices
    inside, kept = student.gather(-1, places), teacher.gather(-1, places)
    above = (student - inside.amin(-1, keepdim=True)).clamp(min=0)
    above = above.scatter(-1, places, 0.0)
    excess = above.sum(-1) / (above > 0).sum(-1).clamp(min=1)
    expected = mean(kl_rows(inside, kept) + excess, tokens_of(batch))
    assert actual == pytest.approx(expected, rel=1e-5)


def test_top_n_with_the_teachers_minimum():
    batch = toy_lm_batch(3)
    flags = ["--logitsdistil_top_n=7", "--logitsdistil_teacher_min"]
    actual, student, teacher = loss_of(*flags, batch=batch)
    threshold = teacher.topk(7, -1).values[..., -1:]
    floored = torch.where(teacher >= threshold, teacher, teacher.amin(-1, keepdim=True))
    assert actual == pytest.approx(mean(kl_rows(student, floored), tokens_of(batch)), rel=1e-5)


def test_the_second_stage_has_no_logits_loss():
    batch = toy_cloze_batch(3)
    flags = ["--student_model=glmd", "--logitsdistil_wo_inter", "--distill_ft_soft"]
    step = toy_step(toy_run(*flags, program="finetune"), cloze_task())
    assert step.method.get_student_hook() == {} == step.method.get_teacher_hook(t_no=0)
    output = take(step, batch)
    s, t = (
        m(*step.task.inputs(batch))[0].detach()
        for m in (step.student.module, step.teachers[0].module)
    )
    expected = -(t.softmax(-1) * s.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(output.loss.detach(), expected)


def test_a_perfect_student_with_top_n_is_zero_not_nan():
    flags = ["--teacher_num_layers=2", "--teacher_hidden_size=16", "--logitsdistil_top_n=1"]
    step = toy_step(toy_run("--student_model=glmd", *flags))
    step.teachers[0].module.load_state_dict(step.student.module.state_dict())
    assert float(take(step, toy_lm_batch(2)).loss.detach()) == 0.0


@pytest.mark.parametrize("value", [0.0, -3.0, 2.7, float("nan"), float("inf")])
def test_top_n_must_be_a_number_of_tokens_or_a_fraction(value):
    with pytest.raises(ConfigError, match="--logitsdistil_top_n"):
        GLMDArgs(logitsdistil_top_n=value)


def test_flags_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GLMDArgs().logitsdistil_mse = True
