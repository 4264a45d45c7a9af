"""BoolQ: a yes/no question about a passage."""

from tasks.registry import register_task
from tasks.superglue.data import Example
from tasks.superglue.encode import MASK, PROMPT, Cut
from tasks.superglue.pvp.base import PVP, Parts, cut


@register_task("boolq")
class BoolQ(PVP):
    """Three patterns, each with the verbalizers No/Yes (even ids) and false/true (odd ids)."""

    fields = (("passage",), ("question",))
    labels = ("false", "true")
    num_patterns = 6
    official = "BoolQ.jsonl"

    def parts(self, example: Example) -> Parts:
        """The question after the passage, or before it for the ids 4 and 5."""
        passage, question = example.texts
        if self.pattern_id < 2:
            asked = [" Question:", cut(question), "? Answer:", PROMPT, MASK, "."]
            return [PROMPT, Cut(passage), PROMPT, *asked], []
        if self.pattern_id < 4:
            lead = " Based on the previous passage,"
            return [PROMPT, Cut(passage), lead, PROMPT, cut(question), "?", PROMPT, MASK, "."], []
        lead = "Based on the following passage"
        return [lead, PROMPT, cut(question), "?", PROMPT, MASK, ".", PROMPT, cut(passage)], []

    def verbalizers(self) -> tuple[str, ...]:
        """No, Yes; false, true for odd ids."""
        return (" false", " true") if self.pattern_id % 2 else (" No", " Yes")
