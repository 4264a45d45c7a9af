"""Softmax statistics over a last dimension that may be sharded: soft labels.

Every function takes the layout of its input. REPLICATED and SHARD_HEADS rows are whole on their
rank, so the last dimension is treated locally; SHARD_LAST rows go over the ranks. Results are fp32
whatever comes in. Autograd runs through two all-reduces, never confused (see mappings.py).

A loss from these: rows of SHARD_LAST are the same on every rank (their mean is the loss); rows of
SHARD_HEADS are each rank's own heads (`mean_over_shards` of their mean is the loss).
"""

import torch
from torch import Tensor

from .initialize import get_model_parallel_rank, get_model_parallel_world_size
from .layout import Layout
from .mappings import (
    gather_from_model_parallel_region,
    max_across,
    reduce_from_model_parallel_region,
    sum_across_model_parallel_region,
)


def _crosses_ranks(layout: Layout) -> bool:
    return layout is Layout.SHARD_LAST and get_model_parallel_world_size() > 1


def log_softmax(x: Tensor, layout: Layout = Layout.REPLICATED) -> Tensor:
    """Log-probabilities over the whole last dim, in nats: [..., v/p] -> [..., v/p].

    SHARD_LAST: all-reduce of the maximum, all-reduce of the sum forward and backward, both of one
    number a row. Saves x and one number a row for the backward.
    """
    x = x.float()
    if not _crosses_ranks(layout):
        return torch.log_softmax(x, dim=-1)
    return x - logsumexp(x, layout)


def logsumexp(x: Tensor, layout: Layout = Layout.REPLICATED) -> Tensor:
    """log sum exp over the whole last dim: [..., v/p] -> [..., 1].

    SHARD_LAST: its gradient is summed over the ranks, so use the result with the rank's own shard.
    """
    local = torch.logsumexp(x.float(), dim=-1, keepdim=True)
    if not _crosses_ranks(layout):
        return local
    largest = max_across(local)
    return largest + sum_across_model_parallel_region((local - largest).exp()).log()


def sum_last(x: Tensor, layout: Layout = Layout.REPLICATED) -> Tensor:
    """Sum over the whole last dim: [..., v/p] -> [...], fp32.

    SHARD_LAST: all-reduce forward, identity backward. For rows of a loss (also inner products:
    `sum_last(x * y, layout)`); what follows must be the same on all ranks.
    """
    rows = x.float().sum(dim=-1)
    return reduce_from_model_parallel_region(rows) if layout is Layout.SHARD_LAST else rows


def mean_over_shards(x: Tensor, layout: Layout = Layout.REPLICATED) -> Tensor:
    """Mean over the ranks of a local mean: [...] -> [...]. All-reduce forward, identity backward.

    Turns a mean over the rank's own heads (SHARD_HEADS) or own last dim (SHARD_LAST) into the mean
    over all of them. REPLICATED is returned as it is.
    """
    size = get_model_parallel_world_size()
    if layout is Layout.REPLICATED or size == 1:
        return x
    return reduce_from_model_parallel_region(x) / size


def entropy(log_p: Tensor, layout: Layout = Layout.REPLICATED) -> Tensor:
    """-sum p log p of finite log-probabilities, in nats: [..., v/p] -> [...]."""
    return -sum_last(log_p.exp() * log_p, layout)


def top_k(x: Tensor, k: int, layout: Layout = Layout.REPLICATED) -> tuple[Tensor, Tensor]:
    """The k largest over the whole last dim, descending, without gradient.

    [..., v/p] -> values [..., k] in x's dtype and their indices in the whole dim [..., k], the same
    on every rank. k beyond v gives all v. SHARD_LAST gathers k candidates of each rank.
    """
    x = x.detach()
    values, indices = x.topk(min(k, x.size(-1)), dim=-1)
    if not _crosses_ranks(layout):
        return values, indices
    first = get_model_parallel_rank() * x.size(-1)
    values = gather_from_model_parallel_region(values)
    indices = gather_from_model_parallel_region(indices + first)
    values, best = values.topk(min(k, values.size(-1)), dim=-1)
    return values, indices.gather(-1, best)


def top_k_threshold(x: Tensor, k: int, layout: Layout = Layout.REPLICATED) -> Tensor:
    """The k-th largest over the whole last dim: [..., v/p] -> [..., 1], without gradient.

    `x >= top_k_threshold(x, k, layout)` marks the k largest, and ties with the last of them.
    """
    return top_k(x, k, layout)[0][..., -1:]


def take_last(x: Tensor, indices: Tensor, layout: Layout = Layout.REPLICATED) -> Tensor:
    """Entries of the whole last dim by global index: [..., v/p], [..., k] -> [..., k], fp32.

    `torch.gather` over shards: the owner's value, replicated by an all-reduce (identity backward;
    what follows must be the same on all ranks).
    """
    if not _crosses_ranks(layout):
        return x.float().gather(-1, indices)
    size = x.size(-1)
    local = indices - get_model_parallel_rank() * size
    mine = (local >= 0) & (local < size)
    values = x.float().gather(-1, local.clamp(0, size - 1))
    return reduce_from_model_parallel_region(values.where(mine, 0.0))
