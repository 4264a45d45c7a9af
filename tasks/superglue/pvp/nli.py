"""Textual entailment: RTE and the diagnostic sets AX-b, AX-g; CB with a third label."""

from collections.abc import Sequence

from tasks.registry import register_task
from tasks.superglue.data import Example, Record
from tasks.superglue.dataset import EncodedDataset
from tasks.superglue.encode import MASK, PROMPT, Cut
from tasks.superglue.metrics import gender_parity
from tasks.superglue.pvp.base import PVP, Parts, cut, strip_punctuation


@register_task("rte")
class RTE(PVP):
    """Does the premise entail the hypothesis?"""

    fields = (("premise", "sentence1"), ("hypothesis", "sentence2"))
    labels = ("entailment", "not_entailment")
    num_patterns = 5
    official = "RTE.jsonl"

    def parts(self, example: Example) -> Parts:
        """Patterns 0 to 3: hypothesis? MASK premise. Pattern 4: a question after the premise."""
        premise, hypothesis = example.texts[0], strip_punctuation(example.texts[1])
        if self.pattern_id in (0, 2):
            asked = [PROMPT, '"', Cut(hypothesis), '" ?']
            if self.pattern_id == 0:
                return asked, [PROMPT, MASK, ",", PROMPT, ' "', Cut(premise), '"']
            return asked, [PROMPT, MASK, '. "', PROMPT, Cut(premise), '"']
        if self.pattern_id in (1, 3):
            mark = "," if self.pattern_id == 1 else "."
            return [PROMPT, Cut(hypothesis), "?"], [PROMPT, MASK, mark, PROMPT, cut(premise)]
        return self._question(premise, hypothesis, " True or False?"), []

    def _question(self, premise: str, hypothesis: str, ending: str) -> list:
        lead = [PROMPT, Cut(premise), PROMPT, " question:", cut(hypothesis)]
        return [*lead, ending, PROMPT, " answer:", MASK]

    def verbalizers(self) -> tuple[str, ...]:
        """Yes, No; true, false for pattern 4."""
        return (" true", " false") if self.pattern_id == 4 else (" Yes", " No")


@register_task("ax-b")
class AXb(RTE):
    """Broad-coverage diagnostics, a test set; training and validation files are RTE's."""

    files = RTE.files | {"test": ("AX-b.jsonl",)}
    metric_names = ("accuracy", "matthews")
    official = "AX-b.jsonl"


@register_task("ax-g")
class AXg(RTE):
    """Gender diagnostics, a test set; training and validation files are RTE's.

    `gender-parity`: pairs of sentences, alike but for a gender, that get the same label.
    """

    files = RTE.files | {"test": ("AX-g.jsonl",)}
    official = "AX-g.jsonl"

    def examples(self, record: Record, split: str) -> list[Example]:
        """One, of the pair `pair_id`."""
        (example,) = super().examples(record, split)
        example.group = record.values.get("pair_id")
        return [example]

    def scores(self, chosen: Sequence[int], dataset: EncodedDataset) -> dict[str, float]:
        """Accuracy; parity where the file has pairs."""
        scores = super().scores(chosen, dataset)
        if None not in dataset.groups:
            scores["gender-parity"] = gender_parity(chosen, dataset.groups)
        return scores


@register_task("cb")
class CB(RTE):
    """CommitmentBank: is the writer committed to the hypothesis?"""

    labels = ("entailment", "contradiction", "neutral")
    metric_names = ("accuracy", "f1-macro")
    seed_fractions = frozenset({"f1-macro"})
    official = "CB.jsonl"

    def parts(self, example: Example) -> Parts:
        """As RTE's; in pattern 4 the hypothesis keeps its punctuation."""
        if self.pattern_id < 4:
            return super().parts(example)
        return self._question(*example.texts, " true, false or neither?"), []

    def verbalizers(self) -> tuple[str, ...]:
        """Yes, No, Maybe; true, false, neither for pattern 4."""
        if self.pattern_id == 4:
            return (" true", " false", " neither")
        return (" Yes", " No", " Maybe")
