"""Kept inputs of recomputed functions: gradients bit for bit, and only a part is held."""

import gc
import weakref

import pytest
import torch
from torch import Tensor

import mpu
from mpu.recompute import _Kept
from tests.ranks import run_ranks

KINDS = {
    "as they are": mpu.Keep(),
    "cut": mpu.Keep(partition=True),
    "on the host": mpu.Keep(on_cpu=True),
    "cut, on the host": mpu.Keep(partition=True, on_cpu=True),
}
WIDTH = 7  # does not divide by the ranks


def blocks(keep: mpu.Keep | None, twice: bool = False) -> list[Tensor]:
    """Gradients of three blocks with both kinds of dropout and a capture inside; keep None: plain.

    A mask without gradient is shared by all blocks.
    """
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(WIDTH, WIDTH, generator=generator).requires_grad_() for _ in range(3)]
    x = torch.randn(3, WIDTH, generator=generator).requires_grad_()
    mask = torch.ones(3, WIDTH)
    mpu.seed_step(1, 0, 0, 0)
    y, total = x, torch.zeros(())
    for weight in weights:

        def block(y: Tensor, mask: Tensor, weight: Tensor = weight) -> tuple[Tensor, Tensor]:
            y = torch.nn.functional.dropout(torch.tanh(y @ weight), 0.3)
            with mpu.get_rng_tracker().fork():
                sharded = torch.nn.functional.dropout(y, 0.3)
            inside = mpu.gather_from_model_parallel_region(sharded.sum(-1, keepdim=True))
            return y * mask + inside.mean(-1, keepdim=True), torch.exp(y)

        y, inside = block(y, mask) if keep is None else mpu.checkpoint(block, y, mask, keep=keep)
        total = total + inside.square().mean()
    total = total + y.square().mean()
    total.backward(retain_graph=twice)
    if twice:
        total.backward()
    mpu.get_rng_tracker().reset()
    return [t.grad for t in (x, *weights)]


def on_ranks(rank: int, world_size: int) -> dict[str, list[Tensor]]:
    mpu.initialize_model_parallel(world_size)
    found = {name: blocks(keep) for name, keep in KINDS.items()}
    found["twice"] = [g / 2 for g in blocks(KINDS["cut, on the host"], twice=True)]
    return found | {"plain": blocks(None)}


@pytest.mark.parametrize("size", [1, 2])
def test_kept_inputs_change_no_bit(size):
    for found in run_ranks(size, on_ranks):
        expected = found.pop("plain")
        assert all(g.abs().max() > 1e-4 for g in expected)
        for name, actual in found.items():
            assert all(map(torch.equal, actual, expected)), name


def held(rank: int, world_size: int) -> tuple[dict[str, bool], int]:
    """Kind -> whether the input itself is kept alive; bytes kept of 8192 when cut."""
    mpu.initialize_model_parallel(world_size)
    alive = {}
    for name, keep in KINDS.items():
        weight = torch.randn(64, 64, requires_grad=True)
        x = torch.randn(32, 64) + weight.sum() * 0
        watched = weakref.ref(x)
        y = mpu.checkpoint(lambda x, w=weight: torch.tanh(x @ w), x, keep=keep)
        part = _Kept(x, KINDS["cut"])._part.untyped_storage().nbytes()
        del x
        gc.collect()
        alive[name] = watched() is not None
        y.sum().backward()
    return alive, part


def test_of_a_cut_input_each_rank_holds_its_part():
    for alive, part in run_ranks(2, held):
        assert alive["as they are"]
        assert not alive["cut"]
        assert not alive["cut, on the host"]
        assert part == 32 * 64 * 4 // 2


def test_without_gradients_nothing_is_kept():
    with torch.no_grad():
        y = mpu.checkpoint(lambda x: x + 1, torch.ones(3), keep=mpu.Keep(partition=True))
    assert torch.equal(y, torch.full((3,), 2.0))
    assert not y.requires_grad
