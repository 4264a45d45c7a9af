"""SQuAD 2.0 in the pattern of the seed: the answer to a question about a passage is written."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from config.errors import ConfigError
from data_utils.bad_lines import BadLines
from tasks.registry import register_task
from tasks.superglue.data import UNLABELLED, Example, Record, read_object
from tasks.superglue.dataset import EncodedDataset
from tasks.superglue.encode import MASK, Cut
from tasks.superglue.options import Options
from tasks.superglue.pvp.base import PVP, Parts, prefix

NO_ANSWER = "N/A"  # what is written to a question that the passage does not answer


@register_task("squad")
class SQuAD(PVP):
    """Official files: {"data": [{"paragraphs": [{"context", "qas": [{"id", "question",

    "answers": [{"text"}]}]}]}]}.

    A language-model loss on the first answer. A question is right if one of its answers is what
    the likeliest tokens spell (`GenerativeTask`): greedy decoding would write it. Texts, windows of
    long passages and F1 are those of the task squad_v1.
    """

    fields = (("context",), ("question",))
    labels = ("0", "1")  # the answer's place among one choice; of validation: it is right
    num_patterns = 1
    own_answers = True
    metric_names = ("em",)
    submits = False  # the server takes texts
    clean = False
    files = {
        "train": ("train-v2.0.json",),
        "val": ("dev-v2.0.json",),
        "test": ("test-v2.0.json",),
    }

    def __init__(self, name: str, pattern_id: int, options: Options = Options()):  # noqa: B008
        """ConfigError without the pattern: there is nothing to choose from."""
        super().__init__(name, pattern_id, options)
        if not options.cloze:
            raise ConfigError(f"--task={name}: its answers are written; give --cloze-eval")

    @property
    def generative(self) -> bool:
        """Always: one answer stands against no other."""
        return True

    def records(self, path: Path, bad: BadLines) -> Iterator[Record]:
        """One a question; what is wrong around questions goes to `bad`."""
        for article in read_object(path).parts("data"):
            for passage in _inside(article, "paragraphs", bad):
                for asked in _inside(passage, "qas", bad):
                    asked.values = asked.values | {"context": passage.values.get("context")}
                    yield asked

    def examples(self, record: Record, split: str) -> list[Example]:
        """One an answer; of training the first. NO_ANSWER where there is none."""
        context = record.text("context", clean=False)
        question = record.text("question", clean=False)
        known = split != "test" or "answers" in record.values
        given = record.parts("answers", required=split != "test")
        answers = list(dict.fromkeys(x.text("text", clean=False) for x in given)) or [NO_ANSWER]
        idx = record.values.get("id", record.place)
        label = int(split != "train") if known else UNLABELLED
        return [
            Example(
                guid=f"{prefix(split)}-{idx}-{k}",
                where=f"{record.where}, {record.place.rstrip('.')}",
                texts=(context, question),
                label=label,
                idx=idx,
                choices=(answer,),
                group=idx,
            )
            for k, answer in enumerate(answers[:1] if split == "train" else answers)
        ]

    def parts(self, example: Example) -> Parts:
        """The passage, the question, MASK."""
        context, question = example.texts
        return [Cut(context), " " + question, MASK, "."], []

    def answers(self, example: Example) -> list[str]:
        """The one that is scored."""
        return [" " + text for text in example.choices]

    def scores(self, chosen: Sequence[int], dataset: EncodedDataset) -> dict[str, float]:
        """Exact match, in percent of the questions."""
        right: dict[object, int] = {}
        for question, written in zip(dataset.groups, chosen, strict=True):
            right[question] = right.get(question, 0) | written
        return {"em": 100.0 * sum(right.values()) / len(right)}


def _inside(record: Record, name: str, bad: BadLines) -> list[Record]:
    """The objects of a list; none where it is no list, which goes to `bad`."""
    try:
        return record.parts(name)
    except ValueError as error:
        bad(error)
        return []
