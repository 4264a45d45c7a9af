"""GLUE's tasks but SST-2 and RTE: their .tsv files, or .jsonl with the same fields."""

from tasks.registry import register_task
from tasks.superglue.data import Example
from tasks.superglue.encode import MASK, Cut
from tasks.superglue.pvp.base import PVP, Parts, cut, lower_first, strip_punctuation

FILES = {
    "train": ("train.jsonl", "train.tsv"),
    "val": ("val.jsonl", "dev.tsv"),
    "test": ("test.jsonl", "test.tsv"),
}
NO_YES = (" No", " Yes")


@register_task("mnli")
class MNLI(PVP):
    """Entailment, contradiction or neither? Validation and test on the genres of training."""

    fields = (("sentence1", "premise"), ("sentence2", "hypothesis"))
    label_fields = ("label", "gold_label")
    labels = ("contradiction", "entailment", "neutral")
    num_patterns = 4
    official = "MNLI-m.tsv"
    files = FILES | {
        "val": ("val.jsonl", "dev_matched.tsv"),
        "test": ("test.jsonl", "test_matched.tsv"),
    }

    def parts(self, example: Example) -> Parts:
        """The first sentence? MASK, the second."""
        first, second = strip_punctuation(example.texts[0]), example.texts[1]
        if self.pattern_id in (0, 2):
            return ['"', Cut(first), '" ?'], [MASK, ', "', Cut(second), '"']
        return [Cut(first), "?"], [MASK, ",", cut(second)]

    def verbalizers(self) -> tuple[str, ...]:
        """Wrong, Right, Maybe; No, Yes, Maybe from pattern 2 on."""
        if self.pattern_id < 2:
            return (" Wrong", " Right", " Maybe")
        return (*NO_YES, " Maybe")


@register_task("mnli-mm")
class MNLIMismatched(MNLI):
    """Validation and test on other genres than training's."""

    official = "MNLI-mm.tsv"
    files = FILES | {
        "val": ("val_mismatched.jsonl", "dev_mismatched.tsv"),
        "test": ("test_mismatched.jsonl", "test_mismatched.tsv"),
    }


@register_task("qnli")
class QNLI(PVP):
    """Does the sentence answer the question?"""

    fields = (("question",), ("sentence",))
    labels = ("entailment", "not_entailment")
    num_patterns = 3
    official = "QNLI.tsv"
    files = FILES

    def parts(self, example: Example) -> Parts:
        """The sentence, the question; in pattern 2 the other way round."""
        question, passage = strip_punctuation(example.texts[0]), example.texts[1]
        if self.pattern_id == 0:
            asked = [" Question:", cut(question), "? Do you know the answer?", MASK, "."]
            return [Cut(passage), *asked], []
        if self.pattern_id == 1:
            lead = " Based on the previous passage, do you know the answer"
            return [Cut(passage), lead, cut(question), "?", MASK, "."], []
        lead = "Based on the following passage, do you know the answer"
        return [lead, cut(question), "?", MASK, ".", cut(passage)], []

    def verbalizers(self) -> tuple[str, ...]:
        """Yes, No."""
        return (" Yes", " No")


class _Paraphrases(PVP):
    """Do two texts say the same? Labels 0 and 1, verbalizers No and Yes."""

    labels = ("0", "1")
    num_patterns = 2
    metric_names = ("accuracy", "f1")
    files = FILES

    def verbalizers(self) -> tuple[str, ...]:
        """No, Yes."""
        return NO_YES


@register_task("qqp")
class QQP(_Paraphrases):
    """Quora question pairs."""

    fields = (("question1",), ("question2",))
    label_fields = ("label", "is_duplicate")
    official = "QQP.tsv"

    def parts(self, example: Example) -> Parts:
        """The first question, then the second after a lead or MASK."""
        first, second = example.texts[0], Cut(lower_first(example.texts[1]))
        if self.pattern_id == 0:
            return [Cut(first)], [" Do you mean ", second, MASK, "."]
        return [Cut(first)], [MASK, ", ", second]


@register_task("mrpc")
class MRPC(_Paraphrases):
    """Microsoft research paraphrase corpus."""

    fields = (("sentence1", "#1 String"), ("sentence2", "#2 String"))
    label_fields = ("label", "Quality")
    official = "MRPC.tsv"

    def parts(self, example: Example) -> Parts:
        """The first sentence, then the second after MASK or inside a question."""
        first, second = example.texts[0], lower_first(example.texts[1])
        if self.pattern_id == 0:
            return [Cut(first)], [MASK, ", ", Cut(second)]
        return [Cut(first)], [" Does it mean that", cut(strip_punctuation(second)), "?", MASK]


@register_task("cola")
class CoLA(PVP):
    """Is a sentence acceptable?"""

    fields = (("sentence",),)
    labels = ("0", "1")
    num_patterns = 1
    metric_names = ("accuracy", "matthews")
    official = "CoLA.tsv"
    files = FILES
    columns = {
        "train.tsv": ("source", "label", "mark", "sentence"),
        "dev.tsv": ("source", "label", "mark", "sentence"),
    }

    def parts(self, example: Example) -> Parts:
        """The sentence, then `This is` MASK."""
        return ['"', Cut(example.texts[0]), '"', " This is", MASK, "."], []

    def verbalizers(self) -> tuple[str, ...]:
        """incorrect, correct."""
        return (" incorrect", " correct")
