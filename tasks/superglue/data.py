"""Task files: one example a line, as SuperGLUE's .jsonl or GLUE's .tsv."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_utils.corpora import clean_text, is_unicode

UNLABELLED = -1
SPLITS = ("train", "val", "test")


@dataclass(slots=True)
class Example:
    """What a pattern is filled with: the texts in the order of the task's fields."""

    guid: str  # "train-17"; unique within a split
    where: str  # "train.jsonl, line 18", for messages
    texts: tuple[str, ...]
    label: int = UNLABELLED  # index in the task's labels
    idx: Any = None  # the file's own number of the example


@dataclass(slots=True)
class Record:
    """One line of a task file; the accessors raise ValueError naming file, line and field."""

    path: Path
    line: int
    values: dict[str, Any] = field(repr=False)

    @property
    def where(self) -> str:
        return f"{self.path}, line {self.line}"

    def text(self, *names: str) -> str:
        """The first of the named fields that is there, with ASCII quotes and dashes."""
        for name in names:
            if name in self.values:
                value = self.values[name]
                if not isinstance(value, str):
                    raise ValueError(f"{self.where}: field {name!r} is {value!r}; must be a text")
                if not is_unicode(value):
                    raise ValueError(
                        f"{self.where}: field {name!r} holds half a surrogate pair (\\ud8..)"
                    )
                return clean_text(value)
        wanted = " or ".join(repr(name) for name in names)
        raise ValueError(f"{self.where}: no field {wanted}; there are {sorted(self.values)}")

    def label(self, labels: Sequence[str], required: bool) -> int:
        """Index of the field `label` in `labels`; UNLABELLED where a test file has none."""
        value = self.values.get("label")
        if not required and (value is None or str(value) == str(UNLABELLED)):
            return UNLABELLED
        if "label" not in self.values:
            raise ValueError(f"{self.where}: no field 'label'; it is one of {', '.join(labels)}")
        spelled = str(value).lower() if isinstance(value, bool) else str(value)
        if spelled not in labels:
            raise ValueError(
                f"{self.where}: field 'label' is {value!r}; must be one of {', '.join(labels)}"
            )
        return labels.index(spelled)

    def idx(self) -> Any:
        """The field `idx`, as a number where it is one; the line's number from 0 without it."""
        value = self.values.get("idx", self.line - 1)
        return int(value) if isinstance(value, str) and value.isdecimal() else value


def read_records(path: Path) -> Iterator[Record]:
    """The records of a .jsonl or .tsv file; blank lines do not count."""
    return _read_tsv(path) if path.suffix == ".tsv" else _read_jsonl(path)


def find_split(folder: str | Path, names: Sequence[str], task: str, split: str) -> Path | None:
    """The first of the named files in the folder; None where a test file is missing.

    FileNotFoundError names the folder and the files wanted.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder (--data-dir of the task {task})")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    if split == "test":
        return None
    raise FileNotFoundError(f"{folder}: no {' or '.join(names)}, which the task {task} needs")


def _read_jsonl(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8") as lines:
        for number, line in _decoded(lines, path):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
            if not isinstance(values, dict):
                raise ValueError(f"{path}, line {number}: must be an object {{...}}, as in .jsonl")
            yield Record(path, number, values)


def _read_tsv(path: Path) -> Iterator[Record]:
    header: list[str] | None = None
    with path.open(encoding="utf-8", newline="\n") as lines:
        for number, line in _decoded(lines, path):
            cells = line.rstrip("\r\n").split("\t")
            if header is None:
                header = cells
            elif cells != [""]:
                if len(cells) != len(header):
                    raise ValueError(
                        f"{path}, line {number}: {len(cells)} columns, the header has {len(header)}"
                    )
                yield Record(path, number, dict(zip(header, cells, strict=True)))


def _decoded(lines: Iterator[str], path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    while True:
        number += 1
        try:
            line = next(lines)
        except StopIteration:
            return
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, near line {number}: not UTF-8 ({error})") from error
        yield number, line
