"""Textual entailment: RTE and the diagnostic sets AX-b, AX-g; CB with a third label."""

from tasks.registry import register_task
from tasks.superglue.data import Example
from tasks.superglue.encode import MASK, Cut
from tasks.superglue.pvp.base import PVP, Parts, cut, strip_punctuation


@register_task("rte")
class RTE(PVP):
    """Does the premise entail the hypothesis?"""

    fields = (("premise", "sentence1"), ("hypothesis", "sentence2"))
    labels = ("entailment", "not_entailment")
    num_patterns = 5

    def parts(self, example: Example) -> Parts:
        """Patterns 0 to 3: hypothesis? MASK premise. Pattern 4: a question after the premise."""
        premise, hypothesis = example.texts[0], strip_punctuation(example.texts[1])
        if self.pattern_id == 0:
            return ['"', Cut(hypothesis), '" ?'], [MASK, ",", ' "', Cut(premise), '"']
        if self.pattern_id == 1:
            return [Cut(hypothesis), "?"], [MASK, ",", cut(premise)]
        if self.pattern_id == 2:
            return ['"', Cut(hypothesis), '" ?'], [MASK, '. "', Cut(premise), '"']
        if self.pattern_id == 3:
            return [Cut(hypothesis), "?"], [MASK, ".", cut(premise)]
        question = [" question:", cut(hypothesis), " True or False?", " answer:", MASK]
        return [Cut(premise), *question], []

    def verbalizers(self) -> tuple[str, ...]:
        """Yes, No; true, false for pattern 4."""
        return (" true", " false") if self.pattern_id == 4 else (" Yes", " No")


@register_task("ax-b")
class AXb(RTE):
    """Broad-coverage diagnostics, a test set; training and validation files are RTE's."""

    files = RTE.files | {"test": ("AX-b.jsonl",)}


@register_task("ax-g")
class AXg(RTE):
    """Gender diagnostics, a test set; training and validation files are RTE's."""

    files = RTE.files | {"test": ("AX-g.jsonl",)}


@register_task("cb")
class CB(RTE):
    """CommitmentBank: is the writer committed to the hypothesis?"""

    labels = ("entailment", "contradiction", "neutral")
    metric_names = ("accuracy", "f1-macro")

    def parts(self, example: Example) -> Parts:
        """As RTE's; in pattern 4 the hypothesis keeps its punctuation."""
        if self.pattern_id < 4:
            return super().parts(example)
        premise, hypothesis = example.texts
        question = [" question:", cut(hypothesis), " true, false or neither?", " answer:", MASK]
        return [Cut(premise), *question], []

    def verbalizers(self) -> tuple[str, ...]:
        """Yes, No, Maybe; true, false, neither for pattern 4."""
        if self.pattern_id == 4:
            return (" true", " false", " neither")
        return (" Yes", " No", " Maybe")
