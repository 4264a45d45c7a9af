"""PVP: what one task is made of - its fields, labels, patterns and verbalizers.

PET's name (Schick and Schuetze, 2021, arXiv 2001.07676): pattern-verbalizer pair. A pattern
turns an example into text with a mask; verbalizers are the words that stand for the labels.
"""

import string
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar

from config.compat import Compat
from config.data import DataArgs
from config.errors import ConfigError
from config.tasks import FinetuneArgs
from data_utils.tokenization import Tokenizer
from tasks.superglue.data import Example, Record
from tasks.superglue.encode import Cut, Part, Row
from tasks.superglue.task import SuperGlueTask, build_superglue

Parts = tuple[list[Part], list[Part]]


class PVP(ABC):
    """One task. Subclasses are in the files of this folder, registered by name."""

    fields: ClassVar[tuple[tuple[str, ...], ...]]  # fields of a line; () also lists other spellings
    labels: ClassVar[tuple[str, ...]]
    num_patterns: ClassVar[int]
    own_answers: ClassVar[bool] = False  # answers are the example's own texts, always multi-token
    metric_names: ClassVar[tuple[str, ...]] = ("accuracy",)
    files: ClassVar[dict[str, tuple[str, ...]]] = {
        "train": ("train.jsonl",),
        "val": ("val.jsonl",),
        "test": ("test.jsonl",),
    }

    def __init__(self, name: str, pattern_id: int):
        if not 0 <= pattern_id < self.num_patterns:
            raise ConfigError(
                f"--pattern-id={pattern_id}: {name} has the patterns 0 to {self.num_patterns - 1}"
            )
        self.name, self.pattern_id = name, pattern_id

    @classmethod
    def build(
        cls,
        name: str,
        finetuning: FinetuneArgs,
        data: DataArgs,
        tokenizer: Tokenizer,
        compat: Compat,
        block_position: bool,
    ) -> SuperGlueTask:
        """The task with its files and tokenizer; called by `tasks.registry.build_task`."""
        return build_superglue(cls, name, finetuning, data, tokenizer, compat, block_position)

    def read(self, records: Iterable[Record], split: str) -> list[Example]:
        """The examples of a split. Only a test file may come without labels."""
        examples = []
        for record in records:
            idx = record.idx()
            examples.append(
                Example(
                    guid=f"{'dev' if split == 'val' else split}-{idx}",
                    where=record.where,
                    texts=tuple(record.text(*names) for names in self.fields),
                    label=record.label(self.labels, required=split != "test"),
                    idx=idx,
                )
            )
        return examples

    @abstractmethod
    def parts(self, example: Example) -> Parts:
        """The filled pattern as parts A and B."""

    @abstractmethod
    def verbalizers(self) -> tuple[str, ...]:
        """One word a label; the leading space belongs to it."""

    def cloze_rows(self, example: Example, multi_token: bool) -> list[Row]:
        """One row; one a label if answers are token sequences."""
        a, b = self.parts(example)
        if not multi_token:
            return [Row(a, b)]
        return [Row(a, b, answer=word) for word in self.verbalizers()]

    def classifier_rows(self, example: Example) -> list[Row]:
        """What a classification head reads: the first text, and the second if there is one."""
        first, *second = (Cut(text) for text in example.texts)
        return [Row([first], second or None)]


def strip_punctuation(text: str) -> str:
    """Without ASCII punctuation at the end."""
    return text.rstrip(string.punctuation)


def lower_first(text: str) -> str:
    """With the first character in lower case."""
    return text[:1].lower() + text[1:]


def cut(text: str) -> Cut:
    """Text that may be shortened, with a space before it."""
    return Cut(" " + text)
