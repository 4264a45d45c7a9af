"""RACE: questions of English exams about an article, with four answers each."""

import re
from collections.abc import Iterator
from pathlib import Path

from data_utils.bad_lines import BadLines
from tasks.registry import register_task
from tasks.superglue.data import Example, Record, read_records
from tasks.superglue.dataset import EncodedDataset
from tasks.superglue.encode import MASK, Cut, Row
from tasks.superglue.pvp.base import PVP, Parts, cut, prefix

LETTERS = ("A", "B", "C", "D")


@register_task("race")
class RACE(PVP):
    """Folders train, dev and test, in each middle and high, in these .txt with one JSON a line:

    {"id", "article", "questions": [..], "options": [[..]], "answers": ["A", ..]}.
    """

    fields = (("article",), ("question",))
    labels = LETTERS
    num_patterns = 2
    own_answers = True
    variable_choices = True
    clean = False
    files = {"train": ("train",), "val": ("dev",), "test": ("test",)}

    def records(self, path: Path, bad: BadLines) -> Iterator[Record]:
        """The lines of all files below a split's folder."""
        for file in sorted(path.glob("*/*.txt")):
            yield from read_records(file, None, bad)

    def examples(self, record: Record, split: str) -> list[Example]:
        """One a question."""
        article, name = _tidy(record.text("article", clean=False)), record.text("id")
        lists = [_list(record, field) for field in ("questions", "options")]
        answers = _list(record, "answers") if record.values.get("answers") else None
        for name_of, values in (("options", lists[1]), ("answers", answers)):
            if values is not None and len(values) != len(lists[0]):
                problem = f"has {len(values)} entries, 'questions' has {len(lists[0])}"
                raise record.error(name_of, f"{problem}; must be one for each")
        found = []
        for k, (question, options) in enumerate(zip(*lists, strict=True)):
            if not isinstance(options, list) or not 1 <= len(options) <= len(LETTERS):
                raise record.error(f"options[{k}]", f"is {options!r:.40}; must list 1 to 4 texts")
            asked, given = f"questions[{k}]", f"answers[{k}]"
            names = [f"options[{k}][{j}]" for j in range(len(options))]
            values = {asked: question, given: answers[k] if answers else None}
            row = Record(record.path, record.line, values | dict(zip(names, options, strict=True)))
            found.append(
                Example(
                    guid=f"{prefix(split)}-p{name}-q{k}",
                    where=record.where,
                    texts=(article, _tidy(row.text(asked, clean=False))),
                    label=row.label(LETTERS[: len(options)], split != "test", (given,)),
                    idx=f"{name}-{k}",
                    choices=tuple(_tidy(row.text(x, clean=False)) for x in names),
                )
            )
        return found

    def parts(self, example: Example) -> Parts:
        """The article, then the question: MASK in its gap, or behind it."""
        article, question = example.texts
        lead = [] if self.pattern_id == 0 else [" Based on the previous passage,"]
        if "_" in question:
            left, right = (" " + question).split("_", 1)
            return [Cut(article)], [*lead, Cut(left.rstrip()), MASK, Cut(right)]
        if self.pattern_id == 0:
            return [Cut(article)], [" Question:", cut(question), " Answer:", MASK]
        return [Cut(article)], [*lead, cut(question), MASK]

    def answers(self, example: Example) -> list[str]:
        """The options."""
        return [" " + text for text in example.choices]

    def classifier_rows(self, example: Example) -> list[Row]:
        """One an option: the article, then the question and the option."""
        article, question = example.texts
        return [Row([Cut(article)], [Cut(question), " " + text]) for text in example.choices]

    def answer_name(self, choice: int, dataset: EncodedDataset, i: int) -> str | int:
        """The option's letter."""
        return LETTERS[choice]


def _list(record: Record, name: str) -> list:
    _, value = record.value(name)
    if not isinstance(value, list):
        raise record.error(name, f"is {value!r:.40}; must be a list")
    return value


def _tidy(text: str) -> str:
    """One line, single spaces, full stops at the end of their words."""
    text = re.sub(r"\s+", " ", text)
    for _ in range(3):
        text = text.replace(" . ", ". ")
    return text
