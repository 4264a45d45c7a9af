"""Frozen models that are filled from a checkpoint tensor by tensor, on their device, in their type.

The model is built without memory (on PyTorch's meta device). Then each tensor is made where it
stays, and a checkpoint of any number of shards is read into it block by block, only what this rank
needs. So the host never holds a copy of the model, in whatever type it is saved.

What a checkpoint lacks (the classification head of a model that was not fine-tuned, the last rows
of a shorter position table) gets its initial value; then the model is once built whole as well.
"""

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import mpu
from distill.engine.checkpoint import tag_folder
from distill.engine.matching import matching
from distill.engine.shards import Shards

log = logging.getLogger(__name__)

Owners = dict[int, list[tuple[nn.Module, str]]]  # id of a tensor -> attributes that are it
Settle = Callable[[nn.Parameter], None]


@torch.no_grad()
def load_frozen(
    build: Callable[[], nn.Module],
    path: str | Path,
    *,
    what: str,
    part: str = "",
    dtype: torch.dtype,
    device: torch.device,
    settle: Settle | None = None,
) -> nn.Module:
    """The model that `build` makes, with a checkpoint's weights, in `dtype` on `device`.

    `settle` gets each parameter when it is complete, before the next one is made; then only
    data-parallel rank 0 reads the file. `what`, `part` and errors: as of `load_weights`.
    """
    folder = tag_folder(path, what=what, prefer_best=True)
    shards = Shards(folder, what=what)
    with torch.device("meta"):
        module = build()
    found = matching(shards, module, what=what, part=part)
    own = module.state_dict(keep_vars=True)
    whole = {key for key, (_, rows) in found.items() if rows is None}
    initial = _initial(build, what) if own.keys() - whole or _hidden(module) else {}
    rank, size = mpu.get_model_parallel_rank(), mpu.get_model_parallel_world_size()
    owners, reads = _owners(module), settle is None or mpu.get_data_parallel_rank() == 0
    for key, old in own.items():
        kind = dtype if old.is_floating_point() else old.dtype
        new = torch.empty(old.shape, dtype=kind, device=device)
        if key in initial and key not in whole:
            new.copy_(initial[key])
        if key in found and reads:
            name, rows = found[key]
            shards.copy(name, new if rows is None else new[:rows], rank, size)
        _put(owners[id(old)], old, new, settle)
    for key, buffer in _hidden(module).items():
        _put(owners[id(buffer)], buffer, initial[key].to(device), settle)
    log.info("%s: weights of %s%s", what, folder, f" ({part}*)" if part else "")
    return module.requires_grad_(False)


def _owners(module: nn.Module) -> Owners:
    found: Owners = {}
    for part in module.modules():
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is not None:
                found.setdefault(id(tensor), []).append((part, name))
    return found


def _put(owners: list[tuple[nn.Module, str]], old: Tensor, new: Tensor, settle: Settle | None):
    """Put a tensor in the place of one without memory. Shards are marked as they are assigned."""
    parameter = nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new
    for part, name in owners:
        setattr(part, name, parameter)
    if settle is not None and isinstance(parameter, nn.Parameter):
        settle(parameter)


def _hidden(module: nn.Module) -> dict[str, Tensor]:
    """Buffers that are not in checkpoints and have no memory yet."""
    saved = {id(tensor) for tensor in module.state_dict(keep_vars=True).values()}
    return {
        name: buffer
        for name, buffer in module.named_buffers()
        if id(buffer) not in saved and buffer.is_meta
    }


def _initial(build: Callable[[], nn.Module], what: str) -> dict[str, Tensor]:
    """Initial values: of the state dict's keys, and of buffers that it does not have."""
    log.info("%s: lacks a part of the model, which is built whole for it", what)
    module = build()
    return dict(module.named_buffers()) | module.state_dict()
