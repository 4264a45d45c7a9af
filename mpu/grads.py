"""Gradient norm and clipping when some parameters are sharded and some replicated."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .initialize import (
    get_model_parallel_group,
    get_model_parallel_rank,
    get_model_parallel_world_size,
)
from .layout import partition_of
from .mappings import all_reduced


def grad_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """L2 norm of all gradients of the whole model -> [] fp32, the same bits on every rank.

    Shards are summed over the model-parallel group; replicated parameters are counted once, on its
    rank 0. Parameters without a gradient do not count. Gradients must already be averaged over the
    data-parallel ranks.
    """
    parameters = list(parameters)
    with_grad = [p for p in parameters if p.grad is not None]
    size, rank = get_model_parallel_world_size(), get_model_parallel_rank()
    if size == 1:
        counted = with_grad
    else:
        counted = [p for p in with_grad if rank == 0 or partition_of(p) is not None]
    if counted:
        norm = nn.utils.get_total_norm([p.grad for p in counted]).float()
    else:
        norm = torch.zeros((), device=parameters[0].device if parameters else None)
    if size == 1:
        return norm
    return all_reduced(norm.square(), get_model_parallel_group()).sqrt()


def clip_grads(parameters: Iterable[nn.Parameter], max_norm: float, norm: Tensor) -> None:
    """Scale all gradients, in place, by min(1, max_norm / (norm + 1e-6)); `norm` from grad_norm."""
    nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
