"""Files of tensors that are written one tensor at a time: whatever their size, memory stays small.

    file = TorchFile(path, {"module": {"weight": Planned((4, 8), torch.float32)}, "iteration": 7})
    file.write("weight", chunks)                 chunks: tensors that follow each other in memory
    file.close()

`TorchFile` writes what `torch.save` writes and `torch.load` reads, memory-mapped or not: a zip
archive whose `data.pkl` has everything but the numbers, and one stored record of numbers for each
tensor, at a multiple of 64 bytes. `SafetensorsFile` writes the safetensors format. Both are for
temporary names: they are whole only after `close`.
"""

import io
import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

Chunks = Callable[[], Iterator[Tensor]]
ALIGNMENT = 64  # bytes; of every record, so that it can be used where it is mapped
_LOCAL_HEADER, _ZIP64_EXTRA, _EXTRA_HEADER = 30, 20, 4  # bytes, of the zip format
_PADDING = b"FB"  # the name that torch gives to the extra field with which it aligns
_STORAGES = {
    torch.float32: torch.FloatStorage,
    torch.float64: torch.DoubleStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.int64: torch.LongStorage,
    torch.int32: torch.IntStorage,
    torch.int16: torch.ShortStorage,
    torch.int8: torch.CharStorage,
    torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
}
_SAFETENSORS = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Planned(NamedTuple):
    """A tensor that is going to be written."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Entries."""
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.numel * self.dtype.itemsize

    def stride(self) -> tuple[int, ...]:
        """Entries from one index to the next, of each dimension, without gaps."""
        steps = [1]
        for length in reversed(self.shape[1:]):
            steps.append(steps[-1] * max(length, 1))
        return tuple(reversed(steps)) if self.shape else ()


class TorchFile:
    """A file of `torch.save`. `plans` are the tensors of `content["module"]`.

    Names with one and the same `Planned` object are one tensor in the file, as they were in memory.
    Other entries are plain values and tensors, which are written at once.
    """

    suffix = ".pt"

    def __init__(self, path: Path, plans: Mapping[str, Planned], entries: Mapping[str, Any]):
        self._file = path.open("wb")
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED, allowZip64=True)
        pickled = io.BytesIO()
        pickler = _Pickler(pickled)
        pickler.dump({"module": OrderedDict(plans), **entries})
        self._plans, self._keys = plans, pickler.keys
        self._written: set[int] = set()
        self._record("data.pkl", [pickled.getvalue()], pickled.tell())
        self._record("byteorder", [b"little"], len(b"little"))
        for key, tensor in pickler.tensors:
            self._tensor(key, lambda tensor=tensor: iter((tensor,)), tensor.nbytes)

    def write(self, name: str, chunks: Chunks) -> None:
        """The numbers of a tensor of `plans`, unless it was written under another name."""
        plan = self._plans[name]
        if id(plan) not in self._written:
            self._written.add(id(plan))
            self._tensor(self._keys[id(plan)], chunks, plan.nbytes)

    def close(self) -> None:
        """Complete the file."""
        missing = [name for name, plan in self._plans.items() if id(plan) not in self._written]
        assert not missing, missing
        self._record("version", [b"3\n"], len(b"3\n"))
        self.abandon()

    def abandon(self) -> None:
        """Let go of the file, whole or not."""
        self._zip.close()
        self._file.close()

    def _tensor(self, key: str, chunks: Chunks, size: int) -> None:
        self._record(f"data/{key}", map(_bytes_of, chunks()), size)

    def _record(self, name: str, parts: Any, size: int) -> None:
        info = zipfile.ZipInfo(f"archive/{name}")
        large = size >= zipfile.ZIP64_LIMIT
        header = _LOCAL_HEADER + len(info.filename) + _EXTRA_HEADER + large * _ZIP64_EXTRA
        padding = -(self._file.tell() + header) % ALIGNMENT
        info.extra = _PADDING + padding.to_bytes(2, "little") + b"Z" * padding
        info.file_size = size
        with self._zip.open(info, "w", force_zip64=large) as record:
            written = sum(map(record.write, parts))  # keeps no part while the next is read
        assert written == size, (name, written, size)


class SafetensorsFile:
    """A safetensors file. Entries that are no tensors go to its metadata, as json."""

    suffix = ".safetensors"

    def __init__(self, path: Path, plans: Mapping[str, Planned], entries: Mapping[str, Any]):
        told = {"format": "pt", "names": json.dumps(list(plans)), "entries": json.dumps(entries)}
        header: dict[str, Any] = {"__metadata__": told}
        end = 0
        for name, plan in plans.items():
            header[name] = {
                "dtype": _SAFETENSORS[plan.dtype],
                "shape": list(plan.shape),
                "data_offsets": [end, end := end + plan.nbytes],
            }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._plans, self._left = plans, list(plans)
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, chunks: Chunks) -> None:
        """The numbers of the next tensor of `plans`."""
        assert self._left.pop(0) == name, name
        written = sum(map(self._file.write, map(_bytes_of, chunks())))
        assert written == self._plans[name].nbytes, (name, written)

    def close(self) -> None:
        """Complete the file."""
        assert not self._left, self._left
        self.abandon()

    def abandon(self) -> None:
        """Let go of the file, whole or not."""
        self._file.close()


def _bytes_of(chunk: Tensor) -> memoryview:
    """A tensor's numbers, not copied if they follow each other."""
    return memoryview(chunk.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


class _Record:
    """Where a tensor's numbers are, as `data.pkl` names it."""

    def __init__(self, plan: Planned, key: str):
        self.plan, self.key = plan, key


class _Pickler(pickle.Pickler):
    """Spells `Planned` and real tensors as references to records, as `torch.save` does."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file, protocol=2)
        self.keys: dict[int, str] = {}  # id of a plan -> its record
        self.tensors: list[tuple[str, Tensor]] = []
        self._plans: list[Planned] = []  # keeps the ids in use

    def reducer_override(self, value: Any) -> Any:
        """How a value is pickled: tensors, planned or real, as a view of their record."""
        if isinstance(value, Tensor):
            plan = Planned(tuple(value.shape), value.dtype)
            key = self._key(plan)
            self.tensors.append((key, value))
        elif isinstance(value, Planned):
            plan, key = value, self._key(value)
        else:
            return NotImplemented
        arguments = (_Record(plan, key), 0, plan.shape, plan.stride(), False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Record):
            return None
        return "storage", _STORAGES[value.plan.dtype], value.key, "cpu", value.plan.numel

    def _key(self, plan: Planned) -> str:
        self._plans.append(plan)
        return self.keys.setdefault(id(plan), str(len(self.keys)))
