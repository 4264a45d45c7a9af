"""One interface over plain PyTorch and DeepSpeed: all that the loop knows of them.

    with engine.micro_step(last):              for every micro-batch of an optimizer step
        loss = ... engine(*inputs) ...
        engine.backward(loss)
    result = engine.step(lr)

`backward` divides by the number of accumulated micro-batches, gradients are averaged over the
data-parallel ranks, so the step descends the mean of all losses. A loss or gradient that is NaN or
infinite anywhere skips the step everywhere: weights, moments and step counts stay as they are.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from config import RunArgs
from distill.engine.launch import Runtime


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step did. Tensors stay on the device until somebody reads them."""

    applied: Tensor  # [] bool: False if the update was skipped
    grad_norm: Tensor  # [] before clipping
    loss_scale: Tensor  # [] of fp16; 1 otherwise


class Engine(ABC):
    """A module with its optimizer."""

    module: nn.Module
    device: torch.device
    kind: str  # "plain", "deepspeed stage 1": who can resume whose checkpoints

    @abstractmethod
    def __call__(
        self,
        *inputs: Tensor,
        output_rows: Tensor | None = None,
        hook: Any = None,
        hook_op: Any = None,
    ) -> Any:
        """Forward of the module in the run's precision. Captures, if asked for, are outputs.

        Keywords are passed on only where they are given, so that any module can be trained.
        """

    @abstractmethod
    def autocast(self) -> AbstractContextManager[Any]:
        """The run's precision, for calling `module` directly (evaluation)."""

    @abstractmethod
    def micro_step(self, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of one micro-batch; `last` of the optimizer step or not."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the gradient of loss [] / accumulation; once a micro-step."""

    @abstractmethod
    def step(self, lr: float) -> StepResult:
        """Clip, update with this rate unless something is not finite, and clear the gradients."""

    @abstractmethod
    def settle(self) -> None:
        """Before weights are read or written outside of a forward: nothing is under way.

        ZeRO-3 fetches parameters that the next module of a training step would need; after an
        evaluation none comes. Collective.
        """

    @abstractmethod
    def save(self, folder: Path, client: dict[str, Any]) -> None:
        """Write weights, optimizer and `client` into an existing folder; every process calls it."""

    @abstractmethod
    def load(self, folder: Path) -> dict[str, Any]:
        """Read what `save` wrote, bit for bit; returns `client` (and more)."""


def given(output_rows: Tensor | None, hook: Any, hook_op: Any) -> dict[str, Any]:
    """The keywords of a forward that were given."""
    options = {"output_rows": output_rows, "hook": hook, "hook_op": hook_op}
    return {name: value for name, value in options.items() if value is not None}


def poison_unless_finite(loss: Tensor) -> Tensor:
    """The loss; but if it is NaN or infinite, so will be every gradient, on every rank."""
    ok = torch.isfinite(loss.detach())
    return loss * torch.where(ok, 1.0, torch.nan)


class _ReachAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.num_parameters = len(parameters)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, *[None] * ctx.num_parameters


def reach_all(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """The loss, made to depend on every parameter, with no gradient for them.

    DistributedDataParallel waits for each parameter's turn in the backward pass. So its turn comes
    also where this batch does not use it, and where it is used outside the module's forward (a
    method's adapters); both would otherwise hang or fail.
    """
    return _ReachAll.apply(loss, *parameters)


def wrap(module: nn.Module, run: RunArgs, runtime: Runtime) -> Engine:
    """The engine that the run asks for, with `module` moved to the device."""
    if run.parallel.deepspeed:
        from distill.engine.deepspeed_engine import DeepSpeedEngine

        return DeepSpeedEngine(module, run, runtime)
    from distill.engine.plain import PlainEngine

    return PlainEngine(module, run, runtime)
