"""Collectives: values, gradients and second gradients against sums written out."""

import pytest
import torch
import torch.distributed as dist
from torch.testing import assert_close

import mpu
from tests.ranks import run_ranks

SIZES = (1, 2, 4)


def _numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _value_and_gradient(op, x, weight):
    """The op on x, and the gradient of sum(weight * op(x)); x must not be written to."""
    x = x.clone().requires_grad_()
    before = x.detach().clone()
    y = op(x)
    (y * weight).sum().backward()
    assert torch.equal(x.detach(), before)
    return y.detach(), x.grad


def _all_ops(rank, size):
    """Each op on rank-dependent numbers: {name: (value, gradient)}."""
    mpu.initialize_model_parallel(size)
    own, own_weight = _numbers(3, 8, seed=10 + rank), _numbers(3, 8, seed=20 + rank)
    shared, weight = _numbers(3, 8, seed=1), _numbers(3, 8, seed=2)
    shard, shard_weight = (mpu.split(t, mpu.Partition(-1), rank, size) for t in (shared, weight))
    return {
        "copy_to": _value_and_gradient(mpu.copy_to_model_parallel_region, shared, own_weight),
        "reduce_from": _value_and_gradient(mpu.reduce_from_model_parallel_region, own, weight),
        "scatter_to": _value_and_gradient(
            mpu.scatter_to_model_parallel_region, shared, shard_weight
        ),
        "gather_from": _value_and_gradient(mpu.gather_from_model_parallel_region, shard, weight),
        "sum_across": _value_and_gradient(mpu.sum_across_model_parallel_region, own, own_weight),
        "max_across": (mpu.max_across(own), None),
    }


@pytest.fixture(scope="module", params=SIZES)
def ops(request):
    """(size, what every rank got)"""
    return request.param, run_ranks(request.param, _all_ops)


@pytest.mark.parametrize(
    "name", ["copy_to", "reduce_from", "scatter_to", "gather_from", "sum_across", "max_across"]
)
def test_value_and_gradient(ops, name):
    size, ranks = ops
    own = torch.stack([_numbers(3, 8, seed=10 + r) for r in range(size)])
    own_weight = torch.stack([_numbers(3, 8, seed=20 + r) for r in range(size)])
    shared, weight = _numbers(3, 8, seed=1), _numbers(3, 8, seed=2)
    for rank in range(size):
        mine = slice(rank * 8 // size, (rank + 1) * 8 // size)
        expected = {
            "copy_to": (shared, own_weight.sum(0)),
            "reduce_from": (own.sum(0), weight),
            "scatter_to": (shared[:, mine], weight),
            "gather_from": (shared, weight[:, mine]),
            "sum_across": (own.sum(0), own_weight.sum(0)),
            "max_across": (own.amax(0), None),
        }[name]
        assert_close(ranks[rank][name], expected)


def _means_over_data_parallel(rank, size):
    mpu.initialize_model_parallel(size // 2)
    x = _numbers(3, seed=mpu.get_data_parallel_rank()).requires_grad_()
    before, mean = x.detach().clone(), mpu.mean_over_data_parallel(x)
    assert torch.equal(x.detach(), before)
    assert not mean.requires_grad
    return mean


@pytest.mark.parametrize("size", [2, 4])
def test_mean_over_data_parallel(size):
    expected = (_numbers(3, seed=0) + _numbers(3, seed=1)) / 2
    for actual in run_ranks(size, _means_over_data_parallel):
        assert_close(actual, expected)


def test_mean_over_one_rank_is_itself():
    x = _numbers(3)
    assert torch.equal(mpu.mean_over_data_parallel(x), x)


def _second_derivatives(rank, size):
    mpu.initialize_model_parallel(size)
    x = _numbers(2, 4, seed=rank).requires_grad_()
    results = []
    for op in (
        mpu.copy_to_model_parallel_region,
        mpu.reduce_from_model_parallel_region,
        mpu.scatter_to_model_parallel_region,
        mpu.gather_from_model_parallel_region,
        mpu.sum_across_model_parallel_region,
    ):
        (first,) = torch.autograd.grad(op(x).pow(3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        results.append(second)
    return x.detach(), results


def test_second_derivatives_of_one_rank_sum_the_cubes():
    [(x, results)] = run_ranks(1, _second_derivatives)
    for second in results:
        assert_close(second, 6 * x)


def test_second_derivative_of_gather_on_two_ranks():
    # sum over the gathered cubes, differentiated twice: 6 x of the own shard
    for x, (_, _, _, gathered, _) in run_ranks(2, _second_derivatives):
        assert_close(gathered, 6 * x)


def _over_data_parallel_group(rank, size):
    mpu.initialize_model_parallel(2)
    x = torch.tensor([float(rank)])
    return mpu.gather_from_model_parallel_region(x, group=mpu.get_data_parallel_group())


def test_another_group_can_be_given():
    actual = [x.tolist() for x in run_ranks(4, _over_data_parallel_group)]
    assert actual == [[0.0, 2.0], [1.0, 3.0], [0.0, 2.0], [1.0, 3.0]]


def _not_contiguous(rank, size):
    mpu.initialize_model_parallel(size)
    x = _numbers(4, 6, seed=rank).t()
    return (
        mpu.gather_from_model_parallel_region(x),
        mpu.reduce_from_model_parallel_region(x),
        mpu.scatter_to_model_parallel_region(x).is_contiguous(),
    )


def test_inputs_may_be_transposed():
    a, b = (_numbers(4, 6, seed=r).t() for r in range(2))
    for gathered, reduced, contiguous in run_ranks(2, _not_contiguous):
        assert_close(gathered, torch.cat([a, b], dim=-1))
        assert_close(reduced, a + b)
        assert contiguous


def _half_precision(rank, size):
    mpu.initialize_model_parallel(size)
    results = []
    for dtype in (torch.bfloat16, torch.float16):
        x = torch.full((4,), rank + 1.0, dtype=dtype)
        results += [mpu.reduce_from_model_parallel_region(x), mpu.max_across(x)]
        results.append(mpu.gather_from_model_parallel_region(x))
    return results


def test_half_precision():
    for results in run_ranks(2, _half_precision):
        for reduced, largest, gathered in (results[:3], results[3:]):
            assert reduced.tolist() == [3.0] * 4
            assert largest.tolist() == [2.0] * 4
            assert gathered.tolist() == [1.0] * 4 + [2.0] * 4


def test_one_process_needs_no_group_and_gets_its_input_back():
    assert not dist.is_initialized()
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    assert mpu.copy_to_model_parallel_region(x) is x
    assert mpu.reduce_from_model_parallel_region(x) is x
    assert mpu.scatter_to_model_parallel_region(x) is x
    assert mpu.gather_from_model_parallel_region(x) is x
    assert mpu.sum_across_model_parallel_region(x) is x
    assert torch.equal(mpu.max_across(x), x)
