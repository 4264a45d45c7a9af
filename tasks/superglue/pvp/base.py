"""PVP: what one task is made of - its fields, labels, patterns, verbalizers and scores.

PET's name (Schick and Schuetze, 2021, arXiv 2001.07676): pattern-verbalizer pair. A pattern
turns an example into text with a mask; verbalizers are the words that stand for the labels.
"""

import json
import string
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from config.errors import ConfigError
from data_utils.bad_lines import BadLines
from tasks.registry import Setting
from tasks.superglue import metrics
from tasks.superglue.data import STOP, Example, Record, read_records
from tasks.superglue.dataset import EncodedDataset
from tasks.superglue.encode import PROMPT, Cut, Part, Row
from tasks.superglue.generative import GenerativeTask
from tasks.superglue.options import FEW_FILES, Options
from tasks.superglue.task import SuperGlueTask, make_task

Parts = tuple[list[Part], list[Part]]

#: Scores of predictions and labels, in percent. A task may compute others itself.
SCORES = {
    "accuracy": metrics.accuracy,
    "f1-macro": lambda p, y: 100.0 * metrics.f1_macro(p, y),
    "f1": lambda p, y: 100.0 * metrics.f1_binary(p, y),
    "matthews": lambda p, y: 100.0 * metrics.matthews(p, y),
}


class PVP(ABC):
    """One task. Subclasses are in the files of this folder, registered by name."""

    fields: ClassVar[tuple[tuple[str, ...], ...]]  # fields of a line; () also lists other spellings
    may_be_empty: ClassVar[tuple[int, ...]] = ()  # which of them
    label_fields: ClassVar[tuple[str, ...]] = ("label",)
    labels: ClassVar[tuple[str, ...]]
    num_patterns: ClassVar[int]
    own_answers: ClassVar[bool] = False  # answers are the example's own texts, always multi-token
    variable_choices: ClassVar[bool] = False  # not every example has as many of them
    metric_names: ClassVar[tuple[str, ...]] = ("accuracy",)
    seed_fractions: ClassVar[frozenset[str]] = frozenset()  # scores that the seed gives in [0, 1]
    official: ClassVar[str | None] = None  # file of a submission; its suffix is its format
    submits: ClassVar[bool] = True  # a server takes what is predicted here
    clean: ClassVar[bool] = True  # curly quotes and dashes become ASCII
    columns: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # of files without a header, by name
    files: ClassVar[dict[str, tuple[str, ...]]] = {
        "train": ("train.jsonl",),
        "val": ("val.jsonl",),
        "test": ("test.jsonl",),
    }

    def __init__(self, name: str, pattern_id: int, options: Options = Options()):  # noqa: B008
        """ConfigError for a pattern that the task has not, or that cannot work with the options."""
        if not 0 <= pattern_id < self.num_patterns:
            raise ConfigError(
                f"--pattern-id={pattern_id}: {name} has the patterns 0 to {self.num_patterns - 1}"
            )
        self.name, self.pattern_id, self.options = name, pattern_id, options

    @classmethod
    def build(cls, name: str, setting: Setting) -> SuperGlueTask | GenerativeTask:
        """The task of the command line. ConfigError for a pattern that it has not."""
        options = Options.of(
            setting.finetuning, setting.data, setting.compat, setting.block_position
        )
        return make_task(cls, name, setting.finetuning.pattern_id, setting.tokenizer, options)

    # What a subclass may say.

    @property
    def generative(self) -> bool:
        """Is the right answer written, instead of one of several chosen?"""
        return False

    @property
    def row_per_choice(self) -> bool:
        """Does a classification head score each choice by itself?"""
        return self.own_answers

    def examples(self, record: Record, split: str) -> list[Example]:
        """Those of one line: one, unless the task says otherwise.

        Only a test file may come without labels. ValueError names file, line and field.
        """
        idx = record.idx()
        return [
            Example(
                guid=f"{prefix(split)}-{idx}",
                where=record.where,
                texts=tuple(
                    record.text(*names, empty=k in self.may_be_empty, clean=self.clean)
                    for k, names in enumerate(self.fields)
                ),
                label=record.label(self.labels, split != "test", self.label_fields),
                idx=idx,
            )
        ]

    def arrange(self, examples: list[Example], split: str) -> list[Example]:
        """The examples of a whole split, in the order of the data set."""
        return examples

    @abstractmethod
    def parts(self, example: Example) -> Parts:
        """The filled pattern as parts A and B."""

    def verbalizers(self) -> tuple[str, ...]:
        """One word a label; the leading space belongs to it. None where examples have answers."""
        return ()

    def answers(self, example: Example) -> list[str]:
        """The texts that are scored, where they are several tokens: one a label."""
        return list(self.verbalizers())

    def cloze_rows(self, example: Example, multi_token: bool) -> list[Row]:
        """One row; one an answer if answers are token sequences."""
        a, b = self.parts(example)
        if not multi_token:
            return [Row(a, b)]
        return [Row(a, b, answer=text) for text in self.answers(example)]

    def classifier_rows(self, example: Example) -> list[Row]:
        """What a classification head reads: the first text, and the second if there is one."""
        first, *second = (Cut(text) for text in example.texts)
        return [Row([first], second or None)]

    # Files.

    def files_of(self, split: str) -> tuple[str, ...]:
        """Names of the file of a split; the first that is there is read."""
        return FEW_FILES[split] if self.options.few else self.files[split]

    def read(self, path: Path, split: str, bad: BadLines = STOP) -> list[Example]:
        """The examples of a file; what is wrong with a line goes to `bad`."""
        examples: list[Example] = []
        for record in self.records(path, bad):
            try:
                examples += self.examples(record, split)
            except ValueError as error:
                bad(error)
        return self.arrange(examples, split)

    def records(self, path: Path, bad: BadLines) -> Iterable[Record]:
        """The lines of a file."""
        return read_records(path, self.columns.get(path.name), bad)

    # Scores.

    def scores(self, chosen: Sequence[int], dataset: EncodedDataset) -> dict[str, float]:
        """Official scores, in percent, of one choice a sample."""
        labels = dataset.labels.tolist()
        return {name: SCORES[name](chosen, labels) for name in self.metric_names}

    def submission_file(self) -> str:
        """Name of the file that the task's server takes."""
        return self.official or f"{self.name}.jsonl"

    def submission_lines(self, chosen: Sequence[int], dataset: EncodedDataset) -> list[str]:
        """Its lines: .jsonl with `idx`, GLUE's .tsv with `index`, CLUE's .json with `id`."""
        names = [self.answer_name(c, dataset, i) for i, c in enumerate(chosen)]
        if self.submission_file().endswith(".tsv"):
            return ["index\tprediction", *(f"{i}\t{name}" for i, name in enumerate(names))]
        key = "id" if self.submission_file().endswith(".json") else "idx"
        return [
            json.dumps({key: idx, "label": name}, ensure_ascii=False)
            for idx, name in zip(dataset.idx, names, strict=True)
        ]

    def answer_name(self, choice: int, dataset: EncodedDataset, i: int) -> str | int:
        """What a submission calls the choice of sample i."""
        return self.labels[choice]


def prefix(split: str) -> str:
    """What the ids of a split's examples begin with."""
    return "dev" if split == "val" else split


def strip_punctuation(text: str) -> str:
    """Without ASCII punctuation at the end."""
    return text.rstrip(string.punctuation)


def lower_first(text: str) -> str:
    """With the first character in lower case."""
    return text[:1].lower() + text[1:]


def cut(text: str) -> Cut:
    """Text that may be shortened, with a space before it."""
    return Cut(" " + text)


__all__ = ["PROMPT", "PVP", "Parts", "cut", "lower_first", "prefix", "strip_punctuation"]
