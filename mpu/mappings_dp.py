"""Tensors of all data-parallel ranks together: for losses that compare samples of a whole batch."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from .initialize import get_data_parallel_group, get_data_parallel_world_size


def gather_from_data_parallel_region(x: Tensor) -> Tensor:
    """All-gather over the first dim, without gradient. [n, s, ...] -> [ranks * max n, max s, ...]

    Ranks may differ in every dim: each is padded with zeros at the end, to the largest of all
    ranks. So rank r's rows start at r * max n. In a group of one it is x itself, detached.
    """
    ranks, group = get_data_parallel_world_size(), get_data_parallel_group()
    x = x.detach()
    if ranks == 1:
        return x
    sizes = torch.tensor(x.shape, device=x.device)
    dist.all_reduce(sizes, op=dist.ReduceOp.MAX, group=group)
    missing = [largest - own for largest, own in zip(sizes.tolist(), x.shape, strict=True)]
    x = pad(x, [n for extra in reversed(missing) for n in (0, extra)]).contiguous()
    parts = [torch.empty_like(x) for _ in range(ranks)]
    dist.all_gather(parts, x, group=group)
    return torch.cat(parts)


def gather_objects_from_data_parallel(value: Any) -> list[Any]:
    """Every data-parallel rank's value, by rank. For checkpoints: small things, rarely."""
    ranks = get_data_parallel_world_size()
    if ranks == 1:
        return [value]
    values: list[Any] = [None] * ranks
    dist.all_gather_object(values, value, group=get_data_parallel_group())
    return values
