"""ZeRO-3: the student's parameters are cut over the data-parallel ranks, gathered when used."""

from typing import Any

import torch
from torch import nn

import mpu
from model.glm import GLMModel


def partition(module: nn.Module, config: dict[str, Any], device: torch.device) -> None:
    """Cut the parameters of a module that is on the host: only parts stay on the device.

    Parameters are moved one by one, so that the device never holds all of them. In half precision
    they are rounded first, as in ZeRO 1 and 2. Buffers are moved whole.
    """
    from deepspeed.runtime.zero import Init, register_external_parameter

    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if config.get(name, {}).get("enabled"):
            module.to(dtype)
    for buffer in module.buffers():
        buffer.data = buffer.data.to(device)
    for part in module.modules():
        if isinstance(part, GLMModel):
            register_external_parameter(part.vocabulary, part.word_embeddings.weight)
    group = mpu.get_data_parallel_group()
    Init(module=module, data_parallel_group=group, config_dict_or_path=config, mpu=mpu)
