"""Cut one tensor into shards and join them again: pure functions, no files, no groups."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .layout import Partition


def split(tensor: Tensor, partition: Partition | None, rank: int, size: int) -> Tensor:
    """The shard of `rank` among `size`: [..., x, ...] -> [..., x/size, ...], its own memory.

    Without a partition (replicated), or for size 1, the tensor itself. ValueError: `size` does not
    divide every block.
    """
    assert 0 <= rank < size, (rank, size)
    if partition is None or size == 1:
        return tensor
    length, pieces = tensor.size(partition.dim), partition.stride * size
    if length % pieces:
        raise ValueError(
            f"dimension {partition.dim} of {list(tensor.shape)} ({partition.stride} blocks) "
            f"cannot be cut into {size} equal shards"
        )
    chunks = tensor.split(length // pieces, dim=partition.dim)
    return torch.cat(chunks[rank::size], dim=partition.dim)


def merge(shards: Sequence[Tensor], partition: Partition | None) -> Tensor:
    """Join the shards of all ranks, in rank order: [..., x/size, ...] -> [..., x, ...].

    Without a partition all shards must be equal and the first is returned. ValueError: shards of
    different shapes, a length the blocks do not divide, replicated shards that differ.
    """
    first = shards[0]
    for rank, shard in enumerate(shards):
        if shard.shape != first.shape:
            raise ValueError(f"shard {rank} is {list(shard.shape)}, shard 0 is {list(first.shape)}")
        if partition is None and not torch.equal(shard, first):
            raise ValueError(f"replicated tensor {list(first.shape)}: shard {rank} is not shard 0")
    if partition is None or len(shards) == 1:
        return first
    length = first.size(partition.dim)
    if length % partition.stride:
        raise ValueError(
            f"dimension {partition.dim} of a shard {list(first.shape)} "
            f"does not hold {partition.stride} equal blocks"
        )
    blocks = [shard.split(length // partition.stride, dim=partition.dim) for shard in shards]
    return torch.cat(
        [piece for block in zip(*blocks, strict=True) for piece in block], partition.dim
    )


def pieces(
    shards: Sequence[Tensor], partition: Partition | None, rank: int, size: int
) -> list[Tensor]:
    """Views into the shards of p ranks that make up the shard of `rank` among `size`.

    Joined along the cut dimension they are it; without a partition it is the first shard, alone.
    Any p and `size` do. ValueError: shards of different shapes, a length that the blocks or `size`
    do not divide.
    """
    first = shards[0]
    for number, shard in enumerate(shards):
        if shard.shape != first.shape:
            raise ValueError(
                f"shard {number} is {list(shard.shape)}, shard 0 is {list(first.shape)}"
            )
    if partition is None:
        return [first]
    dim, stride = partition.dim, partition.stride
    if dim >= first.dim() or first.size(dim) % stride:
        raise ValueError(
            f"dimension {dim} of a shard {list(first.shape)} does not hold {stride} equal blocks"
        )
    block = first.size(dim) // stride  # of one shard
    whole = block * len(shards)
    if whole % size:
        raise ValueError(
            f"dimension {dim} ({stride} blocks of {whole}) cannot be cut into {size} equal shards"
        )
    start, stop = rank * whole // size, (rank + 1) * whole // size
    found = []
    for number in range(stride):
        for source, shard in enumerate(shards):
            low, high = max(start, source * block), min(stop, (source + 1) * block)
            if low < high:
                found.append(shard.narrow(dim, (number - source) * block + low, high - low))
    return found
