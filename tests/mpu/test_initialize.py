"""The process grid, with and without torch.distributed."""

import pytest
import torch.distributed as dist

import mpu
from tests.ranks import RankError, run_ranks


def _grid(rank, size, model_parallel_size):
    """What the grid answers, by name, with group members in place of groups."""
    mpu.initialize_model_parallel(model_parallel_size)
    mpu.initialize_model_parallel(model_parallel_size)  # again: nothing happens
    return {
        "model ranks": mpu.get_model_parallel_group_ranks(),
        "model group": dist.get_process_group_ranks(mpu.get_model_parallel_group()),
        "model": (mpu.get_model_parallel_rank(), mpu.get_model_parallel_world_size()),
        "model source": mpu.get_model_parallel_src_rank(),
        "data ranks": mpu.get_data_parallel_group_ranks(),
        "data group": dist.get_process_group_ranks(mpu.get_data_parallel_group()),
        "data": (mpu.get_data_parallel_rank(), mpu.get_data_parallel_world_size()),
        "data source": mpu.get_data_parallel_src_rank(),
    }


@pytest.mark.parametrize(
    ("size", "model", "data"),
    [
        (1, [[0], [1], [2], [3]], [[0, 1, 2, 3]]),
        (2, [[0, 1], [2, 3]], [[0, 2], [1, 3]]),
        (4, [[0, 1, 2, 3]], [[0], [1], [2], [3]]),
    ],
)
def test_consecutive_ranks_share_a_model(size, model, data):
    for rank, actual in enumerate(run_ranks(4, _grid, size)):
        mine = next(ranks for ranks in model if rank in ranks)
        replicas = next(ranks for ranks in data if rank in ranks)
        assert actual == {
            "model ranks": mine,
            "model group": mine,
            "model": (mine.index(rank), len(mine)),
            "model source": mine[0],
            "data ranks": replicas,
            "data group": replicas,
            "data": (replicas.index(rank), len(replicas)),
            "data source": replicas[0],
        }


def test_one_process_without_torch_distributed():
    assert not dist.is_initialized()
    assert mpu.get_model_parallel_group() is None
    assert mpu.get_data_parallel_group() is None
    assert (mpu.get_model_parallel_rank(), mpu.get_model_parallel_world_size()) == (0, 1)
    assert (mpu.get_data_parallel_rank(), mpu.get_data_parallel_world_size()) == (0, 1)
    assert mpu.get_model_parallel_src_rank() == mpu.get_data_parallel_src_rank() == 0
    assert mpu.get_data_parallel_group_ranks() == mpu.get_model_parallel_group_ranks() == [0]
    mpu.initialize_model_parallel(1)
    assert mpu.model_parallel_is_initialized()
    mpu.destroy_model_parallel()
    assert not mpu.model_parallel_is_initialized()


@pytest.mark.parametrize("size", [2, 0, -1])
def test_a_size_beyond_one_process(size):
    with pytest.raises(ValueError, match=rf"--model-parallel-size={size}: does not divide the 1 "):
        mpu.initialize_model_parallel(size)
    assert not mpu.model_parallel_is_initialized()


def _wrong_size(rank, size):
    mpu.initialize_model_parallel(2)


def test_a_size_that_does_not_divide_the_processes():
    with pytest.raises(RankError, match="--model-parallel-size=2: does not divide the 3 processes"):
        run_ranks(3, _wrong_size)


def _twice(rank, size):
    mpu.initialize_model_parallel(2)
    mpu.initialize_model_parallel(1)


def test_another_size_than_before():
    with pytest.raises(RankError, match="model parallelism of size 2 is already set up"):
        run_ranks(2, _twice)


def _before_initialize(rank, size):
    return (
        mpu.get_model_parallel_world_size(),
        mpu.get_data_parallel_rank(),
        mpu.get_data_parallel_world_size(),
        dist.get_process_group_ranks(mpu.get_data_parallel_group()),
    )


def test_all_ranks_are_data_parallel_before_it_is_set_up():
    assert run_ranks(2, _before_initialize) == [(1, 0, 2, [0, 1]), (1, 1, 2, [0, 1])]


def test_both_families_of_names():
    for name in ("group", "rank", "world_size", "src_rank"):
        ours = getattr(mpu, f"get_model_parallel_{name}")
        assert getattr(mpu, f"get_tensor_model_parallel_{name}") is ours
