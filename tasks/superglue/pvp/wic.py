"""WiC: does a word have the same meaning in two sentences?"""

from tasks.registry import register_task
from tasks.superglue.data import Example
from tasks.superglue.encode import MASK, PROMPT, Cut, Row
from tasks.superglue.pvp.base import PVP, Parts, cut


@register_task("wic")
class WiC(PVP):
    """Word in context."""

    fields = (("sentence1",), ("sentence2",), ("word",))
    labels = ("false", "true")
    num_patterns = 3
    official = "WiC.jsonl"

    def parts(self, example: Example) -> Parts:
        """In pattern 0 the two sentences are one text, shortened from its end."""
        first, second, word = example.texts
        if self.pattern_id == 0:
            both, question = Cut(f'"{first}" / "{second}"'), f' Similar sense of "{word}"?'
            return [PROMPT, both, PROMPT, question, PROMPT, MASK, "."], []
        if self.pattern_id == 1:
            question = f" Does {word} have the same meaning in both sentences?"
            return [Cut(first), PROMPT, cut(second), PROMPT, question, PROMPT, MASK], []
        lead = [PROMPT, word, " .", PROMPT, ' Sense (1) (a) "', Cut(first), '"']
        return [*lead, PROMPT, " (", MASK, ') "', second, '"'], []

    def verbalizers(self) -> tuple[str, ...]:
        """No, Yes; 2, b (the number of the sense) for pattern 2."""
        return ("2", "b") if self.pattern_id == 2 else (" No", " Yes")

    def classifier_rows(self, example: Example) -> list[Row]:
        """The word stands before the first sentence."""
        first, second, word = example.texts
        return [Row([Cut(f"{word}: {first}")], [Cut(second)])]
