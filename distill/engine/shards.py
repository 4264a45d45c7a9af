"""The shards of a checkpoint, read tensor by tensor: nothing of it is in memory before it is asked.

    shards = Shards(folder, what="--load-pretrained")
    for name in shards.names:
        for block in shards.blocks(name, rank, size):    rows of what that rank of `size` has
            ...

How a tensor is cut says config.json (`partition`: what each parameter carried when it was saved),
else the table of names. Files are mapped anew after every `AT_ONCE` bytes, so that what was read
does not stay in memory. A file of a format before PyTorch 1.6 cannot be mapped: it is read whole.
"""

import json
import logging
import re
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config.saved import FILE as CONFIG_FILE
from distill.engine import files
from distill.engine.saved_maps import with_tables
from model import partition as table
from mpu import Partition, pieces

log = logging.getLogger(__name__)

SHARD = re.compile(r"mp_rank_(\d+)_model_states\.(pt|safetensors)")
BLOCK = 16 * 2**20  # bytes that are handed out at once, or one row
AT_ONCE = 32 * 2**20  # bytes that are read before the files are mapped anew
#: Entries of a file that tell when it was written: equal in all shards of one checkpoint.
WHEN = ("iteration", "global_steps", "global_samples")
LIVE = re.compile(r"student\.teacher_model_\d+\.")
OWN = "student."  # what a method adds is whole on every rank, unless config.json says otherwise


class Shards:
    """All shards of one checkpoint. ValueError, FileNotFoundError: they are not of one piece."""

    def __init__(self, folder: Path, *, what: str = "checkpoint"):
        self.folder, self.where = folder, f"{what}={folder}"
        self.paths = shard_files(folder, what=what)
        self.config = _config(folder)
        self.mapped = all(map(_can_be_mapped, self.paths))
        if not self.mapped:
            log.warning("%s: an old file format; it is read whole, not in parts", self.where)
        self._contents = [_open(path) for path in self.paths]
        self._bytes = 0
        self.names = self._common_names()
        self._check_alike()
        self.unknown: dict[str, str] = {}  # name whose partition nobody tells -> the message
        self.partitions = self._partitions()

    @property
    def size(self) -> int:
        """The model-parallel size."""
        return len(self.paths)

    @property
    def entries(self) -> dict[str, Any]:
        """What the first shard holds beside the weights."""
        return {key: value for key, value in self._contents[0].items() if key != "module"}

    def blocks(self, name: str, rank: int, size: int) -> Iterator[Tensor]:
        """What rank `rank` of `size` has of a tensor: blocks of its rows, one after the other.

        Let go of a block before the next one.
        """
        parts = self._parts(name, rank, size)
        if parts[0].dim() == 0:
            yield parts[0]
            return
        across = len(parts) > 1 and self.partitions[name].dim > 0  # every row is in all parts
        rows = [len(part) for part in (parts[:1] if across else parts)]
        row_bytes = sum(part[:1].nbytes for part in (parts if across else parts[:1]))
        step = max(1, BLOCK // max(row_bytes, 1))
        del parts
        for number, length in enumerate(rows):
            for first in range(0, length, step):
                parts = self._parts(name, rank, size)
                chosen = parts if across else parts[number : number + 1]
                block = [part[first : first + step] for part in chosen]
                self._bytes += sum(part.nbytes for part in block)
                yield torch.cat(block, self.partitions[name].dim) if across else block[0]
                del parts, chosen, block

    def _parts(self, name: str, rank: int, size: int) -> list[Tensor]:
        """Views of what is joined to the tensor of a rank: its own, where the sizes are equal."""
        tensors = self._tensors(name)
        return (
            [tensors[rank]]
            if size == self.size
            else pieces(tensors, self.partitions[name], rank, size)
        )

    def _tensors(self, name: str) -> list[Tensor]:
        """One tensor of every shard, in rank order; the files are mapped anew now and then."""
        if self.mapped and self._bytes >= AT_ONCE:
            self._contents.clear()
            self._contents = [_open(path) for path in self.paths]
            self._bytes = 0
        return [content["module"][name] for content in self._contents]

    def shapes(self, name: str) -> Tensor:
        """The first shard's tensor, not to be read: its shape, type and place."""
        return self._contents[0]["module"][name]

    def shape(self, name: str, size: int) -> tuple[int, ...]:
        """A tensor's shape on each of `size` ranks. ValueError: `size` does not divide it, or how

        it is cut is not known."""
        if size == self.size:
            return tuple(self.shapes(name).shape)
        if name in self.unknown:
            raise ValueError(self.unknown[name])
        return _joined_shape(name, [self.shapes(name)] * self.size, self.partitions[name], size)

    def copy(self, name: str, target: Tensor, rank: int, size: int) -> None:
        """What rank `rank` of `size` has of a tensor, into one of its shape, any type and device.

        Nothing is held in memory but a block.
        """
        start = 0
        for block in self.blocks(name, rank, size):
            place = target[start : start + len(block)] if block.dim() else target
            place.copy_(block)
            start += len(block) if block.dim() else 0
            del block

    def check_equal(self, names: Iterable[str]) -> None:
        """ValueError naming the tensors that ought to be the same on every rank but are not."""
        different = []
        for name in names:
            whole = self.partitions[name] is None and name not in self.unknown
            if whole and self.size > 1:
                first, *others = self._tensors(name)
                self._bytes += first.nbytes * self.size
                if not all(_same_bits(first, other) for other in others):
                    different.append(name)
        if different:
            raise ValueError(
                f"{self.where}: {_listed(different)}: whole on every rank, but not the same in all "
                "shards; they are shards of different checkpoints, or drifted apart in training"
            )

    def check_cut(self, size: int) -> None:
        """ValueError naming every tensor that cannot be cut for `size` ranks."""
        problems = []
        for name in self.names:
            try:
                self.shape(name, size)
            except ValueError as error:
                problems.append(str(error))
        heads = self.config.get("model", {}).get("num_attention_heads", size)
        if heads % size:
            problems.append(f"{heads} attention heads cannot be cut into {size} equal shards")
        if problems:
            raise ValueError(_lines(self.where, problems))

    def _common_names(self) -> list[str]:
        names: list[str] = []
        for path, content in zip(self.paths, self._contents, strict=True):
            module = content.get("module")
            if not isinstance(module, dict) or not module:
                raise ValueError(f"{path} has no entry 'module' with the weights")
            other = [name for name, value in module.items() if not isinstance(value, Tensor)]
            if other:
                raise ValueError(f"{path}: {_listed(other)}: not a tensor")
            names = names or list(module)
            odd = set(names) ^ set(module)
            if odd:
                raise ValueError(
                    f"{path}: is of another model than {self.paths[0].name}: "
                    f"{_listed(sorted(odd))} is in one of them only"
                )
        return names

    def _check_alike(self) -> None:
        first = self._contents[0]
        for path, content in zip(self.paths, self._contents, strict=True):
            for key in WHEN:
                if content.get(key) != first.get(key):
                    raise ValueError(
                        f"{path}: is of {key} {content.get(key)}, {self.paths[0].name} of "
                        f"{first.get(key)}: shards of different checkpoints"
                    )
            told = content.get("mp_world_size", self.size)
            if told != self.size:
                raise ValueError(f"{path}: is one of {told} shards, but {self.size} are there")
            problems = [
                f"{name}: {list(value.shape)} {value.dtype}, in {self.paths[0].name} "
                f"{list(first['module'][name].shape)} {first['module'][name].dtype}"
                for name, value in content["module"].items()
                if (value.shape, value.dtype)
                != (first["module"][name].shape, first["module"][name].dtype)
            ]
            if problems:
                raise ValueError(_lines(str(path), problems))
        told = self.config.get("model_parallel_size", self.size)
        if told != self.size:
            raise ValueError(
                f"{self.where}: {CONFIG_FILE} tells of {told} shards, but {self.size} are there"
            )

    def _partitions(self) -> dict[str, Partition | None]:
        recorded = self.config.get("partition", {})
        found: dict[str, Partition | None] = {}
        for name in self.names:
            try:
                told = recorded.get(name)
                found[name] = _by_name(name) if told is None else table.read(told)
            except ValueError as error:
                found[name], self.unknown[name] = None, str(error)
        return found


def shard_files(folder: Path, *, what: str = "checkpoint") -> list[Path]:
    """The files of all ranks, in rank order. FileNotFoundError: none, or one is missing."""
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        match = SHARD.fullmatch(path.name)
        if match and int(match[1]) in found:
            raise ValueError(f"{what}={folder}: holds {found[int(match[1])].name} and {path.name}")
        if match:
            found[int(match[1])] = path
    if not found:
        raise FileNotFoundError(f"{what}={folder}: no file mp_rank_00_model_states.pt in it")
    missing = sorted(set(range(max(found) + 1)) - set(found))
    if missing:
        raise FileNotFoundError(
            f"{what}={folder}: the shard(s) {', '.join(map(str, missing))} of "
            f"{max(found) + 1} are missing"
        )
    return [found[rank] for rank in range(len(found))]


def _open(path: Path) -> dict[str, Any]:
    """{"module": tensors, ...}, memory-mapped."""
    if path.suffix != ".safetensors":
        return with_tables(files.read_tensors(path))
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            module = {name: file.get_tensor(name) for name in json.loads(told["names"])}
            return {"module": module} | json.loads(told["entries"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as a checkpoint ({error})") from error


def _can_be_mapped(path: Path) -> bool:
    return path.suffix == ".safetensors" or zipfile.is_zipfile(path)


def _config(folder: Path) -> dict[str, Any]:
    """The tag's own config.json; {} without."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: is not json ({error})") from error
    return content if isinstance(content, dict) else {}


def _joined_shape(
    name: str, shards: list[Tensor], partition: Partition | None, size: int
) -> tuple[int, ...]:
    try:
        parts = pieces(shards, partition, 0, size)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    shape = list(parts[0].shape)
    if partition is not None:
        shape[partition.dim] = sum(part.size(partition.dim) for part in parts)
    return tuple(shape)


def _by_name(name: str) -> Partition | None:
    live = LIVE.match(name)
    if live is None and name.startswith(OWN):
        return None
    bare = name.removeprefix(live[0] if live else "").removeprefix("model.")
    return table.partition_for(bare)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal, NaN included."""
    flat = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return torch.equal(*flat)


def _listed(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _lines(where: str, problems: list[str], most: int = 12) -> str:
    more = [f"... and {len(problems) - most} more"] if len(problems) > most else []
    return "\n  ".join([f"{where}:", *problems[:most], *more])
