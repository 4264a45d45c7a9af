"""Mixed objectives: how much each counts, on any ranks; losses of kinds, exact in the log."""

import dataclasses

import pytest
import torch

import mpu
from config.data import DataArgs
from config.training import TrainArgs
from distill.engine.summary import Meter
from distill.kinds import count_step
from tests.distill.runs import grads_of, rows_of, toy_run, toy_step
from tests.ranks import run_ranks
from tests.toy import toy_lm_batch

MULTI = ("--multi-task-ratio=0.5",)
KD = ("--student_model=kd", "--distill_pt_soft", "--distill_pt_hard")


def batch_of_kinds():
    """Blank infilling, then one sample of a labelled task."""
    weight = torch.ones(6)
    weight[4] = 0
    kinds = torch.tensor([0, 2, 0, 2, 0, 3])
    return dataclasses.replace(toy_lm_batch(6, seed=2), weight=weight, kinds=kinds)


def expected_means(step, batch):
    """Of each kind, over its targets, from whole logits."""
    with torch.no_grad():
        module = step.student.module
        logits = module(*step.task.inputs(batch))[0].float()
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.labels.flatten(), reduction="none"
    ).view_as(batch.labels)
    means = {}
    for name, kind in (("bert", 0), ("gpt", 2), ("multi-task", 3)):
        mask = batch.loss_mask * batch.weight[:, None] * (batch.kinds == kind)[:, None]
        means[f"Train/loss_{name}"] = float((losses * mask).sum() / mask.sum())
    return means


@pytest.mark.parametrize("flags", [(), KD, (*KD, "--forward_repeat_num=1"), ("--compat=D3",)])
def test_sums_over_unequal_micro_batches_are_exact(flags):
    batch = batch_of_kinds()
    step = toy_step(toy_run(*MULTI, *flags, "--gradient-accumulation-steps=3"))
    parts = [rows_of(batch, 0, 2), rows_of(batch, 2, 5), rows_of(batch, 5, 6)]
    counts, meter = step.count(parts), Meter(torch.device("cpu"))
    for part in parts:
        output = step(part, counts)
        meter.add(part, output.loss, output.terms)
    means = meter.read()[0]
    for name, expected in expected_means(step, batch).items():
        assert means[name] == pytest.approx(expected, rel=1e-5)


def test_a_run_without_labelled_tasks_tells_nothing_of_kinds():
    step = toy_step(toy_run())
    batch = batch_of_kinds()
    assert step(batch, step.count([batch])).terms == {}


def pieces(ranks, accumulation):
    """2 micro-batches of 2 samples, then 2 of 3 of a labelled task; dealt to ranks in order."""
    batch = toy_lm_batch(12, seed=4)
    parts = []
    for number in range(4):
        kind = 3 if number >= 2 else number
        part = rows_of(batch, 3 * number, 3 * number + (3 if kind == 3 else 2))
        mask = part.loss_mask.clone()
        if kind == 3:  # a few targets, as of labels
            mask[:, :-1] *= 0
            mask[:, -1] = 1
        kinds = torch.full((len(part),), kind)
        parts.append(dataclasses.replace(part, kinds=kinds, loss_mask=mask))
    return [parts[rank * accumulation : (rank + 1) * accumulation] for rank in range(ranks)]


def gradient(flags, ranks, rank, accumulation):
    """Loss and gradient of one rank's part of a step, as an engine adds them up."""
    sizes = ["--batch-size=2", "--multi-batch-size=3"]
    run = toy_run(*MULTI, *sizes, *flags, f"--gradient-accumulation-steps={accumulation}")
    step = toy_step(run)
    mine = pieces(ranks, accumulation)[rank]
    counts, total = step.count(mine), 0.0
    for part in mine:
        loss = step(part, counts).loss / accumulation
        loss.backward()
        total += float(loss.detach())
    return total, grads_of(step.student.module)


def on_rank(rank, world_size, flags):
    mpu.initialize_model_parallel(1)
    return gradient(flags, world_size, rank, 4 // world_size)


@pytest.mark.parametrize("flags", [(), KD])
def test_each_objective_is_a_mean_of_its_own_and_counts_by_its_micro_batches(flags):
    total, grads = gradient(flags, 1, 0, 4)
    step = toy_step(toy_run(*flags))  # of block samples, then of labelled ones: no mixture
    expected = 0.0
    for labelled in (False, True):
        same = [part for part in pieces(1, 4)[0] if bool(part.kinds[0] == 3) == labelled]
        counts = step.count(same)
        for part in same:  # accumulation 1: each is divided by half of the objective's rows
            loss = step(part, counts).loss / 2
            loss.backward()
            expected += float(loss.detach())
    assert total == pytest.approx(expected, rel=1e-6)
    for name, grad in grads_of(step.student.module).items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-5, atol=1e-7, msg=name)


def test_ranks_change_nothing():
    whole = gradient((), 1, 0, 4)
    ranks = run_ranks(2, on_rank, ())
    assert sum(rank[0] for rank in ranks) / 2 == pytest.approx(whole[0], rel=1e-6)
    for name, grad in whole[1].items():
        mean = sum(rank[1][name] for rank in ranks) / 2
        torch.testing.assert_close(mean, grad, rtol=1e-5, atol=1e-7, msg=name)


def test_a_smaller_micro_batch_counts_by_its_samples():
    batch, data = toy_lm_batch(4), DataArgs(multi_task_ratio=0.5, multi_batch_size=4)
    train, kinds = TrainArgs(batch_size=2, gradient_accumulation_steps=2), torch.zeros(2)
    blocks = dataclasses.replace(rows_of(batch, 0, 2), kinds=kinds.long())
    labelled = dataclasses.replace(rows_of(batch, 2, 4), kinds=kinds.long() + 3)
    masks = [{"targets": torch.ones(10)}, {"targets": torch.ones(6)}]
    counts = count_step([blocks, labelled], masks, data, train, "cpu")
    # One whole micro-batch and half a one: parts 2/3 and 1/3 of means over 10 and 6 rows, of
    # which the engines take half.
    assert float(counts.totals["targets"]) == pytest.approx(10 / 2 / (2 / 3))
    assert float(counts.of(labelled).totals["targets"]) == pytest.approx(6 / 2 / (1 / 3))
    assert counts.of(blocks) is counts
