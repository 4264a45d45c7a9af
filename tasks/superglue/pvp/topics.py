"""Topics and stars: AG News, Yahoo answers, Yelp reviews. Their .csv files, or .jsonl.

A .csv has no header: the label from 1 on, then the texts. test.csv also validates, as in the seed,
unless there is a val.csv.
"""

from tasks.registry import register_task
from tasks.superglue.data import Example, Record
from tasks.superglue.encode import MASK, Cut
from tasks.superglue.pvp.base import PVP, Parts, cut

FILES = {
    "train": ("train.jsonl", "train.csv"),
    "val": ("val.jsonl", "val.csv", "test.csv"),
    "test": ("test.jsonl", "test.csv"),
}


def _columns(*names: str) -> dict[str, tuple[str, ...]]:
    return {f"{split}.csv": ("label", *names) for split in ("train", "val", "test")}


class _Slashed(PVP):
    """Texts in which a backslash stands for a line break or nothing."""

    files = FILES

    def examples(self, record: Record, split: str) -> list[Example]:
        """One, its backslashes spaces."""
        (example,) = super().examples(record, split)
        example.texts = tuple(text.replace("\\", " ") for text in example.texts)
        return [example]


class _Topic(_Slashed):
    """A headline (or question) and what follows it."""

    num_patterns = 6
    named: str  # what patterns call the text
    may_be_empty = (1,)

    def parts(self, example: Example) -> Parts:
        """MASK before, between or behind the two texts."""
        first, second = example.texts
        return [
            [MASK, ":", Cut(first), Cut(second)],
            [MASK, f" {self.named}:", Cut(first), Cut(second)],
            [Cut(first), "(", MASK, ")", Cut(second)],
            [Cut(first), Cut(second), "(", MASK, ")"],
            ["[ Category:", MASK, "]", Cut(first), Cut(second)],
            [MASK, "-", Cut(first), Cut(second)],
        ][self.pattern_id], []


@register_task("agnews")
class AGNews(_Topic):
    """World, sports, business or technology?"""

    fields = (("title", "headline"), ("description", "body", "text"))
    labels = ("1", "2", "3", "4")
    named = "News"
    columns = _columns("title", "description")

    def verbalizers(self) -> tuple[str, ...]:
        """One word a topic."""
        return (" World", " Sports", " Business", " Tech")


@register_task("yahoo")
class Yahoo(_Topic):
    """Ten topics of questions. In a .csv a question has a title and a body, one after the other."""

    fields = (("question",), ("answer",))
    labels = tuple(str(k) for k in range(1, 11))
    named = "Question"
    columns = _columns("question_title", "question_body", "answer")

    def examples(self, record: Record, split: str) -> list[Example]:
        """One; the first text is the whole question."""
        if "question_title" in record.values:
            body = record.text("question_body", empty=True)
            whole = {"question": f"{record.text('question_title')} {body}"}
            record = Record(record.path, record.line, record.values | whole)
        return super().examples(record, split)

    def verbalizers(self) -> tuple[str, ...]:
        """One word a topic."""
        words = "Society Science Health Education Computer Sports Business Entertainment"
        return tuple(" " + word for word in (*words.split(), "Relationship", "Politics"))


class _Yelp(_Slashed):
    """Stars of a review."""

    fields = (("text", "review"),)
    num_patterns = 4
    columns = _columns("text")

    def parts(self, example: Example) -> Parts:
        """MASK before or behind the review."""
        (text,) = example.texts
        if self.pattern_id == 0:
            return ["It was", MASK, ".", Cut(text)], []
        if self.pattern_id == 1:
            return [Cut(text), ". All in all, it was", MASK, "."], []
        if self.pattern_id == 2:
            return ["Just", MASK, "!"], [Cut(text)]
        return [Cut(text)], [" In summary, the restaurant is", MASK, "."]


@register_task("yelp-polarity")
class YelpPolarity(_Yelp):
    """Bad or good?"""

    labels = ("1", "2")

    def verbalizers(self) -> tuple[str, ...]:
        """bad, good."""
        return (" bad", " good")


@register_task("yelp-full")
class YelpFull(_Yelp):
    """One to five stars."""

    labels = ("1", "2", "3", "4", "5")

    def verbalizers(self) -> tuple[str, ...]:
        """terrible, bad, okay, good, great."""
        return (" terrible", " bad", " okay", " good", " great")


@register_task("xstance")
class XStance(PVP):
    """Does a comment favour what a question asks? Answers in German, English or French."""

    fields = (("question",), ("comment",))
    labels = ("FAVOR", "AGAINST")
    num_patterns = 6
    clean = True
    files = {
        "train": ("train.jsonl",),
        "val": ("val.jsonl", "valid.jsonl"),
        "test": ("test.jsonl",),
    }
    language: str | None = None  # only examples of it

    def arrange(self, examples: list[Example], split: str) -> list[Example]:
        """Those of the language."""
        return [x for x in examples if self.language in (None, x.group)]

    def examples(self, record: Record, split: str) -> list[Example]:
        """One, with its language."""
        (example,) = super().examples(record, split)
        example.group = record.values.get("language")
        return [example]

    def parts(self, example: Example) -> Parts:
        """The question, MASK, the comment; in quotes for even ids."""
        question, comment = example.texts
        if self.pattern_id % 2 == 0:
            return ['"', Cut(question), '"'], [MASK, '. "', Cut(comment), '"']
        return [Cut(question)], [MASK, ".", cut(comment)]

    def verbalizers(self) -> tuple[str, ...]:
        """Ja, Nein (0, 1); Yes, No (2, 3); Oui, Non (4, 5)."""
        return ((" Ja", " Nein"), (" Yes", " No"), (" Oui", " Non"))[self.pattern_id // 2]


@register_task("xstance-de")
class XStanceDe(XStance):
    """German examples only."""

    language = "de"


@register_task("xstance-fr")
class XStanceFr(XStance):
    """French examples only."""

    language = "fr"
