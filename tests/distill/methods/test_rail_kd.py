"""RAIL-KD against loops over sequences; its draws; what each flag changes."""

import dataclasses
import logging

import pytest
import torch
from torch import Tensor

import mpu
from config import ConfigError
from distill.context import Clock
from distill.methods.rail_kd import RAILKD, RAILKDArgs
from model.build import HeadSpec
from tests.distill.methods.handed import handed, pooled, states, tokens
from tests.distill.runs import cloze_task, grads_of, take, toy_run, toy_step
from tests.ranks import run_ranks
from tests.toy import toy_cloze_batch, toy_lm_batch

FLAGS = ["--student_model=rail_kd", "--rail_kd_u=6", "--rail_kd_inter_rate=0.5"]
ALPHA = "--rail_kd_layer_wise_alpha=3"
CONCATENATED, NO_RANDOM = "--rail_kd_concatenated", "--rail_kd_no_random"
ENDS = ["--rail_kd_has_embed", "--rail_kd_has_final"]


def batch_of(program):
    if program == "pretrain":
        return toy_lm_batch(3)
    return toy_cloze_batch(3, choices=3, variable=True)


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum().sqrt()


@torch.no_grad()
def squares(step, call, own, theirs, mask, num_s=2, num_t=4, t_no=0) -> list[float]:
    """Of each sequence: sum over layers of |u_S - u_T|^2."""
    method, flags = step.method, step.method.args.method
    s = [pooled(x, mask) for x in states(call.student, num_s, own)]
    t = [pooled(x, mask) for x in states(call.teacher, num_t, theirs)]
    fit = getattr(method, f"t_fit_dense_{t_no}")
    if flags.rail_kd_concatenated:
        s, t = [torch.cat(s, 1)], [torch.cat(t, 1)]
    result = []
    for i in range(len(s[0])):
        total = 0.0
        for x, y in zip(s, t, strict=True):
            x = method.s_fit_dense.weight @ x[i] + method.s_fit_dense.bias
            y = fit.weight @ y[i] + fit.bias
            total += float((unit(x) - unit(y)).square().sum())
        result.append(total)
    return result


def mean(values, real) -> float:
    return sum(v for v, r in zip(values, real, strict=True) if r) / sum(real)


CASES = {
    (): ([1], None),
    (NO_RANDOM,): ([1], [2]),
    (NO_RANDOM, *ENDS): ([0, 1, 2], [0, 2, 4]),
    (CONCATENATED, *ENDS): ([0, 1, 2], None),
    (CONCATENATED, "--rail_kd_has_final"): ([1, 2], None),
}


@pytest.mark.parametrize("program", ["pretrain", "finetune"])
@pytest.mark.parametrize("flags", CASES, ids="".join)
def test_the_formula(flags, program):
    batch, (own, theirs) = batch_of(program), CASES[flags]
    step = toy_step(toy_run(*FLAGS, *flags, ALPHA, program=program))
    if theirs is None:
        ends = [0] * ("--rail_kd_has_embed" in flags), [4] * ("--rail_kd_has_final" in flags)
        theirs = [*ends[0], *step.method.draw_layers(0), *ends[1]]
    (call,) = handed(step, batch)
    mask = tokens(batch)
    values = squares(step, call, own, theirs, mask)
    alpha = 1 if CONCATENATED in flags else 3
    expected = alpha * mean(values, mask[:, 0].tolist())
    assert call.loss == pytest.approx(0.5 * expected, rel=1e-5)
    logged = float(step.output.terms["inter_loss/hidden_states_t0"])
    assert logged == pytest.approx(expected, rel=1e-5)


def test_both_projections_are_trained():
    step = toy_step(toy_run(*FLAGS))
    take(step, toy_lm_batch(3))
    for name, parameter in step.method.named_parameters():
        if "fit_dense" in name:
            assert bool(parameter.grad.any()), name


def test_compat_adds_up_the_batch_and_pools_padding():
    batch = batch_of("finetune")
    step = toy_step(toy_run(*FLAGS, NO_RANDOM, ALPHA, "--compat=glmkd", program="finetune"))
    (call,) = handed(step, batch)
    values = squares(step, call, [1], [2], None)
    assert call.loss == pytest.approx(0.5 * sum(values), rel=1e-5)


@pytest.mark.parametrize(
    ("item", "alpha", "added"), [("D13", 1, False), ("D37", 3, True), ("D37,D13", 1, True)]
)
def test_each_item_alone(item, alpha, added):
    batch, run = batch_of("finetune"), [*FLAGS, NO_RANDOM, ALPHA, f"--compat={item}"]
    step = toy_step(toy_run(*run, program="finetune"))
    (call,) = handed(step, batch)
    mask = tokens(batch)
    values, real = squares(step, call, [1], [2], mask), mask[:, 0].tolist()
    expected = mean(values, real) * (sum(real) if added else 1)
    assert call.loss == pytest.approx(0.5 * alpha * expected, rel=1e-5)


def test_compat_gives_each_sample_its_sum():
    batch = batch_of("finetune")
    step = toy_step(toy_run(*FLAGS, NO_RANDOM, "--compat=glmkd", program="finetune"))
    (call,) = handed(step, batch)
    values = torch.tensor(squares(step, call, [1], [2], None)).view(3, 3)
    context = dataclasses.replace(call.context, keep_batch=True)
    ((_, actual),) = step.method.layer_losses(call.student, call.teacher, context)
    torch.testing.assert_close(actual.detach(), 0.5 * values.sum(1))


def test_by_hand_it_is_a_plain_mean_or_sum():
    for compat, reduce in (("", torch.mean), ("--compat=D37", torch.sum)):
        step = toy_step(toy_run(*FLAGS, NO_RANDOM, *[compat] * bool(compat)))
        (call,) = handed(step, toy_lm_batch(2))
        context = dataclasses.replace(call.context, rows={}, keys=None)
        values = torch.tensor(squares(step, call, [1], [2], None))
        ((_, actual),) = step.method.layer_losses(call.student, call.teacher, context)
        torch.testing.assert_close(actual.detach(), 0.5 * reduce(values))
        context = dataclasses.replace(context, keep_batch=True)
        ((_, actual),) = step.method.layer_losses(call.student, call.teacher, context)
        torch.testing.assert_close(actual.detach(), 0.5 * values)


def test_a_filler_sample_gives_no_nan():
    batch = dataclasses.replace(toy_lm_batch(3), weight=torch.tensor([1.0, 1.0, 0.0]))
    step = toy_step(toy_run(*FLAGS))
    assert torch.isfinite(take(step, batch).loss)
    assert all(bool(torch.isfinite(g).all()) for g in grads_of(step.student.module).values())


# Draws.

DEEP = ["--num-layers=4", "--teacher_num_layers=12"]


def drawn(*flags: str, program="finetune", t_no=0, **clock) -> list[int]:
    run = toy_run(*FLAGS, *DEEP, *flags, program=program)
    run = dataclasses.replace(run, teachers=run.teachers * 2)
    method = toy_step(run, cloze_task() if program == "finetune" else None).method
    method.begin_pass(Clock(**clock))
    return method.draw_layers(t_no)


def test_draws_are_sorted_middle_layers():
    every = [drawn(epoch=epoch) for epoch in range(12)]
    assert all(x == sorted(set(x)) and len(x) == 3 for x in every)
    assert {layer for x in every for layer in x} <= set(range(1, 12))
    assert len({tuple(x) for x in every}) > 6


@pytest.mark.parametrize("epochs", [1, 3])
def test_epochs_decide_in_fine_tuning(epochs):
    flag = f"--rail_kd_epochs={epochs}"
    every = [drawn(flag, epoch=epoch, iteration=7000 * epoch) for epoch in range(6)]
    for epoch in range(1, 6):
        same = epoch // epochs == (epoch - 1) // epochs
        assert (every[epoch] == every[epoch - 1]) is same


def test_iterations_decide_without_epochs_and_in_pretraining():
    for flags in (
        {"program": "pretrain"},
        {"program": "finetune"},
    ):
        switch = ["--rail_kd_iters=10"] + ["--rail_kd_epochs=0"] * (flags["program"] == "finetune")
        every = [drawn(*switch, iteration=i, **flags) for i in (0, 9, 10, 19, 20)]
        assert every[0] == every[1] != every[2] == every[3] != every[4]


def test_draws_depend_on_the_seed_and_the_teacher_only():
    assert drawn(epoch=3, micro_step=1, iteration=5) == drawn(epoch=3, micro_step=0, iteration=9)
    assert drawn(epoch=3) != drawn("--seed=77", epoch=3)
    others = [(drawn(epoch=e), drawn(epoch=e, t_no=1)) for e in range(4)]
    assert any(a != b for a, b in others)


def on_rank(rank: int, world_size: int) -> list[int]:
    torch.manual_seed(rank)
    mpu.initialize_model_parallel(world_size)
    return drawn(epoch=5)


def test_draws_are_equal_on_all_ranks():
    assert run_ranks(2, on_rank) == [drawn(epoch=5)] * 2


def test_changes_are_told_once(caplog):
    step = toy_step(toy_run(*FLAGS, *DEEP, "--rail_kd_show_hook_change", program="finetune"))
    quiet = toy_step(toy_run(*FLAGS, *DEEP, program="finetune"))
    with caplog.at_level(logging.INFO, "distill.drawn_layers"):
        for epoch in (0, 0, 1):
            step.method.begin_pass(Clock(epoch=epoch))
            quiet.method.begin_pass(Clock(epoch=epoch))
    assert len(caplog.messages) == 2
    assert all(m.startswith("RAILKD: layers of teacher 0: [") for m in caplog.messages)


def test_each_teacher_has_its_projection():
    run = toy_run(*FLAGS, NO_RANDOM, program="finetune")
    other = dataclasses.replace(run.teachers[0], num_layers=6, hidden_size=8)
    step = toy_step(dataclasses.replace(run, teachers=(run.teachers[0], other)), cloze_task())
    batch = toy_cloze_batch(2)
    first, second = handed(step, batch)
    mask = tokens(batch)
    for call, theirs, depth, t_no in ((first, [2], 4, 0), (second, [3], 6, 1)):
        values = squares(step, call, [1], theirs, mask, num_t=depth, t_no=t_no)
        assert call.loss == pytest.approx(0.5 * mean(values, [1] * 4), rel=1e-5)


def problems(*flags):
    return list(RAILKD.problems(toy_run("--student_model=rail_kd", *flags), HeadSpec("lm")))


def test_what_it_needs():
    assert problems() == []
    (deeper,) = problems("--teacher_num_layers=1")
    assert deeper.startswith("--num-layers=2")
    (middle,) = problems("--num-layers=1")
    assert "rail_kd needs at least 2" in middle
    assert problems("--num-layers=1", "--rail_kd_has_final") == []
    assert problems("--num-layers=1", "--rail_kd_has_embed") == []


@pytest.mark.parametrize(
    "wrong", [{"rail_kd_u": 0}, {"rail_kd_epochs": -1}, {"rail_kd_iters": 0}], ids=str
)
def test_sizes_and_periods_are_positive(wrong):
    with pytest.raises(ConfigError, match="--" + next(iter(wrong))):
        RAILKDArgs(**wrong)
