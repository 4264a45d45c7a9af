"""SST-2: is a review positive? SuperGLUE's .jsonl or GLUE's .tsv files."""

from tasks.registry import register_task
from tasks.superglue.data import Example
from tasks.superglue.encode import MASK, Cut
from tasks.superglue.pvp.base import PVP, Parts


@register_task("sst-2")
class SST2(PVP):
    """Stanford Sentiment Treebank, two labels."""

    fields = (("sentence",),)
    labels = ("0", "1")
    num_patterns = 2
    official = "SST-2.tsv"
    files = {
        "train": ("train.jsonl", "train.tsv"),
        "val": ("val.jsonl", "dev.tsv"),
        "test": ("test.jsonl", "test.tsv"),
    }

    def parts(self, example: Example) -> Parts:
        """The review, then `It was` MASK."""
        return [Cut(example.texts[0]), " It was", MASK, "."], []

    def verbalizers(self) -> tuple[str, ...]:
        """terrible, great; bad, good for pattern 1."""
        return (" bad", " good") if self.pattern_id else (" terrible", " great")
