"""Adapters: initial values, precision, equality on model-parallel ranks."""

import pytest
import torch
import torch.nn.functional as F

import mpu
from distill.adapters import Adapter
from tests.ranks import run_ranks


def test_it_is_a_linear_layer_in_fp32():
    adapter = Adapter(5, 3, seed=(1, "a"))
    x = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = F.linear(x, adapter.weight, adapter.bias)
    with torch.autocast("cpu", torch.bfloat16):
        actual = adapter(x)
    torch.testing.assert_close(actual, expected)
    assert adapter(x.bfloat16()).dtype is torch.float32


def test_values_are_keyed_by_the_seed():
    first, same, other = (Adapter(5, 3, seed=(1, name)) for name in "aab")
    assert torch.equal(first.weight, same.weight)
    assert not torch.equal(first.weight, other.weight)


@pytest.mark.parametrize("xavier", [False, True])
def test_initial_scale(xavier):
    adapter = Adapter(400, 200, seed=(3,), xavier=xavier)
    expected = (2 / 600) ** 0.5 if xavier else (1 / 400 / 3) ** 0.5
    assert float(adapter.weight.detach().std()) == pytest.approx(expected, rel=0.02)
    assert bool(adapter.bias.any()) is not xavier


def test_no_bias():
    assert Adapter(4, 4, seed=(0,), bias=False).bias is None


def three_steps(rank: int, world_size: int) -> torch.Tensor:
    mpu.initialize_model_parallel(world_size)
    adapter = Adapter(4, 2, seed=(0,))
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.1)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(5))
    for _ in range(3):
        optimizer.zero_grad()
        adapter(x).square().mean().backward()
        optimizer.step()
    return adapter.weight.detach()


def test_it_stays_equal_on_all_ranks():
    first, second = run_ranks(2, three_steps)
    assert torch.equal(first, second)
