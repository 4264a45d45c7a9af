"""Turn a checkpoint of p model-parallel ranks into one of q, tensor by tensor.

Everything that can be wrong is looked for before a file is written: shards that are missing or of
other checkpoints, names whose partition is not known, sizes that q does not divide. The new run
folder is prepared under a hidden name and put in place at the end, so there is a whole one or none.

    <out>/latest_checkpointed_iteration.txt, best_checkpointed_iteration.txt    as they were
    <out>/<tag>/mp_rank_XX_model_states.pt (or .safetensors)     weights, iteration, train state
    <out>/<tag>/config.json, <out>/config.json, <out>/vocab.txt  as they were, but for the shards

Optimizer states are left out: they are cut in another way by every engine.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config import ConfigError
from config.saved import FILE as CONFIG_FILE
from config.saved import TRACKER, VOCABULARY
from distill.engine import files
from distill.engine.checkpoint import BEST_TRACKER, resolve
from distill.engine.shards import Shards
from distill.engine.tensor_files import Planned, SafetensorsFile, TorchFile
from model.partition import spell

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FORMATS = {"torch": TorchFile, "safetensors": SafetensorsFile}
#: Entries of a file that stay as they are; others, as the optimizer, become None.
KEPT = frozenset(
    ("lr_scheduler", "skipped_steps", "global_steps", "global_samples", "dp_world_size")
    + ("iteration", "client_lr_scheduler", "np_rng_state", "random_rng_state", "torch_rng_state")
    + ("cuda_rng_state", "rng_tracker_states", "important_nonparameters", "train_state")
)
ROOM = 2**20  # bytes besides the tensors that the disk must have


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a checkpoint is turned into."""

    size: int  # model-parallel ranks
    dtype: str | None = None  # of floating-point tensors: a key of DTYPES; None: as they are
    to: str = "torch"  # a key of FORMATS

    def dtype_of(self, tensor: Tensor) -> torch.dtype:
        """The type that a tensor gets."""
        changes = self.dtype is not None and tensor.is_floating_point()
        return DTYPES[self.dtype] if changes else tensor.dtype


def change_model_parallel(
    path: str | Path,
    target: Target,
    out: str | Path | None = None,
    *,
    take_first: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write the checkpoint of `path` as `target`; returns the new run folder.

    `path`: a run folder, whose trackers name what is converted, or the folder of one tag. `out`:
    by default PATH_MP{size}. `take_first`: of tensors that ought to be the same on every rank,
    take the first shard's. ValueError, FileNotFoundError: nothing has been written.
    """
    path = Path(str(path).rstrip("/"))
    if target.size < 1:
        raise ConfigError(f"{target.size}: the model-parallel size must be positive")
    out = Path(out) if out is not None else path.with_name(f"{path.name}_MP{target.size}")
    _check_place(path, out, overwrite)
    folder, trackers = _tags(path)
    sources = {}
    for tag in dict.fromkeys(trackers.values()):
        shards = Shards(_existing(folder, tag), what="PATH")
        shards.check_cut(target.size)
        if not take_first:
            _check_equal(shards)
        sources[tag] = shards
    _check_space(out, sources.values(), target)
    temporary = files.temporary_folder(out)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for tag, shards in sources.items():
            _write_tag(temporary / tag, shards, target)
        _write_run(temporary, folder, trackers, target)
        files.install_folder(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _tags(path: Path) -> tuple[Path, dict[str, str]]:
    """(folder of the run, tracker file -> tag); a tag's own folder gives one of that tag."""
    folder, tag = resolve(path, what="PATH")
    if not (path / TRACKER).is_file():
        return folder, {TRACKER: tag}
    trackers = {TRACKER: tag}
    if (path / BEST_TRACKER).is_file():
        trackers[BEST_TRACKER] = resolve(path, what="PATH", prefer_best=True)[1]
    return folder, trackers


def _existing(folder: Path, tag: str) -> Path:
    found = files.existing_folder(folder / tag)
    assert found is not None, (folder, tag)
    return found


def _check_place(path: Path, out: Path, overwrite: bool) -> None:
    if path.resolve() in (out.resolve(), *out.resolve().parents):
        raise ConfigError(f"--out={out}: is {path} itself or inside it; give another folder")
    if out.resolve() in path.resolve().parents:
        raise ConfigError(f"--out={out}: contains {path}; give another folder")
    if out.exists() and not overwrite:
        raise ConfigError(
            f"--out={out}: exists already; give another folder, or --overwrite to replace it"
        )


def _check_equal(shards: Shards) -> None:
    try:
        shards.check_equal(shards.names)
    except ValueError as error:
        raise ValueError(f"{error}; --take_first takes those of the first shard") from error


def _check_space(out: Path, sources: Any, target: Target) -> None:
    needed = ROOM
    for shards in sources:
        for name in shards.names:
            tensor, cut = shards.shapes(name), shards.partitions[name] is not None
            copies = shards.size if cut else target.size
            needed += tensor.numel() * target.dtype_of(tensor).itemsize * copies
    above = next(folder for folder in out.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(above).free
    if free < needed:
        raise OSError(
            f"--out={out}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free there"
        )


# Writing ------------------------------------------------------------------------------------------


def _write_tag(folder: Path, shards: Shards, target: Target) -> None:
    """The files of all ranks, tensor by tensor."""
    folder.mkdir(parents=True)
    entries = _entries(shards, target)
    opened = [
        FORMATS[target.to](_file(folder, rank, target), _plans(shards, target), entries)
        for rank in range(target.size)
    ]
    try:
        for name in shards.names:
            for rank, file in enumerate(opened):
                file.write(name, partial(_blocks, shards, name, rank, target))
        for file in opened:
            file.close()
    finally:
        for file in opened:
            file.abandon()
    if shards.config:
        files.write_json(folder / CONFIG_FILE, _config(shards.config, target, shards))


def _file(folder: Path, rank: int, target: Target) -> Path:
    return folder / f"mp_rank_{rank:02d}_model_states{FORMATS[target.to].suffix}"


def _plans(shards: Shards, target: Target) -> dict[str, Planned]:
    """What each rank's file holds. Names of one tensor in the source get one `Planned`."""
    plans: dict[Any, Planned] = {}
    found = {}
    for name in shards.names:
        tensor, shape = shards.shapes(name), shards.shape(name, target.size)
        same = (tensor.data_ptr(), tensor.stride(), shape, tensor.dtype)
        alone = tensor.numel() == 0
        plan = Planned(shape, target.dtype_of(tensor))
        found[name] = plan if alone else plans.setdefault(same, plan)
    return found


def _blocks(shards: Shards, name: str, rank: int, target: Target) -> Iterator[Tensor]:
    """The blocks of a rank's tensor, in their new type."""
    dtype = target.dtype_of(shards.shapes(name))
    return (_converted(name, block, dtype) for block in shards.blocks(name, rank, target.size))


def _converted(name: str, chunk: Tensor, dtype: torch.dtype) -> Tensor:
    """ValueError if a finite number is too large for the new type."""
    if chunk.dtype == dtype:
        return chunk
    new = chunk.to(dtype)
    if bool((torch.isinf(new) & ~torch.isinf(chunk)).any()):
        raise ValueError(
            f"{name}: holds numbers up to {float(chunk.abs().max()):.3g}, too large for --dtype="
            f"{next(key for key, value in DTYPES.items() if value is dtype)}; use bf16 or fp32"
        )
    return new


def _entries(shards: Shards, target: Target) -> dict[str, Any]:
    """What a file holds besides the weights."""
    found: dict[str, Any] = {}
    for key, value in shards.entries.items():
        can = _is_json(value) if target.to == "safetensors" else _is_plain(value)
        found[key] = value if key in KEPT and can else None
        if key in KEPT and not can:
            log.info("%s: %s is left out, it holds more than numbers", shards.where, key)
    return found | {"mp_world_size": target.size}


def _is_plain(value: Any) -> bool:
    """Numbers, text and tensors, in lists and dicts."""
    if isinstance(value, dict):
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str, bytes, Tensor)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _config(content: dict[str, Any], target: Target, shards: Shards | None = None) -> dict:
    changed = content | {"model_parallel_size": target.size}
    if shards is not None:
        known = [name for name in shards.names if name not in shards.unknown]
        partition = {name: spell(shards.partitions[name]) for name in known}
        changed |= {"resumable": False, "partition": partition}
    return changed


def _write_run(out: Path, folder: Path, trackers: dict[str, str], target: Target) -> None:
    """What lies beside the tags."""
    file = folder / CONFIG_FILE
    if file.is_file():
        content = json.loads(file.read_text(encoding="utf-8"))
        files.write_json(out / CONFIG_FILE, _config(content, target))
    if (folder / VOCABULARY).is_file():
        shutil.copyfile(folder / VOCABULARY, out / VOCABULARY)
    for tracker, tag in trackers.items():
        files.write_text(out / tracker, tag + "\n")
