"""Cutting and joining tensors is lossless."""

import itertools

import pytest
import torch

import mpu

SHAPE = (12, 24, 5)
PARTITIONS = [mpu.Partition(0), mpu.Partition(1), mpu.Partition(0, 3), mpu.Partition(1, 3), None]


def _tensor():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("partition", PARTITIONS, ids=str)
@pytest.mark.parametrize(("p", "q"), list(itertools.product((1, 2, 4), repeat=2)))
def test_resharding_is_lossless(partition, p, q):
    tensor = _tensor()
    shards = [mpu.split(tensor, partition, r, p) for r in range(p)]
    again = [mpu.split(mpu.merge(shards, partition), partition, r, q) for r in range(q)]
    assert torch.equal(mpu.merge(again, partition), tensor)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_each_of_three_fused_matrices_is_cut(size):
    q, k, v = _tensor().split(4, dim=0)
    for rank in range(size):
        mine = slice(rank * 4 // size, (rank + 1) * 4 // size)
        expected = torch.cat([q[mine], k[mine], v[mine]])
        assert torch.equal(mpu.split(_tensor(), mpu.Partition(0, 3), rank, size), expected)


def test_a_shard_has_its_own_memory():
    tensor = _tensor()
    for dim in (0, 1):
        shard = mpu.split(tensor, mpu.Partition(dim), 0, 2)
        assert shard.is_contiguous()
        assert shard.untyped_storage().nbytes() == tensor.untyped_storage().nbytes() // 2


def test_errors_name_the_shapes():
    with pytest.raises(ValueError, match=r"dimension 2 of \[12, 24, 5\].*2 equal shards"):
        mpu.split(_tensor(), mpu.Partition(2), 0, 2)
    with pytest.raises(ValueError, match=r"dimension 0 of \[12, 24, 5\] \(3 blocks\).*8 equal"):
        mpu.split(_tensor(), mpu.Partition(0, 3), 0, 8)
    with pytest.raises(ValueError, match=r"shard 1 is \[2, 4\], shard 0 is \[2, 3\]"):
        mpu.merge([torch.zeros(2, 3), torch.zeros(2, 4)], mpu.Partition(0))
    with pytest.raises(ValueError, match=r"a shard \[4, 2\] does not hold 3 equal blocks"):
        mpu.merge([torch.zeros(4, 2), torch.zeros(4, 2)], mpu.Partition(0, 3))
    with pytest.raises(ValueError, match=r"replicated tensor \[2\]: shard 1 is not shard 0"):
        mpu.merge([torch.zeros(2), torch.ones(2)], None)


@pytest.mark.parametrize("partition", PARTITIONS, ids=str)
@pytest.mark.parametrize(("p", "q"), [(1, 4), (4, 1), (2, 4), (4, 2), (2, 2), (1, 1)])
def test_pieces_are_the_shard_of_another_size(partition, p, q):
    tensor = _tensor()
    shards = [mpu.split(tensor, partition, r, p) for r in range(p)]
    for rank in range(q):
        parts = mpu.pieces(shards, partition, rank, q)
        joined = parts[0] if partition is None else torch.cat(parts, partition.dim)
        assert torch.equal(joined, mpu.split(tensor, partition, rank, q))


def test_sizes_need_not_be_multiples_of_each_other():
    tensor = _tensor()
    shards = [mpu.split(tensor, mpu.Partition(0), r, 4) for r in range(4)]
    for rank in range(3):
        actual = torch.cat(mpu.pieces(shards, mpu.Partition(0), rank, 3))
        assert torch.equal(actual, tensor[4 * rank : 4 * rank + 4])


def test_pieces_copy_nothing():
    tensor = _tensor()
    (part,) = mpu.pieces([tensor], mpu.Partition(1), 1, 2)
    assert part.data_ptr() == tensor[:, 12:].data_ptr()


def test_pieces_that_cannot_be_are_named():
    with pytest.raises(ValueError, match=r"dimension 0 \(3 blocks of 4\) cannot be cut into 8"):
        mpu.pieces([_tensor()], mpu.Partition(0, 3), 0, 8)
    with pytest.raises(ValueError, match=r"shard 1 is \[2, 4\], shard 0 is \[2, 3\]"):
        mpu.pieces([torch.zeros(2, 3), torch.zeros(2, 4)], None, 0, 1)
    with pytest.raises(ValueError, match=r"a shard \[5, 2\] does not hold 3 equal blocks"):
        mpu.pieces([torch.zeros(5, 2)], mpu.Partition(0, 3), 0, 2)
    with pytest.raises(ValueError, match=r"dimension 1 of a shard \[5\]"):
        mpu.pieces([torch.zeros(5)], mpu.Partition(1), 0, 1)
