"""The process grid: which ranks share a model, which share a batch.

Consecutive ranks form a model-parallel group; ranks with equal `rank % p` form a data-parallel
group. With p = 2 on 4 processes: model groups [0, 1] [2, 3], data groups [0, 2] [1, 3].
Model parallel means tensor parallel; `p` is its size.

One process needs nothing: without torch.distributed every question has an answer (rank 0, size 1,
group None). With torch.distributed but before `initialize_model_parallel`, p is 1 and all ranks
are data-parallel. Only this file knows the grid.

The module `mpu` itself can be given to `deepspeed.initialize(mpu=mpu)`; DeepSpeed asks by the
`get_model_parallel_*` and by the `get_tensor_model_parallel_*` names.
"""

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class _Grid:
    """The groups this process is a member of."""

    model_group: ProcessGroup | None
    model_ranks: tuple[int, ...]
    model_rank: int
    data_group: ProcessGroup | None
    data_ranks: tuple[int, ...]
    data_rank: int


_ALONE = _Grid(None, (0,), 0, None, (0,), 0)
_grid: _Grid | None = None


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _current() -> _Grid:
    if _grid is not None:
        return _grid
    if not _distributed():
        return _ALONE
    rank, ranks = dist.get_rank(), tuple(range(dist.get_world_size()))
    return _Grid(None, (rank,), 0, dist.group.WORLD, ranks, rank)


def initialize_model_parallel(model_parallel_size: int = 1) -> None:
    """Build the groups; every process calls it, after torch.distributed when there are several.

    Calling again with the same size does nothing. ValueError: a size that does not divide the
    number of processes, or another size than before.
    """
    global _grid
    if _grid is not None:
        if len(_grid.model_ranks) != model_parallel_size:
            raise ValueError(
                f"--model-parallel-size={model_parallel_size}: model parallelism of size "
                f"{len(_grid.model_ranks)} is already set up; "
                "call destroy_model_parallel() before changing it"
            )
        return
    world = dist.get_world_size() if _distributed() else 1
    if model_parallel_size < 1 or world % model_parallel_size:
        raise ValueError(
            f"--model-parallel-size={model_parallel_size}: does not divide the {world} processes "
            "of this run; start a multiple of it"
        )
    _grid = _build(model_parallel_size, world) if _distributed() else _ALONE


def _build(size: int, world: int) -> _Grid:
    rank = dist.get_rank()
    model = [tuple(range(first, first + size)) for first in range(0, world, size)]
    data = [tuple(range(first, world, size)) for first in range(size)]
    model_group, model_ranks = _make_groups(model, rank)
    data_group, data_ranks = _make_groups(data, rank)
    return _Grid(
        model_group,
        model_ranks,
        model_ranks.index(rank),
        data_group,
        data_ranks,
        data_ranks.index(rank),
    )


def _make_groups(all_ranks: list[tuple[int, ...]], rank: int) -> tuple[ProcessGroup, tuple]:
    """Every process takes part in making every group; returned is the one it is in."""
    mine = None
    for ranks in all_ranks:
        group = dist.new_group(list(ranks))
        if rank in ranks:
            mine = (group, ranks)
    assert mine is not None, (rank, all_ranks)
    return mine


def model_parallel_is_initialized() -> bool:
    """Whether `initialize_model_parallel` has been called."""
    return _grid is not None


def destroy_model_parallel() -> None:
    """Forget the grid. The groups end with torch.distributed.destroy_process_group."""
    global _grid
    _grid = None


def get_model_parallel_group() -> ProcessGroup | None:
    """Group of the ranks that hold the shards of one model; None when there is only this one."""
    return _current().model_group


def get_model_parallel_rank() -> int:
    """Index of this process's shard, 0..p-1."""
    return _current().model_rank


def get_model_parallel_world_size() -> int:
    """Number of shards p."""
    return len(_current().model_ranks)


def get_model_parallel_src_rank() -> int:
    """Global rank that holds shard 0 of this process's model."""
    return _current().model_ranks[0]


def get_model_parallel_group_ranks() -> list[int]:
    """Global ranks of the model-parallel group, in order."""
    return list(_current().model_ranks)


def get_data_parallel_group() -> ProcessGroup | None:
    """Group of the ranks that hold the same shard and see different samples."""
    return _current().data_group


def get_data_parallel_rank() -> int:
    """Index of this process among the replicas of its shard."""
    return _current().data_rank


def get_data_parallel_world_size() -> int:
    """Number of replicas."""
    return len(_current().data_ranks)


def get_data_parallel_src_rank() -> int:
    """Global rank of the first replica of this process's shard."""
    return _current().data_ranks[0]


def get_data_parallel_group_ranks() -> list[int]:
    """Global ranks of the data-parallel group, in order."""
    return list(_current().data_ranks)


get_tensor_model_parallel_group = get_model_parallel_group
get_tensor_model_parallel_rank = get_model_parallel_rank
get_tensor_model_parallel_world_size = get_model_parallel_world_size
get_tensor_model_parallel_src_rank = get_model_parallel_src_rank
