"""Frozen teachers cut over the data-parallel ranks: --teacher_zero_stage=3.

DeepSpeed's ZeRO-3 without an optimizer: each rank holds a part of every parameter; around a layer's
forward they are gathered, and let go after it. Captures are activations, so they are as ever.
Every data-parallel rank must run its forward when the others do: what is drawn about teachers is
equal on all ranks, and every rank has as many micro-batches.
"""

from typing import Any

import torch
from torch import nn

import mpu
from distill.engine.deepspeed_engine import import_deepspeed
from model.glm import GLMModel


class Partitioner:
    """Cuts a model's parameters one after the other, as they are loaded; then wraps the model."""

    def __init__(self, dtype: torch.dtype, device: torch.device, micro_batch: int):
        self._device, self._config = device, _config(dtype, micro_batch)
        self._deepspeed = import_deepspeed(device)

    def cut(self, parameter: nn.Parameter) -> None:
        """Keep this rank's part. Broadcast from data-parallel rank 0."""
        group = mpu.get_data_parallel_group()
        holder = nn.ParameterList([parameter])
        self._deepspeed.zero.Init(
            module=holder, data_parallel_group=group, config_dict_or_path=self._config, mpu=mpu
        )

    def wrap(self, module: nn.Module) -> nn.Module:
        """What is called in place of the module. Parameters that are not cut yet are cut."""
        for part in module.modules():
            for buffer in part.buffers(recurse=False):
                buffer.data = buffer.data.to(self._device)
            if isinstance(part, GLMModel):
                table = part.word_embeddings.weight
                self._deepspeed.zero.register_external_parameter(part.vocabulary, table)
        module.requires_grad_(False).eval()
        engine, *_ = self._deepspeed.initialize(
            model=module, config=self._config, mpu=mpu, dist_init_required=False
        )
        return engine


def _config(dtype: torch.dtype, micro_batch: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "steps_per_print": 10**9,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    }
