"""Gathering over the data-parallel group: order, padding, no gradient."""

import torch

import mpu
from tests.ranks import run_ranks


def _numbers(rank, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(rank))


def test_alone_it_is_the_tensor_itself_without_gradient():
    x = torch.ones(2, 3, requires_grad=True)
    actual = mpu.gather_from_data_parallel_region(x)
    assert torch.equal(actual, x.detach())
    assert not actual.requires_grad


def _equal_shapes(rank, size):
    mpu.initialize_model_parallel(1)
    x = _numbers(rank, 2, 3, 4).requires_grad_()
    actual = mpu.gather_from_data_parallel_region(x.transpose(1, 2))
    return actual, actual.requires_grad


def test_rows_come_in_the_order_of_the_ranks():
    expected = torch.cat([_numbers(r, 2, 3, 4).transpose(1, 2) for r in range(2)])
    for actual, has_gradient in run_ranks(2, _equal_shapes):
        assert torch.equal(actual, expected)
        assert not has_gradient


SHAPES = ((2, 5, 3), (4, 2, 3))


def _unequal_shapes(rank, size):
    mpu.initialize_model_parallel(1)
    x = _numbers(rank, *SHAPES[rank])
    flat = mpu.gather_from_data_parallel_region(x[:, 0, 0])
    return mpu.gather_from_data_parallel_region(x), flat


def test_each_rank_is_padded_to_the_largest_in_every_dim():
    expected = torch.zeros(8, 5, 3)
    for rank, (rows, length, width) in enumerate(SHAPES):
        expected[4 * rank : 4 * rank + rows, :length, :width] = _numbers(rank, *SHAPES[rank])
    for actual, flat in run_ranks(2, _unequal_shapes):
        assert torch.equal(actual, expected)
        assert torch.equal(flat, expected[:, 0, 0])


def _beside_model_parallelism(rank, size):
    mpu.initialize_model_parallel(2)
    return mpu.gather_from_data_parallel_region(torch.tensor([rank])).tolist()


def test_only_ranks_with_the_same_shard_take_part():
    assert run_ranks(4, _beside_model_parallelism) == [[0, 2], [1, 3], [0, 2], [1, 3]]


def _objects(rank, size, p):
    mpu.initialize_model_parallel(p)
    return mpu.gather_objects_from_data_parallel({"rank": rank, "x": _numbers(rank, 2)})


def test_objects_of_all_ranks_in_their_order():
    assert mpu.gather_objects_from_data_parallel([1, "a"]) == [[1, "a"]]
    for values in run_ranks(2, _objects, 1):
        assert [value["rank"] for value in values] == [0, 1]
        assert all(torch.equal(v["x"], _numbers(k, 2)) for k, v in enumerate(values))
    found = run_ranks(4, _objects, 2)
    assert [[v["rank"] for v in values] for values in found] == [[0, 2], [1, 3], [0, 2], [1, 3]]
