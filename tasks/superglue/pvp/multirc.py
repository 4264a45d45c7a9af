"""MultiRC: which of the answers to a question about a passage are right?"""

import json
from collections.abc import Sequence

from tasks.registry import register_task
from tasks.superglue import metrics
from tasks.superglue.data import Example, Record
from tasks.superglue.dataset import EncodedDataset
from tasks.superglue.encode import MASK, PROMPT, Cut, Row
from tasks.superglue.pvp.base import PVP, Parts, cut, prefix, strip_punctuation


@register_task("multirc")
class MultiRC(PVP):
    """One example an answer. Lines: {"idx", "passage": {"text", "questions": [{"idx", "question",

    "answers": [{"idx", "text", "label"}]}]}}. MultiRC's own files have empty answers.
    """

    fields = (("text",), ("question",), ("text",))
    labels = ("0", "1")
    num_patterns = 5
    metric_names = ("f1a", "em", "acc")
    seed_fractions = frozenset({"f1a", "em"})
    official = "MultiRC.jsonl"

    def examples(self, record: Record, split: str) -> list[Example]:
        """One an answer of each question."""
        passage, number = record.part("passage"), record.idx()
        text = passage.text("text")
        found = []
        for asked in passage.some_parts("questions"):
            question, group = asked.text("question"), (number, asked.number("idx"))
            for answer in asked.some_parts("answers"):
                place = answer.number("idx")
                found.append(
                    Example(
                        guid=f"{prefix(split)}-p{number}-q{group[1]}-a{place}",
                        where=record.where,
                        texts=(text, question, answer.text("text", empty=True)),
                        label=answer.label(self.labels, split != "test"),
                        idx=(*group, place),
                        group=group,
                    )
                )
        return found

    def parts(self, example: Example) -> Parts:
        """The passage, which alone may be cut, the question, the answer; is it right?"""
        passage, question = (strip_punctuation(text.rstrip()) for text in example.texts[:2])
        text, asked = example.texts[2], [" Question:", " " + question, "?"]
        if self.pattern_id == 3:
            asked = [" " + question, "- [", MASK, "]", PROMPT, text]
            return [PROMPT, Cut(passage), PROMPT, *asked], []
        if self.pattern_id == 2:
            lead = [Cut(passage), ". Based on the previous passage,", PROMPT, " " + question, "?"]
            return [*lead, PROMPT, ' Is "', text, '" a correct answer?', PROMPT, MASK, "."], []
        if self.pattern_id == 0:
            asked = [" Question:", f" {question}?"]
        asks = {
            0: [" Is it", " " + text, "?"],
            1: [' Is the correct answer "', text, '"?'],
            4: [" " + text, "?"],
        }[self.pattern_id]
        return [Cut(passage), ".", PROMPT, *asked, PROMPT, *asks, PROMPT, MASK, "."], []

    def verbalizers(self) -> tuple[str, ...]:
        """No, Yes; False, True for pattern 3."""
        return (" False", " True") if self.pattern_id == 3 else (" No", " Yes")

    def classifier_rows(self, example: Example) -> list[Row]:
        """The passage, then the question and its answer."""
        passage, question, text = example.texts
        return [Row([Cut(passage)], [Cut(question), " answer:", cut(text)])]

    def scores(self, chosen: Sequence[int], dataset: EncodedDataset) -> dict[str, float]:
        """F1 over all answers, questions with every answer right, answers: in percent."""
        found = metrics.multirc(chosen, dataset.labels.tolist(), dataset.groups)
        return {"f1a": 100.0 * found["f1a"], "em": 100.0 * found["em"], "acc": found["acc"]}

    def submission_lines(self, chosen: Sequence[int], dataset: EncodedDataset) -> list[str]:
        """One line a passage, with its questions and answers."""
        passages: dict[object, dict[object, list[dict[str, int]]]] = {}
        for (passage, question, answer), label in zip(dataset.idx, chosen, strict=True):
            answers = passages.setdefault(passage, {}).setdefault(question, [])
            answers.append({"idx": answer, "label": label})
        return [
            json.dumps(
                {
                    "idx": passage,
                    "passage": {
                        "questions": [{"idx": q, "answers": a} for q, a in questions.items()]
                    },
                }
            )
            for passage, questions in passages.items()
        ]
