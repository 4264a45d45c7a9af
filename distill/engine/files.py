"""Writing that a crash cannot leave half done, and reading tensors without running foreign code.

Every file is written under a temporary name in its own folder, synced, then renamed; a whole folder
likewise. A reader sees the old content or the new, never a part.
"""

import contextlib
import json
import logging
import os
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch

log = logging.getLogger(__name__)


def write_text(path: Path, text: str) -> None:
    """Replace the file by this text, at once."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace the file by these bytes, at once."""
    _replace(path, lambda file: file.write(content))


def write_json(path: Path, content: Any) -> None:
    """Replace the file by this json, at once. Keys keep their order."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_lines(path: Path, rows: list[Any]) -> None:
    """Replace the file by one json a line, at once."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """`torch.save`, at once."""
    _replace(path, lambda file: torch.save(content, file))


def _replace(path: Path, write: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable; not all file systems can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync_files(folder: Path) -> None:
    """Make every file of a folder durable (for files that others wrote)."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def temporary_folder(folder: Path) -> Path:
    """Where the content of `folder` is prepared: beside it, hidden."""
    return folder.with_name(f".{folder.name}.tmp")


def _old_folder(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def install_folder(folder: Path) -> None:
    """Put the prepared folder in place of the old one. `existing_folder` bridges the gap."""
    old = _old_folder(folder)
    sync_files(temporary_folder(folder))
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    temporary_folder(folder).rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def existing_folder(folder: Path) -> Path | None:
    """The folder, or what it held before a crash in the middle of `install_folder`."""
    return next((f for f in (folder, _old_folder(folder)) if f.is_dir()), None)


class _Inert:
    """Stands for an object of a class that we do not load (a loss scaler, a numpy array)."""

    def __new__(cls, *_: Any) -> Self:
        return object.__new__(cls)

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass


#: What torch.load raises for a file that is torn, empty or something else.
_DAMAGED = (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, OSError)


def read_tensors(path: Path) -> dict[str, Any]:
    """Tensors and plain values of a `torch.save` file, on the CPU. Nothing in it is executed.

    Objects of other classes, as in the official GLM files (NumPy states, loss scalers), become
    empty placeholders. ValueError: damaged, or no such file of tensors.
    """
    zipped = zipfile.is_zipfile(path)
    try:
        with _placeholders(path) if zipped else contextlib.nullcontext():
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # missing, or not to be read by us
        first = str(error).partition("\n")[0].partition(". ")[0]  # torch adds guesses and advice
        reason = first or type(error).__name__
        raise ValueError(f"{path}: cannot be read as a checkpoint ({reason})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not a dict of tensors")
    return content


@contextlib.contextmanager
def _placeholders(path: Path) -> Iterator[None]:
    names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    if names:
        log.debug("%s: placeholders for %s", path, ", ".join(sorted(names)))
    with torch.serialization.safe_globals([(_Inert, name) for name in names]):
        yield
