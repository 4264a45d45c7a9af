"""ZeRO-3: the student's parameters are cut over the data-parallel ranks, gathered when used.

A layer is cut as soon as it is built, so that no process ever holds all layers: not on its device,
and not in host memory, which its neighbours share.
"""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

import mpu
from config import RunArgs
from distill.engine.launch import Runtime
from model.glm import GLMModel


@contextlib.contextmanager
def cut_while_built(run: RunArgs, runtime: Runtime | None) -> Iterator[None]:
    """Inside, with ZeRO-3 each layer of a stack keeps this rank's part of its initial values.

    All data-parallel ranks build the same. From then on parameters are read and written by
    `distill.engine.weights`. Tables, heads and what methods add are cut by `partition`. Without a
    `runtime`, so without process groups, nothing is cut.
    """
    json = run.deepspeed if run.parallel.deepspeed else None
    if runtime is None or json is None or json["zero_optimization"]["stage"] != 3:
        yield
        return
    from distill.engine.deepspeed_engine import import_deepspeed

    import_deepspeed(runtime.device, runtime.local_rank)
    config = copy.deepcopy(json)

    def keep_part(parent: nn.Module, name: str, layer: nn.Module | None) -> None:
        if isinstance(parent, nn.ModuleList) and layer is not None:
            _round(layer, config)
            _cut(layer, config)

    handle = register_module_module_registration_hook(keep_part)
    try:
        yield
    finally:
        handle.remove()


def partition(module: nn.Module, config: dict[str, Any], device: torch.device) -> None:
    """Cut the parameters of a module that are whole: only parts stay on the device.

    Parameters are moved one by one, so that the device never holds all of them. In half precision
    they are rounded first, as in ZeRO 1 and 2. Buffers are moved whole.
    """
    from deepspeed.runtime.zero import register_external_parameter

    _round(module, config)
    for buffer in module.buffers():
        buffer.data = buffer.data.to(device)
    for part in module.modules():
        if isinstance(part, GLMModel):
            register_external_parameter(part.vocabulary, part.word_embeddings.weight)
    _cut(module, config)


def _round(module: nn.Module, config: dict[str, Any]) -> None:
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if config.get(name, {}).get("enabled"):
            module.to(dtype)


def _cut(module: nn.Module, config: dict[str, Any]) -> None:
    """Every parameter that is not cut yet, of data-parallel rank 0's values."""
    from deepspeed.runtime.zero import Init

    group = mpu.get_data_parallel_group()
    Init(module=module, data_parallel_group=group, config_dict_or_path=config, mpu=mpu)
