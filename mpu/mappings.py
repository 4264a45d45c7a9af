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


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Reduce.apply(grad, ctx.group), None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return all_reduced(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Copy.apply(grad, ctx.group), None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        shards = split_tensor_along_last_dim(x, dist.get_world_size(group))
        return shards[dist.get_rank(group)].clone(memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Gather.apply(grad, ctx.group), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return all_gathered(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Scatter.apply(grad, ctx.group), None


class _SumAcross(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return all_reduced(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _SumAcross.apply(grad, ctx.group), None


def _apply(function: type, x: Tensor, group: ProcessGroup | None) -> Tensor:
    group, size = _resolve(group)
    return x if size == 1 else function.apply(x, group)


def copy_to_model_parallel_region(x: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Identity forward, all-reduce backward (f of arXiv 1909.08053). [...] -> [...]"""
    return _apply(_Copy, x, group)


def reduce_from_model_parallel_region(x: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """All-reduce forward, identity backward (g of arXiv 1909.08053). [...] -> [...]

    For partial results when everything after is the same on all ranks.
    """
    return _apply(_Reduce, x, group)


def scatter_to_model_parallel_region(x: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Own slice of the last dim forward, all-gather backward. [..., x] -> [..., x/p]"""
    return _apply(_Scatter, x, group)


def gather_from_model_parallel_region(x: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """All-gather over the last dim forward, own slice backward. [..., x/p] -> [..., x]

    What follows must be the same on all ranks.
    """
    return _apply(_Gather, x, group)


def sum_across_model_parallel_region(x: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """All-reduce forward and backward. [...] -> [...]

    For a total that each rank then uses with its own shard.
    """
    return _apply(_SumAcross, x, group)


def max_across(x: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Elementwise maximum over the ranks, without gradient. [...] -> [...]"""
    group, size = _resolve(group)
    return x.detach() if size == 1 else all_reduced(x, group, dist.ReduceOp.MAX)


def mean_over_data_parallel(x: Tensor) -> Tensor:
    """Elementwise mean over the data-parallel ranks, without gradient. [...] -> [...]"""
    ranks = get_data_parallel_world_size()
    return x.detach() if ranks == 1 else all_reduced(x, get_data_parallel_group()) / ranks
