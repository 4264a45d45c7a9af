"""Files of sequence-to-sequence tasks, with messages that name file, line and remedy."""

import json
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_utils.bad_lines import BadLines
from data_utils.corpora import clean_text, is_unicode

#: Split -> how the files of the formats spell it.
NAMES = {"train": ("train",), "val": ("val", "valid", "dev", "validation"), "test": ("test",)}


@dataclass(frozen=True, slots=True)
class Example:
    """One example as text. What `source` and `target` are is up to the task."""

    where: str  # "train.source, line 17", for messages
    source: str
    target: str
    context: str = ""  # reading comprehension: the passage
    start: int = -1  # first character of the answer in it; -1: not known
    answers: tuple[str, ...] = ()  # all that are right; () : the target alone
    key: str = ""  # the file's own name of the example
    fills: tuple[str, ...] = ()  # of several blanks


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, without their ends. ValueError names a line that is not UTF-8."""
    return [line.text() for line in raw_lines(path)]


@dataclass(frozen=True, slots=True)
class RawLine:
    """A line of a file, that may be no text."""

    where: str  # "train.source, line 17"
    content: bytes

    def text(self) -> str:
        """ValueError if it is not UTF-8."""
        try:
            return self.content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.where}: not UTF-8 ({error.reason} at byte {error.start}); "
                f"convert the file, as with iconv -t UTF-8"
            ) from error

    def filled(self) -> str:
        """ValueError if it is blank, too."""
        text = self.text()
        if not text.strip():
            raise ValueError(f"{self.where}: is empty; one text a line is needed")
        return text


def raw_lines(path: Path) -> list[RawLine]:
    """The lines of a file, without their ends; a byte order mark is no part of them."""
    content = path.read_bytes().removeprefix(BOM_UTF8)
    lines = content.removesuffix(b"\n").split(b"\n") if content else []
    return [RawLine(f"{path}, line {i}", line.rstrip(b"\r")) for i, line in enumerate(lines, 1)]


def split_file(folder: Path, split: str, ending: str) -> Path | None:
    """`train.source`, `valid.txt`, ...: the first spelling there is; None without any."""
    candidates = (folder / f"{name}{ending}" for name in NAMES[split])
    return next((path for path in candidates if path.is_file()), None)


def check_folder(folder: Path, task: str) -> None:
    """FileNotFoundError if it is not there."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder (--data-dir of the task {task})")


def missing(folder: Path, task: str, split: str, ending: str) -> FileNotFoundError:
    """The error for a split that must be there."""
    names = " or ".join(f"{name}{ending}" for name in NAMES[split])
    return FileNotFoundError(f"{folder}: no {names}, which the task {task} needs")


def read_pairs(
    folder: Path,
    split: str,
    task: str,
    bad: BadLines,
    change: Callable[[str, str], tuple[str, str]] = lambda source, target: (source, target),
) -> list[Example] | None:
    """`<split>.source` and `<split>.target`, one example a line; None without a test split.

    `change`: source and target as the task reads them. ValueError: files of unequal length; a line
    that is empty or not UTF-8, unless bad lines are skipped.
    """
    check_folder(folder, task)
    paths = [split_file(folder, split, ending) for ending in (".source", ".target")]
    if None in paths:
        if split == "test" and paths == [None, None]:
            return None
        ending = ".source" if paths[0] is None else ".target"
        raise missing(folder, task, split, ending)
    sources, targets = map(raw_lines, paths)
    if len(sources) != len(targets):
        raise ValueError(
            f"{paths[0]} has {len(sources)} lines, {paths[1]} {len(targets)}; line i of the one "
            "belongs to line i of the other"
        )
    examples = []
    for pair in zip(sources, targets, strict=True):
        try:
            texts = [line.filled() for line in pair]
        except ValueError as error:
            bad(error)
            continue
        source, target = change(*map(clean_text, texts))
        examples.append(Example(pair[0].where, source, target))
    bad.report(paths[0])
    return examples


def read_json(path: Path) -> Any:
    """A JSON file. ValueError names it where it is not UTF-8 or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error


def read_squad(path: Path, bad: BadLines, needs_answer: bool = False) -> list[Example]:
    """SQuAD's format: data / paragraphs / context, qas / id, question, answers.

    source: the question. target: the first answer; "" without any, which is bad if it is needed.
    """
    tree = read_json(path)
    if not isinstance(tree, dict) or not isinstance(tree.get("data"), list):
        raise ValueError(f'{path}: no list "data"; SQuAD\'s format is needed')
    examples = []
    for where, context, qa in _questions(path, tree, bad):
        try:
            example = _question(where, context, qa)
            if needs_answer and not example.answers:
                raise ValueError(f"{where}: field 'answers' is empty; an answer is needed")
            examples.append(example)
        except ValueError as error:
            bad(error)
    bad.report(path)
    return examples


def _questions(path: Path, tree: dict, bad: BadLines) -> Iterator[tuple[str, dict, dict]]:
    """(where, paragraph, question) of every question; what is no list of objects goes to `bad`."""
    for a, article in _objects(str(path), tree, "data", bad):
        where = f"{path}, article {a}"
        for p, paragraph in _objects(where, article, "paragraphs", bad):
            inner = f"{where}, paragraph {p}"
            for q, qa in _objects(inner, paragraph, "qas", bad):
                yield f"{inner}, question {q}", paragraph, qa


def _objects(where: str, parent: dict, name: str, bad: BadLines) -> Iterator[tuple[int, dict]]:
    values = parent.get(name)
    if not isinstance(values, list):
        bad(ValueError(f"{where}: field {name!r} is {values!r:.40}; must be a list"))
        return
    for number, value in enumerate(values):
        if isinstance(value, dict):
            yield number, value
        else:
            problem = f"is {value!r:.40}; must be an object {{...}}"
            bad(ValueError(f"{where}: field '{name}[{number}]' {problem}"))


def _question(where: str, paragraph: dict, qa: dict) -> Example:
    texts = {"context": paragraph.get("context"), "question": qa.get("question")}
    for field, text in texts.items():
        if not isinstance(text, str) or not text.strip() or not is_unicode(text):
            raise ValueError(f"{where}: field {field!r} is {text!r}; must be a text")
    answers = qa.get("answers") or []
    if not (isinstance(answers, list) and all(map(_is_answer, answers))):
        wanted = '{"text": a text, "answer_start": a number}'
        raise ValueError(f"{where}: field 'answers' is {answers!r:.60}; must list {wanted}")
    answers = [x for x in answers if x["text"].strip()]
    spans = dict.fromkeys(x["text"] for x in answers)
    start = answers[0].get("answer_start", -1) if answers else -1
    first = answers[0]["text"] if answers else ""
    if not 0 <= start <= len(texts["context"]) or start + len(first) > len(texts["context"]):
        start = texts["context"].find(first) if first else -1
    return Example(
        where,
        texts["question"],
        first,
        context=texts["context"],
        start=start,
        answers=tuple(spans),
        key=str(qa.get("id", "")),
    )


def _is_answer(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        return False
    return isinstance(value.get("answer_start", -1), int)
