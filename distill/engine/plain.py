"""The engine on plain PyTorch: DistributedDataParallel, optimizer, autocast, GradScaler."""

import contextlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mpu
from config import RunArgs
from distill.engine import files
from distill.engine.launch import Runtime
from distill.engine.optimizer import build_optimizer, set_lr
from distill.engine.resuming import kind_of
from distill.engine.weights import MODEL_FILE
from distill.engine.wrap import Engine, StepResult, given, poison_unless_finite, reach_all

OPTIMIZER_FILE = "mp_rank_{:02d}_optim_states.pt"


class PlainEngine(Engine):
    """One process, or several with the same weights and different samples."""

    def __init__(self, module: nn.Module, run: RunArgs, runtime: Runtime):
        self.kind = kind_of(run)
        self.device = runtime.device
        self.module = module.to(self.device)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(module, run.optim, self.device)
        self._accumulation = run.train.gradient_accumulation_steps
        self._clip = run.train.clip_grad
        self._dtype = (
            torch.float16
            if run.precision.fp16
            else torch.bfloat16
            if run.precision.bf16
            else torch.float32
        )
        self._scaler = _scaler(run, self.device)
        self._ddp = _data_parallel(module)
        self._one = torch.ones((), device=self.device)

    def __call__(
        self,
        *inputs: Tensor,
        output_rows: Tensor | None = None,
        hook: Any = None,
        hook_op: Any = None,
    ) -> Any:
        with self.autocast():
            return (self._ddp or self.module)(*inputs, **given(output_rows, hook, hook_op))

    def autocast(self) -> AbstractContextManager[Any]:
        if self._dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self._dtype)

    def micro_step(self, last: bool) -> AbstractContextManager[Any]:
        if self._ddp is None or last:
            return contextlib.nullcontext()
        return self._ddp.no_sync()

    def backward(self, loss: Tensor) -> None:
        loss = self._scaler.scale(poison_unless_finite(loss) / self._accumulation)
        if self._ddp is not None or not loss.requires_grad:
            loss = reach_all(loss, self.parameters)
        loss.backward()

    def step(self, lr: float) -> StepResult:
        """Clip and update on the device; whether it was applied is known there, not here."""
        for p in self.parameters:  # as in DeepSpeed: what had no part in the loss has gradient 0
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        set_lr(self.optimizer, lr)
        scale = self._scaler.scale(self._one)
        norm = mpu.grad_norm(self.parameters) / scale
        applied = torch.isfinite(norm)
        self._rescale(norm, applied)
        if self._scaler.is_enabled():
            self._scaler.step(self.optimizer)
            self._scaler.update()
        elif self.optimizer.defaults.get("fused"):
            self.optimizer.found_inf = (~applied).float()
            self.optimizer.step()
        elif bool(applied):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(applied, norm, scale)

    def _rescale(self, norm: Tensor, finite: Tensor) -> None:
        """Clip. A norm that is not finite makes all gradients NaN, on all model-parallel ranks,

        so that the loss scaler of each of them sees the overflow of any of them."""
        factor = torch.clamp(self._clip / (norm + 1e-6), max=1.0) if self._clip > 0 else self._one
        factor = torch.where(finite, factor, torch.nan)
        if self._clip > 0 or self._scaler.is_enabled():
            torch._foreach_mul_([p.grad for p in self.parameters], factor)

    def settle(self) -> None:
        pass  # nothing is ever under way

    def save(self, folder: Path, client: dict[str, Any]) -> None:
        """One file of weights and one of the optimizer for each model-parallel rank."""
        if mpu.get_data_parallel_rank() != 0:
            return
        rank = mpu.get_model_parallel_rank()
        content = {"module": self.module.state_dict(), **client}
        files.write_tensors(folder / MODEL_FILE.format(rank), content)
        content = {"optimizer": self.optimizer.state_dict(), "scaler": self._scaler.state_dict()}
        files.write_tensors(folder / OPTIMIZER_FILE.format(rank), content)

    def load(self, folder: Path) -> dict[str, Any]:
        """Everything must be there and fit: this is the run that `save` saw."""
        rank = mpu.get_model_parallel_rank()
        client = files.read_tensors(folder / MODEL_FILE.format(rank))
        self.module.load_state_dict(client.pop("module"))
        content = files.read_tensors(folder / OPTIMIZER_FILE.format(rank))
        self.optimizer.load_state_dict(content["optimizer"])
        self._scaler.load_state_dict(content["scaler"])
        return client


def _data_parallel(module: nn.Module) -> nn.parallel.DistributedDataParallel | None:
    if mpu.get_data_parallel_world_size() == 1:
        return None
    return nn.parallel.DistributedDataParallel(
        module,
        process_group=mpu.get_data_parallel_group(),
        forward_sync_buffers=False,
        gradient_as_bucket_view=True,
    )


def _scaler(run: RunArgs, device: torch.device) -> torch.amp.GradScaler:
    """Dynamic loss scale of fp16, or a constant one (--loss-scale)."""
    fixed = run.precision.loss_scale
    if fixed is None:
        return torch.amp.GradScaler(device.type, enabled=run.precision.fp16)
    never = 2**31 - 1
    return torch.amp.GradScaler(
        device.type,
        init_scale=fixed,
        growth_interval=never,
        backoff_factor=1.0 - 1e-7,
        enabled=run.precision.fp16,
    )
