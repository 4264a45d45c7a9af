"""Continuation-KD against its formula: the hand-over to labels, and the margin sample by sample."""

import dataclasses

import pytest
import torch

from config import ConfigError
from distill.context import Clock
from distill.methods.continuation_kd import ContinuationKD, ContinuationKDArgs
from model.build import HeadSpec
from tests.distill.methods.seen import seen
from tests.distill.runs import cloze_task, grads_of, lm_task, take, toy_run, toy_step
from tests.toy import toy_cloze_batch, toy_glm, toy_lm_batch

LABELS = {
    "pretrain": ["--distill_pt_soft", "--distill_pt_soft_mse", "--distill_pt_hard"],
    "finetune": ["--distill_ft_soft", "--distill_ft_soft_mse", "--distill_ft_hard"],
}
OWN = ["--student_model=continuation_kd", "--continuation_kd_max_t=4", "--train-iters=100"]
OWN += ["--continuation_kd_psi_sep=0.6", "--continuation_kd_psi_denominator=1.25"]


def step_at(iteration, *flags, program="finetune"):
    run = toy_run(*OWN, *flags, program=program)
    return toy_step(run, lm_task() if program == "pretrain" else cloze_task(), iteration)


def soft_of(step, batch, phi):
    """Of each sample: the mean over its real choices, or over its targets."""
    student, teacher = seen(step, batch)
    square = (student.outputs[0].detach() - phi * teacher.outputs[0]).square()
    if batch.choice_mask is not None:
        return (square * batch.choice_mask).sum(1) / batch.choice_mask.sum(1)
    if batch.loss_mask is None:
        return square.mean(1)
    rows = square.mean(-1) * batch.loss_mask
    return rows.sum(1) / batch.loss_mask.sum(1)


def margin_between(soft, phi):
    """A margin below which exactly the smallest one rests."""
    first, second = soft.sort().values[:2].tolist()
    return (first + second) / 2 / phi


# Iteration -> (phi, psi)
TIMES = {0: (0.25, 0.0), 30: (0.5, 0.24), 60: (0.75, 0.48), 61: (0.75, 1.0), 99: (1.0, 1.0)}


@pytest.mark.parametrize("iteration", TIMES)
@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_choices(iteration, rate):
    batch, (phi, psi) = toy_cloze_batch(3, choices=3, variable=True), TIMES[iteration]
    soft = rate * soft_of(step_at(iteration), batch, phi)
    margin = margin_between(soft, phi)
    flags = [f"--continuation_kd_margin={margin}", f"--distill_soft_rate={rate}"]
    step = step_at(iteration, *LABELS["finetune"], *flags)
    terms = {k: float(v) for k, v in take(step, batch).terms.items()}
    beyond = soft * (soft > margin * phi)
    assert int((beyond == 0).sum()) == 1
    expected = psi * terms["Train/hard_loss"] + (1 - psi) * float(beyond.mean())
    assert terms["teacher_loss/teacher_0_t0"] == pytest.approx(expected, rel=1e-4)
    logged = {
        "pre_loss/fai_t_t0": phi,
        "pre_loss/psi_t0": psi,
        "pre_loss/ft_soft_t0": float(soft.mean()),
        "pre_loss/ft_hard_t0": terms["Train/hard_loss"],
    }
    actual = {k: v for k, v in terms.items() if k.startswith("pre_loss")}
    assert list(actual) == list(logged)
    assert actual == pytest.approx(logged, rel=1e-4)


def test_a_language_model_rests_by_samples_and_weighs_by_targets():
    batch, phi = toy_lm_batch(4), 0.25
    soft = soft_of(step_at(0, program="pretrain"), batch, phi)
    margin = margin_between(soft, phi)
    flags = [*LABELS["pretrain"], f"--continuation_kd_margin={margin}"]
    step = step_at(0, *flags, program="pretrain")
    actual = float(take(step, batch).loss.detach())
    counts = batch.loss_mask.sum(1)
    assert len(set(counts.tolist())) > 1
    expected = float((soft * (soft > margin * phi) * counts).sum() / counts.sum())
    assert actual == pytest.approx(expected, rel=1e-4)


def test_the_seed_takes_the_sum_over_all_positions():
    batch, phi = toy_lm_batch(4), 0.25
    soft = soft_of(step_at(0, program="pretrain"), batch, phi)
    soft = soft * batch.loss_mask.sum(1) / batch.tokens.size(1)
    margin = margin_between(soft, phi)
    flags = [*LABELS["pretrain"], f"--continuation_kd_margin={margin}", "--compat=D3"]
    actual = float(take(step_at(0, *flags, program="pretrain"), batch).loss.detach())
    expected = float((soft * (soft > margin * phi)).mean())
    assert actual == pytest.approx(expected, rel=1e-4)


def test_who_rests_does_not_depend_on_fillers():
    batch, phi = toy_cloze_batch(4), 0.25
    soft = soft_of(step_at(0), batch, phi)[:3]
    least = float(soft.min())
    for margin, resting in ((least * 0.99, 0), (least * 1.01, 1)):
        flags = [*LABELS["finetune"], f"--continuation_kd_margin={margin / phi}"]
        filled = dataclasses.replace(batch, weight=torch.tensor([1.0, 1.0, 1.0, 0.0]))
        actual = float(take(step_at(0, *flags), filled).loss.detach())
        assert actual == pytest.approx((float(soft.sum()) - resting * least) / 3, rel=1e-4)


def test_nobody_left_is_zero_and_no_gradient():
    step = step_at(0, *LABELS["finetune"], "--continuation_kd_margin=1e9")
    output = take(step, toy_cloze_batch(3))
    assert float(output.loss.detach()) == 0.0
    assert not any(bool(g.any()) for g in grads_of(step.student.module).values())


@pytest.mark.parametrize("iteration", [0, 99])
def test_soft_labels_alone_end_at_zero(iteration):
    step = step_at(iteration, *LABELS["finetune"][:2], "--continuation_kd_margin=0")
    output = take(step, toy_cloze_batch(3))
    assert (float(output.loss.detach()) == 0.0) == (iteration == 99)


def by_hand(**kwargs):
    run = toy_run(*OWN, *LABELS["finetune"], program="finetune")
    method = ContinuationKD(toy_glm(run.model), run)
    method.begin_pass(Clock(iteration=30, total=100))
    s, t = torch.tensor([[1.0, 0.0], [4.0, 2.0]]), torch.tensor([[2.0, 1.0], [2.0, 2.0]])
    return method.pre_loss(s, t, torch.tensor([3.0, 5.0]), **kwargs)


def test_by_hand_and_per_sample():
    # phi 0.5, psi 0.24: soft 0.125 rests, 5 does not
    expected = torch.tensor([0.24 * 3, 0.24 * 5 + 0.76 * 5])
    torch.testing.assert_close(by_hand(keep_batch=True), expected)
    parts = by_hand(keep_batch=True, return_dict=True)
    torch.testing.assert_close(parts["soft"], torch.tensor([0.0, 3.8]))
    torch.testing.assert_close(parts["hard"], torch.tensor([0.72, 1.2]))
    torch.testing.assert_close(parts["loss"], expected)


def lines(*flags, program="finetune"):
    run = toy_run("--student_model=continuation_kd", *flags, program=program)
    return list(ContinuationKD.problems(run, HeadSpec("lm")))


def test_what_it_needs():
    for program, labels in LABELS.items():
        assert lines(*labels, program=program) == []
        (line,) = lines(labels[0], program=program)
        assert line.endswith("add " + labels[1])
    (line,) = lines()
    assert "learns from labels" in line
    (line,) = lines("--distill_ft_hard", "--continuation_kd_psi_denominator=0.5")
    assert line.startswith("--continuation_kd_psi_denominator=0.5")
    later = ["--continuation_kd_psi_sep=2", "--continuation_kd_psi_denominator=1"]
    assert lines("--distill_ft_hard", *later) == []


@pytest.mark.parametrize("name", ["max_t", "psi_denominator"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_divisors_are_positive(name, value):
    with pytest.raises(ConfigError, match=f"--continuation_kd_{name}"):
        ContinuationKDArgs(**{f"continuation_kd_{name}": value})
