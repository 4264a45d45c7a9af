"""Autograd collectives between replicated and sharded activations.

| op          | forward        | backward       | use                                      |
|-------------|----------------|----------------|------------------------------------------|
| copy_to     | identity       | sum over ranks | replicated -> input of sharded work      |
| reduce_from | sum over ranks | identity       | partial results -> the same everywhere   |
| scatter_to  | own slice      | gather         | replicated -> sharded last dim           |
| gather_from | gather         | own slice      | sharded last dim -> replicated           |
| sum_across  | sum over ranks | sum over ranks | a total that each rank uses in its own way |

`reduce_from` and `sum_across` differ in what follows. When what follows is computed alike on all
ranks (a loss value), each rank already has the whole gradient: identity. When it differs (a
softmax denominator used with the rank's own classes), each rank has a part of the gradient: sum.

`group` is the model-parallel group unless another is given (LRC-BERT gathers over the
data-parallel one). In a group of one every op returns its input itself and calls nothing. No op
writes into its input. Backwards are made of the same ops, so they can be differentiated again.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from .initialize import (
    get_data_parallel_group,
    get_data_parallel_world_size,
    get_model_parallel_group,
    get_model_parallel_world_size,
)
from .utils import split_tensor_along_last_dim


def _resolve(group: ProcessGroup | None) -> tuple[ProcessGroup | None, int]:
    """The group to work in and its size."""
    if group is None:
        return get_model_parallel_group(), get_model_parallel_world_size()
    return group, dist.get_world_size(group)


def all_reduced(x: Tensor, group: ProcessGroup, op: Any = dist.ReduceOp.SUM) -> Tensor:
    """A new tensor with the elementwise sum (or `op`) of all ranks' x. No gradient."""
    x = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x, op=op, group=group)
    return x


def all_gathered(x: Tensor, group: ProcessGroup) -> Tensor:
    """[..., x/p] of every rank -> [..., x], joined in rank order. No gradient."""
    x = x.detach().contiguous()
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, x, group=group)
    return torch.cat(parts, dim=-1)


def _same(x: Tensor, group: ProcessGroup) -> Tensor:
    return x.view_as(x)


def _own_slice(x: Tensor, group: ProcessGroup) -> Tensor:
    shards = split_tensor_along_last_dim(x, dist.get_world_size(group))
    return shards[dist.get_rank(group)].clone(memory_format=torch.contiguous_format)


Collective = Callable[[Tensor, ProcessGroup], Tensor]


class _Collective(torch.autograd.Function):
    """One of the functions above forward, another backward; again differentiable."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, group: ProcessGroup, there: Collective, back: Collective
    ) -> Tensor:
        ctx.group, ctx.there, ctx.back = group, there, back
        return there(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _Collective.apply(grad, ctx.group, ctx.back, ctx.there), None, None, None


def _apply(x: Tensor, group: ProcessGroup | None, there: Collective, back: Collective) -> Tensor:
    group, size = _resolve(group)
    return x if size == 1 else _Collective.apply(x, group, there, back)


def copy_to_model_parallel_region(x: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Identity forward, all-reduce backward (f of arXiv 1909.08053). [...] -> [...]"""
    return _apply(x, group, _same, all_reduced)


def reduce_from_model_parallel_region(x: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """All-reduce forward, identity backward (g of arXiv 1909.08053). [...] -> [...]

    For partial results when everything after is the same on all ranks.
    """
    return _apply(x, group, all_reduced, _same)


def scatter_to_model_parallel_region(x: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Own slice of the last dim forward, all-gather backward. [..., x] -> [..., x/p]"""
    return _apply(x, group, _own_slice, all_gathered)


def gather_from_model_parallel_region(x: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """All-gather over the last dim forward, own slice backward. [..., x/p] -> [..., x]

    What follows must be the same on all ranks.
    """
    return _apply(x, group, all_gathered, _own_slice)


def sum_across_model_parallel_region(x: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """All-reduce forward and backward. [...] -> [...]

    For a total that each rank then uses with its own shard.
    """
    return _apply(x, group, all_reduced, all_reduced)


def max_across(x: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Elementwise maximum over the ranks, without gradient. [...] -> [...]"""
    group, size = _resolve(group)
    return x.detach() if size == 1 else all_reduced(x, group, dist.ReduceOp.MAX)


def mean_over_data_parallel(x: Tensor) -> Tensor:
    """Elementwise mean over the data-parallel ranks, without gradient. [...] -> [...]"""
    ranks = get_data_parallel_world_size()
    return x.detach() if ranks == 1 else all_reduced(x, get_data_parallel_group()) / ranks
