"""Task files: one example a line, as SuperGLUE's .jsonl, GLUE's .tsv or AG News' .csv."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from data_utils.bad_lines import BadLines
from data_utils.corpora import clean_text, is_unicode

UNLABELLED = -1
SPLITS = ("train", "val", "test")
STOP = BadLines()  # every bad line is an error


@dataclass(slots=True)
class Example:
    """What a pattern is filled with: the texts in the order of the task's fields."""

    guid: str  # "train-17"; the samples of one example share it
    where: str  # "train.jsonl, line 18", for messages
    texts: tuple[str, ...]
    label: int = UNLABELLED  # index in the task's labels
    idx: Any = None  # the file's own number of the example
    choices: tuple[str, ...] = ()  # answers that belong to this example alone
    answers: tuple[str, ...] = ()  # those that are right, where a score asks for them
    group: Any = None  # what is scored together: a question, a pair


@dataclass(slots=True)
class Record:
    """An object of a task file: a line of it, or a part of one.

    The accessors raise ValueError naming file, line and field.
    """

    path: Path
    line: int
    values: dict[str, Any] = field(repr=False)
    place: str = ""  # "passage.questions[1].": where in the line

    @property
    def where(self) -> str:
        return f"{self.path}, line {self.line}"

    def error(self, name: str, problem: str) -> ValueError:
        """ValueError about a field."""
        return ValueError(f"{self.where}: field {self.place + name!r} {problem}")

    def text(self, *names: str, empty: bool = False, clean: bool = True) -> str:
        """The first of the named fields that is there; `clean`: with ASCII quotes and dashes.

        `empty`: it may be.
        """
        name, value = self.value(*names)
        if not isinstance(value, str):
            raise self.error(name, f"is {value!r}; must be a text")
        if not is_unicode(value):
            raise self.error(name, "holds half a surrogate pair (\\ud8..)")
        if not (empty or value.strip()):
            raise self.error(name, "is empty; must be a text")
        return clean_text(value) if clean else value

    def value(self, *names: str) -> tuple[str, Any]:
        """(name, value) of the first of the named fields that is there."""
        for name in names:
            if name in self.values:
                return name, self.values[name]
        wanted = " or ".join(repr(self.place + name) for name in names)
        raise ValueError(f"{self.where}: no field {wanted}; there are {sorted(self.values)}")

    def number(self, name: str) -> int:
        """A field that is a whole number."""
        _, value = self.value(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(name, f"is {value!r}; must be a whole number")
        return value

    def part(self, name: str) -> Self:
        """A field that is an object itself."""
        _, value = self.value(name)
        return self._part(f"{name}", value)

    def parts(self, name: str, *, required: bool = True) -> list[Self]:
        """A field that is a list of objects; [] where one that is not required is missing."""
        if not required and self.values.get(name) is None:
            return []
        _, value = self.value(name)
        if not isinstance(value, list):
            raise self.error(name, f"is {value!r:.40}; must be a list")
        return [self._part(f"{name}[{k}]", x) for k, x in enumerate(value)]

    def some_parts(self, name: str) -> list[Self]:
        """A field that is a list of objects, of one at least."""
        found = self.parts(name)
        if not found:
            raise self.error(name, "is empty; must have an entry")
        return found

    def _part(self, place: str, value: Any) -> Self:
        if not isinstance(value, dict):
            raise self.error(place, f"is {value!r:.40}; must be an object {{...}}")
        return type(self)(self.path, self.line, value, f"{self.place}{place}.")

    def label(
        self, labels: Sequence[str], required: bool, names: Sequence[str] = ("label",)
    ) -> int:
        """Index of the label's field in `labels`; UNLABELLED where a test file has none."""
        name = next((name for name in names if name in self.values), None)
        value = None if name is None else self.values[name]
        if not required and (value is None or str(value) == str(UNLABELLED)):
            return UNLABELLED
        listed = ", ".join(labels)
        if name is None:
            wanted = " or ".join(repr(self.place + each) for each in names)
            raise ValueError(f"{self.where}: no field {wanted}; it is one of {listed}")
        spelled = str(value)
        if spelled not in labels and isinstance(value, bool):
            spelled = spelled.lower()
        if spelled not in labels:
            raise self.error(name, f"is {value!r}; must be one of {listed}")
        return labels.index(spelled)

    def idx(self) -> Any:
        """The field `idx` (or `id`), as a number where it is one; the line's from 0 without it."""
        value = self.values.get("idx", self.values.get("id", self.line - 1))
        return int(value) if isinstance(value, str) and value.isdecimal() else value


def read_records(
    path: Path, columns: Sequence[str] | None = None, bad: BadLines = STOP
) -> Iterator[Record]:
    """The records of a .tsv, .csv or JSON-lines file; blank lines do not count.

    `columns` names those of a file without a header. Lines that cannot be read go to `bad`.
    """
    if path.suffix == ".tsv":
        return _read_tsv(path, columns, bad)
    return _read_csv(path, columns, bad) if path.suffix == ".csv" else _read_jsonl(path, bad)


def read_object(path: Path) -> Record:
    """A .json file that holds one object. ValueError names the file and what is wrong."""
    content = path.read_bytes()
    try:
        values = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 ({error})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}, line 1: must be an object {{...}}")
    return Record(path, 1, values)


def find_split(folder: str | Path, names: Sequence[str], task: str, split: str) -> Path | None:
    """The first of the named files in the folder; None where a test file is missing.

    FileNotFoundError names the folder and the files wanted.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder (--data-dir of the task {task})")
    for name in names:
        if (folder / name).exists():
            return folder / name
    if split == "test":
        return None
    raise FileNotFoundError(f"{folder}: no {' or '.join(names)}, which the task {task} needs")


def _read_jsonl(path: Path, bad: BadLines) -> Iterator[Record]:
    for number, line in _lines(path, bad):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            bad(ValueError(f"{path}, line {number}: not JSON ({error})"))
            continue
        if isinstance(values, dict):
            yield Record(path, number, values)
        else:
            bad(ValueError(f"{path}, line {number}: must be an object {{...}}, as in .jsonl"))


def _read_tsv(path: Path, columns: Sequence[str] | None, bad: BadLines) -> Iterator[Record]:
    """GLUE's: no quoting."""
    rows = ((number, line.split("\t")) for number, line in _lines(path, bad) if line)
    return _table(path, rows, columns, bad)


def _read_csv(path: Path, columns: Sequence[str] | None, bad: BadLines) -> Iterator[Record]:
    """Quoted; a quoted cell may hold line breaks."""
    return _table(path, _csv_rows(path, bad), columns, bad)


def _csv_rows(path: Path, bad: BadLines) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, cells) of every row."""
    held: list[tuple[int, str]] = []  # the lines of the row that is being read

    def lines() -> Iterator[str]:
        for number, line in _lines(path, bad):
            held.append((number, line + "\n"))
            yield held[-1][1]

    rows = csv.reader(lines())
    while True:
        held.clear()
        try:
            row = next(rows, None)
            if row is None:
                return
            if row:
                _check_quotes([line for _, line in held])
        except csv.Error as error:
            where = f"{path}, line {held[0][0]}"
            bad(ValueError(f"{where}: {error}; is there a quote without its end?"))
            continue
        if row:
            yield held[0][0], row


def _check_quotes(lines: Sequence[str]) -> None:
    """csv.Error if the file ends inside quotes: its last row would be all that is left of it."""
    if sum(line.count('"') for line in lines) % 2:
        try:
            list(csv.reader(lines, strict=True))
        except csv.Error as error:
            if "end of data" in str(error):
                raise


def _table(
    path: Path,
    rows: Iterable[tuple[int, list[str]]],
    columns: Sequence[str] | None,
    bad: BadLines,
) -> Iterator[Record]:
    header, source = columns, "the task"
    for number, cells in rows:
        if header is None:
            header, source = cells, "the header"
        elif len(cells) != len(header):
            bad(
                ValueError(
                    f"{path}, line {number}: {len(cells)} columns, {source} has {len(header)}"
                )
            )
        else:
            yield Record(path, number, dict(zip(header, cells, strict=True)))


def _lines(path: Path, bad: BadLines) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1, without line ends; a byte order mark is no part of them."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                bad(ValueError(f"{path}, line {number}: not UTF-8 ({error})"))
                continue
            yield number, text.rstrip("\r\n")
