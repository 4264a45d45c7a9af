"""The engine on DeepSpeed: ZeRO 0, 1, 2, 3, its launcher's processes, its checkpoints.

The JSON that the run resolved is handed over as it is. AdamW is torch's, built here, so that every
engine computes the same update and nothing is compiled; only where optimizer states are offloaded
to the host beside a GPU does DeepSpeed build its own, which is made for that.
"""

import contextlib
import copy
import logging
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mpu
from config import ConfigError, RunArgs
from distill.engine import files
from distill.engine.launch import Runtime
from distill.engine.optimizer import build_optimizer, set_lr
from distill.engine.weights import write_weights
from distill.engine.wrap import Engine, StepResult, given, poison_unless_finite, reach_all
from distill.engine.zero3 import partition
from model.build import parameter_groups


class DeepSpeedEngine(Engine):
    """A module inside `deepspeed.initialize`."""

    def __init__(self, module: nn.Module, run: RunArgs, runtime: Runtime):
        deepspeed = import_deepspeed(runtime.device, runtime.local_rank)
        assert run.deepspeed is not None, "--deepspeed without its JSON"
        config = copy.deepcopy(run.deepspeed)
        zero = config.get("zero_optimization", {})
        self.stage = zero.get("stage", 0)
        self.kind = f"deepspeed stage {self.stage}"
        self.device = runtime.device
        self.module = module
        if self.stage == 3:
            partition(module, config, self.device)
        else:
            module.to(self.device)
        self._trainable = [p for p in module.parameters() if p.requires_grad]
        own = "offload_optimizer" in zero and runtime.device.type != "cpu"
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=None if own else build_optimizer(module, run.optim, self.device),
            model_parameters=parameter_groups(module, run.optim.weight_decay) if own else None,
            config=config,
            mpu=mpu,
            dist_init_required=False,
        )
        self._engine.checkpoint_engine = _safe_checkpoint_engine()
        scaler = getattr(self._engine.optimizer, "loss_scaler", None)
        if hasattr(scaler, "raise_error_at_min_scale"):
            scaler.raise_error_at_min_scale = False  # the loop ends a run, with a message
        low = run.precision.fp16 or run.precision.bf16
        if self.stage == 0 and low:
            self._undo_first_step()
        # Alone among the combinations, fp32 without ZeRO would step on a NaN.
        self._check_finite = self.stage == 0 and not low

    def __call__(
        self,
        *inputs: Tensor,
        output_rows: Tensor | None = None,
        hook: Any = None,
        hook_op: Any = None,
    ) -> Any:
        return self._engine(*inputs, **given(output_rows, hook, hook_op))

    def _undo_first_step(self) -> None:
        """DeepSpeed's optimizer without ZeRO takes a step with zero gradients when it is made.

        That decays the weights and counts as a step, so the first real ones would be too small.
        """
        self._engine.basic_optimizer.state.clear()
        self._engine.optimizer.refresh_fp32_params()

    def autocast(self) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()  # the weights themselves are in the run's precision

    def micro_step(self, last: bool) -> AbstractContextManager[Any]:
        self._engine.set_gradient_accumulation_boundary(last)
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss = poison_unless_finite(loss)
        self._engine.backward(loss if loss.requires_grad else reach_all(loss, self._trainable))

    def step(self, lr: float) -> StepResult:
        """DeepSpeed's step; not taken where it would go wrong on what is not finite."""
        set_lr(self._engine.basic_optimizer, lr)
        norm = mpu.grad_norm(self._trainable) if self._check_finite else None
        if norm is not None and not bool(torch.isfinite(norm)):
            self._engine.zero_grad()
            return self._result(False, norm)
        self._engine.step()
        if norm is None:
            norm = self._engine.get_global_grad_norm()
        return self._result(self._engine.was_step_applied(), norm)

    def _result(self, applied: bool, norm: Tensor | float | None) -> StepResult:
        if norm is None or not applied:
            norm = torch.nan if not applied else 0.0
        scale = getattr(self._engine.optimizer, "loss_scale", 1.0)
        return StepResult(
            torch.tensor(applied), torch.as_tensor(norm).detach().float(), torch.as_tensor(scale)
        )

    def settle(self) -> None:
        if self.stage == 3:
            self._engine.empty_partition_cache()

    def save(self, folder: Path, client: dict[str, Any]) -> None:
        self._engine.save_checkpoint(
            str(folder.parent), tag=folder.name, client_state=client, save_latest=False
        )
        if self.stage == 3:  # DeepSpeed's files hold parts; this one is anyone's
            write_weights(folder, self.module, client)

    def load(self, folder: Path) -> dict[str, Any]:
        """DeepSpeed's own files, read by `SafeCheckpointEngine`."""
        path, client = self._engine.load_checkpoint(str(folder.parent), tag=folder.name)
        if path is None:
            raise FileNotFoundError(f"{folder}: holds no checkpoint of DeepSpeed")
        return client


def check_zero(run: RunArgs, runtime: Runtime) -> None:
    """ConfigError for keys and values of `zero_optimization` that DeepSpeed does not take."""
    if not run.parallel.deepspeed or run.deepspeed is None:
        return
    import_deepspeed(runtime.device, runtime.local_rank)
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    try:
        DeepSpeedZeroConfig(**run.deepspeed["zero_optimization"])
    except ValidationError as error:
        where = f"--deepspeed_config={run.parallel.deepspeed_config}: zero_optimization"
        raise ConfigError(
            f"{where}.{'.'.join(map(str, wrong['loc']))}={wrong['input']!r}: DeepSpeed: "
            f"{wrong['msg']}; change it or leave it out"
            for wrong in error.errors()
        ) from error


def import_deepspeed(device: torch.device, local_rank: int = 0) -> Any:
    """The package, quiet, and kept from compiling an operator that gloo does not need."""
    os.environ.setdefault("LOCAL_RANK", str(local_rank))  # plain python sets none
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ImportError as error:
        raise ConfigError(
            f"--deepspeed: the package cannot be imported ({error}); pip install deepspeed, "
            "or leave the flag out to train with plain PyTorch"
        ) from error
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if device.type == "cpu":
        # Its first process group would build this for a minute, and hang after a killed build.
        table = getattr(deepspeed.ops, "__compatible_ops__", None)
        if isinstance(table, dict):
            table["deepspeed_shm_comm"] = False
    return deepspeed


def _safe_checkpoint_engine() -> Any:
    """DeepSpeed's way to files: synced when written, only known classes when read."""
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    known = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]

    class SafeCheckpointEngine(TorchCheckpointEngine):
        """`weights_only` with the few classes that a ZeRO optimizer saves."""

        def save(self, state_dict: dict[str, Any], path: str) -> None:
            files.write_tensors(Path(path), state_dict)

        def load(self, path: str, map_location: Any = None) -> Any:
            with torch.serialization.safe_globals(known):
                return torch.load(path, map_location=map_location, weights_only=True)

    return SafeCheckpointEngine()
