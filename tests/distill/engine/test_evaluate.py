"""Every sample once, on any number of ranks, fillers left out."""

import dataclasses
import math

import pytest
import torch

import distill.lazy_forward
import mpu
from data_utils.loader import StepLoader
from data_utils.samplers import StepSampler
from distill.engine.evaluate import evaluate, gather_over_replicas
from distill.engine.wrap import wrap
from tasks.block_lm import BlockLM
from tests.distill.engine import small
from tests.ranks import run_ranks
from tests.toy import toy_glm, toy_lm_batch

SAMPLES = 11


class Samples:
    """Single rows of one batch; ~i is a filler."""

    def __init__(self):
        self.batch = toy_lm_batch(SAMPLES)

    def __len__(self):
        return SAMPLES

    def __getitem__(self, i):
        return i


def collate(rows):
    whole = toy_lm_batch(SAMPLES)
    index = torch.tensor([i if i >= 0 else ~i for i in rows])
    picked = {k: v[index] for k, v in whole.tensors().items()}
    picked["weight"] = torch.tensor([float(i >= 0) for i in rows])
    picked["sample_ids"] = index
    return dataclasses.replace(whole, **picked)


def score(rank, world_size, p, micro_batch, limit=None):
    mpu.initialize_model_parallel(p)
    engine = wrap(
        toy_glm(seed=3, hidden_dropout=0.5), small.make_run(), small.runtime(rank, world_size)
    )
    ranks = mpu.get_data_parallel_rank(), mpu.get_data_parallel_world_size()
    sampler = StepSampler(SAMPLES, micro_batch, 1, *ranks, epochs=1)
    found = evaluate(
        engine, BlockLM(), StepLoader(Samples(), collate, sampler), split="val", limit=limit
    )
    assert engine.module.training
    return found.metrics, sorted(found.predictions), found.samples_per_second


@pytest.fixture(scope="module")
def expected():
    """Cross entropy over all targets, by torch."""
    model, batch = toy_glm(seed=3).eval(), toy_lm_batch(SAMPLES)
    with torch.no_grad():
        logits, *_ = model(batch.tokens, batch.position_ids, batch.attention_mask)
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.labels.flatten(), reduction="none"
    )
    mask = batch.loss_mask.flatten()
    return ((losses * mask).sum() / mask.sum()).item()


@pytest.mark.parametrize(("world_size", "p"), [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("micro_batch", [2, 4])
def test_scores_do_not_depend_on_processes_and_batches(expected, world_size, p, micro_batch):
    for metrics, ids, speed in run_ranks(world_size, score, p, micro_batch):
        assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
        assert metrics["ppl"] == pytest.approx(math.exp(expected), rel=1e-4)
        assert ids == list(range(SAMPLES))
        assert speed > 0


def test_many_logits_are_never_whole(expected, monkeypatch):
    monkeypatch.setattr(distill.lazy_forward, "FEW", 0)
    monkeypatch.delattr(BlockLM, "hard_loss")
    assert score(0, 1, 1, 3)[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_limit_stops_early():
    ((_, ids, _),) = run_ranks(1, score, 1, 3, 2)
    assert ids == list(range(6))


def test_one_process_gathers_its_own_value():
    assert gather_over_replicas({"a": 1}) == [{"a": 1}]
