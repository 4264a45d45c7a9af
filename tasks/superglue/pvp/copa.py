"""COPA: which of two choices is the cause, or the effect, of the premise?"""

import dataclasses
from collections.abc import Iterable

from tasks.registry import register_task
from tasks.superglue.data import Example, Record
from tasks.superglue.encode import MASK, Cut, Row
from tasks.superglue.pvp.base import PVP, Parts, cut, lower_first, strip_punctuation

QUESTIONS = ("cause", "effect")


@register_task("copa")
class COPA(PVP):
    """The choices themselves are the answers. Training examples appear mirrored as well."""

    fields = (("premise",), ("choice1",), ("choice2",), ("question",))
    labels = ("0", "1")
    num_patterns = 3
    own_answers = True

    def read(self, records: Iterable[Record], split: str) -> list[Example]:
        """The examples, and in training after them the same with swapped choices."""
        examples = super().read(records, split)
        for x in examples:
            if x.texts[3] not in QUESTIONS:
                raise ValueError(
                    f"{x.where}: field 'question' is {x.texts[3]!r}; "
                    f"must be one of {', '.join(QUESTIONS)}"
                )
        return examples + [_mirrored(x) for x in examples if split == "train"]

    def parts(self, example: Example) -> Parts:
        """Patterns 0 and 1: both choices, the premise, `because` or `so`, MASK."""
        premise = cut(strip_punctuation(example.texts[0]))
        first, second = _choices(example)
        question = ['"', first, '" or "', second, '"?']
        if self.pattern_id == 1:
            question = [first, " or", " " + second, "?"]
        joiner = " because" if example.texts[3] == "cause" else ", so"
        return [*question, premise, joiner, MASK, "."], []

    def verbalizers(self) -> tuple[str, ...]:
        """None: the answers are the choices."""
        return ()

    def cloze_rows(self, example: Example, multi_token: bool) -> list[Row]:
        """Two rows. In pattern 2 the answer is the joiner, between the premise and a choice."""
        choices = _choices(example)
        if self.pattern_id < 2:
            a, b = self.parts(example)
            return [Row(a, b, answer=" " + choice) for choice in choices]
        premise = Cut(strip_punctuation(example.texts[0]))
        lead = ['"', choices[0], '" or "', choices[1], '"?', premise, MASK]
        joiner = " because" if example.texts[3] == "cause" else " so"
        return [Row([*lead, " " + choice], answer=joiner) for choice in choices]

    def classifier_rows(self, example: Example) -> list[Row]:
        """One row a choice: the premise and `because` or `so`, then the choice."""
        joiner = " because" if example.texts[3] == "cause" else " so"
        premise = Cut(example.texts[0])
        return [Row([premise, joiner], [Cut(text)]) for text in example.texts[1:3]]


def _choices(example: Example) -> tuple[str, str]:
    first, second = (strip_punctuation(lower_first(text)) for text in example.texts[1:3])
    return first, second


def _mirrored(x: Example) -> Example:
    premise, first, second, question = x.texts
    return dataclasses.replace(
        x, guid=x.guid + "m", texts=(premise, second, first, question), label=1 - x.label
    )
