"""Adafactor against transformers', whole and in shards; skipped, saved and resumed in an engine."""

import dataclasses
import math

import pytest
import torch
from torch import nn

import mpu
from distill.engine.adafactor import Adafactor
from distill.engine.resuming import kind_of
from mpu.layout import Partition, set_partition
from tests.distill.engine import small
from tests.ranks import run_ranks

STEPS = 5
#: Name -> shape, how it is cut over ranks.
PARAMETERS = {
    "column": ((8, 6), Partition(0)),
    "row": ((4, 10), Partition(1)),
    "qkv": ((12, 4), Partition(0, stride=3)),
    "bias": ((8,), Partition(0)),
    "dense": ((5, 7), None),
    "norm": ((6,), None),
}


def values(step):
    """Name -> numbers of very different size for each parameter; step 0: weights, then gradients."""
    draw = torch.Generator().manual_seed(step)
    found = {}
    for number, (name, (shape, _)) in enumerate(PARAMETERS.items()):
        x = torch.randn(shape, generator=draw) * 10.0 ** (number - 3)
        found[name] = x * torch.linspace(0.1, 3.0, shape[0]).view(-1, *[1] * (x.dim() - 1))
    return found


def share(x, cut, rank, world_size):
    """The part of a rank."""
    if cut is None:
        return x
    blocks = [block.chunk(world_size, cut.dim)[rank] for block in x.chunk(cut.stride, cut.dim)]
    return torch.cat(blocks, cut.dim)


def trained(rank, world_size):
    """Weights of this rank after some steps."""
    mpu.initialize_model_parallel(world_size)
    weights = {}
    for name, x in values(0).items():
        cut = PARAMETERS[name][1]
        weights[name] = nn.Parameter(share(x, cut, rank, world_size).clone())
        if cut is not None:
            set_partition(weights[name], cut)
    decayed = [p for p in weights.values() if p.dim() == 2]
    rest = [p for p in weights.values() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = Adafactor(groups, lr=0.0)
    for step in range(1, STEPS + 1):
        for name, x in values(step).items():
            weights[name].grad = share(x, PARAMETERS[name][1], rank, world_size)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * step
        optimizer.step()
    mpu.destroy_model_parallel()
    return {name: p.detach() for name, p in weights.items()}


@pytest.fixture(scope="module")
def expected():
    """The same by transformers' optimizer, of whole parameters."""
    from transformers.optimization import Adafactor as Reference

    weights = {name: nn.Parameter(x) for name, x in values(0).items()}
    groups = [
        {"params": [p for p in weights.values() if p.dim() == 2], "weight_decay": 0.1},
        {"params": [p for p in weights.values() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = Reference(groups, lr=0.0, relative_step=False, warmup_init=False)
    for step in range(1, STEPS + 1):
        for name, x in values(step).items():
            weights[name].grad = x
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * step
        optimizer.step()
    start = values(0)
    assert all((p - start[name]).abs().max() > 1e-7 for name, p in weights.items())
    return {name: p.detach() for name, p in weights.items()}


@pytest.mark.parametrize("world_size", [1, 2])
def test_updates_are_those_of_transformers_on_any_ranks(expected, world_size):
    ranks = run_ranks(2, trained) if world_size == 2 else [trained(0, 1)]
    for rank, actual in enumerate(ranks):
        start = values(0)
        for name, x in expected.items():
            cut = PARAMETERS[name][1]
            change = share(x - start[name], cut, rank, world_size)
            found = actual[name] - share(start[name], cut, rank, world_size)
            torch.testing.assert_close(found, change, rtol=2e-4, atol=1e-7, msg=name)


def adafactor():
    """A run of a small engine with it."""
    run = small.make_run()
    return dataclasses.replace(run, optim=dataclasses.replace(run.optim, optimizer="adafactor"))


def test_an_engine_trains_with_it_skips_nan_and_resumes_bit_for_bit(tmp_path):
    run = adafactor()
    whole = small.make_engine(0, 1, run)
    poison = {2: math.nan}
    records = small.train(whole, 0, 1, 1, stop=8, poison=poison)
    assert [r["applied"] for r in records] == [i != 2 for i in range(8)]
    assert [r["changed"] for r in records] == [i != 2 for i in range(8)]
    half = small.make_engine(0, 1, run)
    small.train(half, 0, 1, 1, stop=4, poison=poison)
    half.save(tmp_path, {"iteration": 4})
    rest = small.make_engine(0, 1, run)
    assert rest.load(tmp_path)["iteration"] == 4
    assert small.same(small.snapshot(rest), small.snapshot(half))
    small.train(rest, 0, 1, 1, start=4, stop=8)
    assert small.same(small.snapshot(rest), small.snapshot(whole))
    mpu.destroy_model_parallel()


def test_its_state_is_not_taken_for_that_of_adamw():
    assert kind_of(adafactor()) == "plain adafactor"
    assert kind_of(small.make_run()) == "plain"
