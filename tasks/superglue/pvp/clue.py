"""Chinese tasks of CLUE: TNEWS, AFQMC, CLUEWSC. Lines of train.json, dev.json, test.json.

Text is written as escapes; comments translate it.
"""

from tasks.registry import register_task
from tasks.superglue.data import Example, Record
from tasks.superglue.encode import MASK, PROMPT, Cut, Row
from tasks.superglue.pvp.base import PVP, Parts

FILES = {
    "train": ("train.jsonl", "train.json"),
    "val": ("val.jsonl", "dev.json"),
    "test": ("test.jsonl", "test.json"),
}
COMMA, STOP_, ASKS = "\uff0c", "\u3002", "\uff1f"
IS_NOT, IS = "\u4e0d\u662f", "\u662f"


class _Chinese(PVP):
    """Punctuation stays as it is; a submission is sorted by `id`."""

    clean = False
    files = FILES


@register_task("tnews")
class TNews(_Chinese):
    """Topics of news."""

    fields = (("sentence",), ("keywords",))
    may_be_empty = (1,)
    labels = tuple(str(code) for code in range(100, 117) if code not in (105, 111))
    num_patterns = 1
    official = "tnews_predict.json"

    def parts(self, example: Example) -> Parts:
        """Title: .. key words: .. category: MASK"""
        title, keywords = (Cut(text) for text in example.texts)
        lead = "\u6807\u9898\uff1a"
        words = ["\u5173\u952e\u8bcd\uff1a", keywords, "\u7c7b\u522b\uff1a", MASK]
        return [lead, title, *words], []

    def verbalizers(self) -> tuple[str, ...]:
        """Two characters a topic: story, culture, entertainment, sports, finance, home, ..."""
        return (
            "\u6545\u4e8b", "\u6587\u5316", "\u5a31\u4e50", "\u4f53\u80b2", "\u91d1\u878d",
            "\u5c45\u5bb6", "\u6c7d\u8f66", "\u6559\u80b2", "\u79d1\u6280", "\u519b\u4e8b",
            "\u65c5\u6e38", "\u4e16\u754c", "\u80a1\u7968", "\u519c\u4e1a", "\u6e38\u620f",
        )  # fmt: skip


@register_task("afqmc")
class AFQMC(_Chinese):
    """Do two questions to a bank mean the same?"""

    fields = (("sentence1",), ("sentence2",))
    labels = ("0", "1")
    num_patterns = 2
    official = "afqmc_predict.json"

    def parts(self, example: Example) -> Parts:
        """The first, then: do you mean the second? MASK"""
        first, second = (Cut(text) for text in example.texts)
        if self.pattern_id == 0:
            return [first, ASKS], ["\u4f60\u662f\u8bf4", second, ASKS, MASK, STOP_]
        return [first, ASKS], [MASK, COMMA, second]

    def verbalizers(self) -> tuple[str, ...]:
        """is not, is."""
        return (IS_NOT, IS)


@register_task("cluewsc")
class CLUEWSC(_Chinese):
    """What does a pronoun stand for? Indices count characters; span 2 is the pronoun."""

    fields = (("text",),)
    labels = ("false", "true")
    num_patterns = 2
    official = "cluewsc_predict.json"

    def examples(self, record: Record, split: str) -> list[Example]:
        """One: the text with the pronoun in stars and the span in hashes, the pronoun, the span."""
        (example,) = super().examples(record, split)
        target, text = record.part("target"), example.texts[0]
        spans = []
        for name, mark in (("span1", "#"), ("span2", "*")):
            span = target.text(f"{name}_text", clean=False)
            start = target.number(f"{name}_index")
            if text[start : start + len(span)] != span:
                problem = f"is {start}, where the text has no {span!r}"
                raise target.error(f"{name}_index", problem)
            spans.append((start, span, mark))
        for start, span, mark in sorted(spans, reverse=True):
            text = text[:start] + mark + span + mark + text[start + len(span) :]
        example.texts = (text, spans[1][1], spans[0][1])
        return [example]

    def parts(self, example: Example) -> Parts:
        """The text; the pronoun '*p*' MASK means #span#"""
        text, pronoun, span = example.texts
        asks = f"\u4ee3\u8bcd'*{pronoun}*'"
        if self.pattern_id == 0:
            return [PROMPT, Cut(text), asks, MASK, f"\u6307#{span}#."], []
        lead = "\u5728\u5982\u4e0b\u7684\u53e5\u5b50\u4e2d\uff1a"  # in the following sentence:
        return [lead, Cut(text), asks, MASK, f"\u6307'#{span}#'."], []

    def verbalizers(self) -> tuple[str, ...]:
        """is not, is."""
        return (IS_NOT, IS)

    def classifier_rows(self, example: Example) -> list[Row]:
        """The marked text, then the span."""
        text, _, span = example.texts
        return [Row([Cut(text)], [Cut(span)])]
