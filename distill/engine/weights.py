"""The weights of a module, whole: also where ZeRO-3 has given every process a part of each.

DeepSpeed gathers a module's parameters around its forward and backward. At all other times a
partitioned parameter is an empty tensor that knows its shape. What is here reads and writes it
whole, one parameter at a time, so that the device never holds more than one. Everything is
collective: all data-parallel ranks call it, in the same order. Tensors that are not partitioned
pass through, so that callers need not ask.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mpu
from distill.engine import files
from distill.engine.shards import Shards

MODEL_FILE = "mp_rank_{:02d}_model_states.pt"


def is_partitioned(tensor: Tensor) -> bool:
    """Whether the data-parallel ranks hold parts of this parameter."""
    return hasattr(tensor, "ds_id")


def whole_shape(tensor: Tensor) -> torch.Size:
    """The shape when gathered."""
    return torch.Size(tensor.ds_shape) if is_partitioned(tensor) else tensor.shape


@contextlib.contextmanager
def gathered(tensor: Tensor, *, write: bool = False) -> Iterator[Tensor]:
    """The whole tensor. All-gather; with `write`, what rank 0 has put in is sent to all ranks."""
    if not is_partitioned(tensor):
        yield tensor
        return
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters([tensor], modifier_rank=0 if write else None):
        yield tensor


def whole_weights(module: nn.Module, *, everywhere: bool = False) -> dict[str, Tensor]:
    """The state dict, whole, copied to the CPU: of data-parallel rank 0; others have {}.

    `everywhere`: of every rank.
    """
    keep, weights = everywhere or mpu.get_data_parallel_rank() == 0, {}
    for name, value in module.state_dict(keep_vars=True).items():
        with gathered(value):
            if keep:
                weights[name] = value.detach().to("cpu", copy=True)
    return weights


@torch.no_grad()
def fill(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """`load_state_dict` of weights that are known to fit; a tensor of the module's own stays."""
    own = module.state_dict(keep_vars=True)
    if not any(map(is_partitioned, own.values())):
        module.load_state_dict(weights)
        return
    assert own.keys() == weights.keys(), own.keys() ^ weights.keys()
    for name, value in own.items():
        if weights[name] is value:
            continue
        with gathered(value, write=True):
            if not is_partitioned(value) or mpu.get_data_parallel_rank() == 0:
                value.copy_(weights[name])


@torch.no_grad()
def read_into(
    module: nn.Module, shards: Shards, found: Mapping[str, tuple[str, int | None]]
) -> None:
    """Put tensors of a checkpoint into a module, one by one: what `matching` has found.

    Keys of the module -> name in the checkpoint, and the number of first rows that it has; other
    tensors and rows stay. Of a partitioned parameter only data-parallel rank 0 reads.
    """
    rank, size = mpu.get_model_parallel_rank(), mpu.get_model_parallel_world_size()
    own = module.state_dict(keep_vars=True)
    for key, (name, rows) in found.items():
        with gathered(own[key], write=True) as whole:
            if not is_partitioned(whole) or mpu.get_data_parallel_rank() == 0:
                target = whole.detach()
                shards.copy(name, target if rows is None else target[:rows], rank, size)


def write_weights(folder: Path, module: nn.Module, client: dict[str, Any]) -> None:
    """The official file of this model-parallel rank, with `client` beside the weights."""
    weights = whole_weights(module)
    if mpu.get_data_parallel_rank() == 0:
        file = folder / MODEL_FILE.format(mpu.get_model_parallel_rank())
        files.write_tensors(file, {"module": weights, **client})
