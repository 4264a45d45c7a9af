"""COPA: which of two choices is the cause, or the effect, of the premise?"""

import dataclasses

from tasks.registry import register_task
from tasks.superglue.data import Example, Record
from tasks.superglue.dataset import EncodedDataset
from tasks.superglue.encode import MASK, PROMPT, Cut, Row
from tasks.superglue.pvp.base import PVP, Parts, cut, lower_first, strip_punctuation

QUESTIONS = ("cause", "effect")


@register_task("copa")
class COPA(PVP):
    """The choices themselves are the answers. Training examples appear mirrored as well."""

    fields = (("premise",), ("choice1",), ("choice2",), ("question",))
    labels = ("0", "1")
    num_patterns = 3
    own_answers = True
    official = "COPA.jsonl"

    def examples(self, record: Record, split: str) -> list[Example]:
        """One, after a look at its question."""
        (example,) = super().examples(record, split)
        if example.texts[3] not in QUESTIONS:
            raise record.error(
                "question", f"is {example.texts[3]!r}; must be one of {', '.join(QUESTIONS)}"
            )
        return [example]

    def arrange(self, examples: list[Example], split: str) -> list[Example]:
        """In training after the examples the same with swapped choices."""
        return examples + [_mirrored(x) for x in examples if split == "train"]

    @property
    def _joins(self) -> bool:
        """Is the answer the joiner, between the premise and a choice?"""
        return self.pattern_id == 2 and not self.options.prompts

    def parts(self, example: Example) -> Parts:
        """Both choices, the premise, `because` or `so`, MASK."""
        premise = cut(strip_punctuation(example.texts[0]))
        first, second = _choices(example)
        joiner = " because" if example.texts[3] == "cause" else ", so"
        if self.pattern_id == 2:
            question = [PROMPT, '"', first, '" or "', second, '"', PROMPT]
            return [*question, premise, joiner, MASK, ".", PROMPT], []
        question = ['"', first, '" or "', second, '"?']
        if self.pattern_id == 1:
            question = [first, " or", " " + second, "?"]
        return [PROMPT, *question, PROMPT, premise, joiner, PROMPT, MASK, "."], []

    def answers(self, example: Example) -> list[str]:
        """The choices."""
        return [" " + choice for choice in _choices(example)]

    def cloze_rows(self, example: Example, multi_token: bool) -> list[Row]:
        """Two rows. Pattern 2 without prompts has a context for each choice."""
        if not self._joins:
            return super().cloze_rows(example, multi_token)
        choices = _choices(example)
        premise = Cut(strip_punctuation(example.texts[0]))
        lead = ['"', choices[0], '" or "', choices[1], '"?', premise, MASK]
        joiner = " because" if example.texts[3] == "cause" else " so"
        return [Row([*lead, " " + choice], answer=joiner) for choice in choices]

    def classifier_rows(self, example: Example) -> list[Row]:
        """One row a choice: the premise and `because` or `so`, then the choice."""
        joiner = " because" if example.texts[3] == "cause" else " so"
        premise = Cut(example.texts[0])
        return [Row([premise, joiner], [Cut(text)]) for text in example.texts[1:3]]

    def answer_name(self, choice: int, dataset: EncodedDataset, i: int) -> str | int:
        """0 or 1, a number."""
        return choice


def _choices(example: Example) -> tuple[str, str]:
    first, second = (strip_punctuation(lower_first(text)) for text in example.texts[1:3])
    return first, second


def _mirrored(x: Example) -> Example:
    premise, first, second, question = x.texts
    return dataclasses.replace(
        x, guid=x.guid + "m", texts=(premise, second, first, question), label=1 - x.label
    )
