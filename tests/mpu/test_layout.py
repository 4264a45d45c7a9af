"""Layouts of activations and partitions of parameters."""

import pytest
import torch
from torch import nn

import mpu


def test_the_dimension_that_is_cut():
    dims = {layout.name: layout.dim for layout in mpu.Layout}
    assert dims == {"REPLICATED": None, "SHARD_HEADS": 1, "SHARD_LAST": -1}


def test_a_parameter_carries_its_partition():
    sharded, replicated = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    mpu.set_partition(sharded, mpu.Partition(1, stride=3))
    assert mpu.partition_of(sharded) == mpu.Partition(1, 3)
    assert sharded.model_parallel
    assert sharded.tensor_model_parallel
    assert mpu.partition_of(replicated) is None
    assert not hasattr(replicated, "tensor_model_parallel")


def test_a_partition_cannot_change():
    with pytest.raises(AttributeError):
        mpu.Partition(0).dim = 1
