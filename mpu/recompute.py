"""Activation checkpointing: activations recomputed in the backward pass, and what is kept for it.

torch's non-reentrant kind. Both random streams are replayed, so that gradients are those without it
bit for bit. The kinds that run the forward without a graph (Megatron's, DeepSpeed's) lose the
gradient of what is captured inside, and empty the block's own input when they cut it; this one
keeps a copy of its own and leaves the tensors of others alone.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint as _torch_checkpoint

from .initialize import (
    get_model_parallel_group,
    get_model_parallel_rank,
    get_model_parallel_world_size,
)
from .random import RNGTracker, get_rng_tracker


class _Replay:
    """Context of a recomputation: the tracker as it was at the forward, then as it is now.

    An object, not a generator: one graph may be recomputed several times (retain_graph).
    """

    def __init__(self, tracker: RNGTracker):
        self._tracker = tracker
        self._at_forward = tracker.get_states()
        self._now: tuple[Tensor, ...] = ()

    def __enter__(self) -> None:
        self._now = self._tracker.get_states()
        self._tracker.set_states(self._at_forward)

    def __exit__(self, *_: object) -> None:
        self._tracker.set_states(self._now)


@dataclass(frozen=True)
class Keep:
    """Where the inputs of a recomputed function stay until the backward pass.

    Only those with a gradient: they belong to one call, while masks are shared by all.
    """

    partition: bool = False  # each model-parallel rank keeps 1/p; inputs are equal on all ranks
    on_cpu: bool = False  # in host memory, pinned where the device is a GPU


def checkpoint(function: Callable[..., Any], *args: Any, keep: Keep | None = None) -> Any:
    """Activation checkpointing: `function(*args)`, its activations recomputed in backward.

    Tensors captured inside may be returned and keep their gradient, and parameters and captures get
    it whichever way they are used. `function` runs twice; it must return what it captures and have
    no other side effect. With `keep.partition` the recomputation begins with an all-gather.
    """
    if keep in (None, Keep()) or not torch.is_grad_enabled():
        return _checkpoint(function, *args)
    now = list(args)
    kept = [_Kept(x, keep) if _is_kept(x) else x for x in args]

    def run(_: Tensor) -> Any:
        inputs = now or [x.restored() if isinstance(x, _Kept) else x for x in kept]
        return function(*inputs)

    device = next((x for x in args if isinstance(x, Tensor)), torch.empty(0))
    outputs = _checkpoint(run, device.new_empty(0))  # tells torch whose random state to keep
    now.clear()
    return outputs


def _checkpoint(function: Callable[..., Any], *args: Any) -> Any:
    tracker = get_rng_tracker()
    return _torch_checkpoint(
        function,
        *args,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), _Replay(tracker)),
    )


def _is_kept(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


class _Kept:
    """A tensor as it is kept: a flat slice of it, or all; on its device or on the host."""

    def __init__(self, x: Tensor, keep: Keep):
        self._shape, self._device = x.shape, x.device
        self._ranks = get_model_parallel_world_size() if keep.partition else 1
        part = x.detach()
        if self._ranks > 1:
            flat = part.reshape(-1)
            flat = F.pad(flat, (0, -flat.numel() % self._ranks))
            part = flat.chunk(self._ranks)[get_model_parallel_rank()].clone()
        self._part = _to_host(part) if keep.on_cpu else part

    def restored(self) -> Tensor:
        """The whole tensor again, with a gradient."""
        with torch.no_grad():
            part = self._part.to(self._device, non_blocking=True)
            if self._ranks > 1:
                flat = part.new_empty(part.numel() * self._ranks)
                dist.all_gather_into_tensor(flat, part, group=get_model_parallel_group())
                part = flat[: self._shape.numel()]
        return part.view(self._shape).requires_grad_()


def _to_host(x: Tensor) -> Tensor:
    if x.device.type == "cpu":
        return x
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)
