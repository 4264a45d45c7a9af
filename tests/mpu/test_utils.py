"""Arithmetic of shards."""

import pytest
import torch

import mpu


def test_divide():
    assert mpu.divide(12, 4) == 3
    for wrong in ((12, 5), (12, 0), (12, -4)):
        with pytest.raises(ValueError, match=r"12 is not divisible by"):
            mpu.divide(*wrong)


def test_split_along_the_last_dim():
    x = torch.arange(12.0).view(2, 6)
    first, second, third = mpu.split_tensor_along_last_dim(x, 3)
    assert first.tolist() == [[0, 1], [6, 7]]
    assert second.tolist() == [[2, 3], [8, 9]]
    assert third.tolist() == [[4, 5], [10, 11]]
    assert second.data_ptr() == x[0, 2:].data_ptr()
    copied = mpu.split_tensor_along_last_dim(x, 3, contiguous_split_chunks=True)
    assert all(chunk.is_contiguous() for chunk in copied)
    with pytest.raises(ValueError, match="6 is not divisible by 4"):
        mpu.split_tensor_along_last_dim(x, 4)


def test_ranges_of_the_vocabulary():
    ranges = [mpu.VocabUtility.vocab_range_from_global_vocab_size(12, r, 3) for r in range(3)]
    assert ranges == [(0, 4), (4, 8), (8, 12)]
    assert mpu.VocabUtility.vocab_range_from_per_partition_vocab_size(4, 2) == (8, 12)
