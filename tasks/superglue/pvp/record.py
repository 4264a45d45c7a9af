"""ReCoRD: which entity of a passage stands at the placeholder of a query?"""

import random
from collections.abc import Iterable, Sequence

from tasks.registry import register_task
from tasks.superglue import metrics
from tasks.superglue.data import UNLABELLED, Example, Record
from tasks.superglue.dataset import EncodedDataset
from tasks.superglue.encode import MASK, PROMPT, Cut, Row
from tasks.superglue.pvp.base import PVP, Parts, prefix

MOST_CANDIDATES = 10  # of a training example, the answer among them
PLACEHOLDER = "@placeholder"


@register_task("record")
class ReCoRD(PVP):
    """Training: an example an answer, first of at most 10 candidates. Else all entities, sorted.

    Lines: {"idx", "passage": {"text", "entities": [{"start", "end"}]}, "qas": [{"idx", "query",
    "answers": [{"text"}]}]}. `end` is the entity's last character.
    """

    fields = (("text",), ("query",))
    labels = ("0", "1")
    num_patterns = 1
    own_answers = True
    variable_choices = True
    metric_names = ("em", "f1")
    official = "ReCoRD.jsonl"

    def examples(self, record: Record, split: str) -> list[Example]:
        """Those of each query; the candidates of training are drawn in `arrange`."""
        passage, number = record.part("passage"), record.idx()
        text = passage.text("text")
        entities = sorted({_entity(text, x) for x in passage.parts("entities")})
        text = text.replace("@highlight\n", "- ")
        found = []
        for asked in record.some_parts("qas"):
            query, k = asked.text("query"), asked.number("idx")
            if query.count(PLACEHOLDER) != 1:
                raise asked.error("query", f"must hold {PLACEHOLDER} once")
            given = asked.parts("answers", required=split != "test")
            answers = tuple(dict.fromkeys(x.text("text") for x in given))
            if split != "test" and not answers:
                raise asked.error("answers", "is empty; must have an answer")
            guid = f"{prefix(split)}-p{number}-q{k}"
            common = {"where": record.where, "texts": (text, query), "idx": k}
            if split == "train":
                wrong = [x for x in entities if x not in answers]
                found += [
                    Example(f"{guid}-a{i}", label=0, choices=(x, *wrong), answers=(x,), **common)
                    for i, x in enumerate(answers)
                ]
                continue
            if not entities:
                raise passage.error("entities", "is empty; must have a candidate")
            if answers and not _normal(answers) & _normal(entities):
                problem = f"has only {', '.join(map(repr, answers))}"
                raise asked.error("answers", f"{problem}; must have one of the entities")
            label = 1 if answers else UNLABELLED  # the seed's; the score looks at the answers
            found.append(
                Example(guid, label=label, choices=tuple(entities), answers=answers, **common)
            )
        return found

    def arrange(self, examples: list[Example], split: str) -> list[Example]:
        """Sorted by the number of candidates, of which training draws some wrong ones."""
        if split == "train":
            draw = random.Random(42)
            for x in examples:
                right, *wrong = x.choices
                if len(wrong) > MOST_CANDIDATES - 1:
                    draw.shuffle(wrong)
                x.choices = (right, *wrong[: MOST_CANDIDATES - 1])
        return sorted(examples, key=lambda x: len(x.choices))

    def parts(self, example: Example) -> Parts:
        """The passage, then the query with MASK for its placeholder."""
        passage, query = example.texts
        left, right = query.split(PLACEHOLDER)
        return [PROMPT, Cut(passage), " " + left.rstrip(), PROMPT, MASK, right], []

    def answers(self, example: Example) -> list[str]:
        """The candidates."""
        return [" " + text for text in example.choices]

    def classifier_rows(self, example: Example) -> list[Row]:
        """One a candidate: the passage, then the query and the candidate."""
        passage, query = example.texts
        return [Row([Cut(passage)], [Cut(query), " " + text]) for text in example.choices]

    def scores(self, chosen: Sequence[int], dataset: EncodedDataset) -> dict[str, float]:
        """Exact match and F1 of words, the best over a query's answers, in percent."""
        return metrics.record(chosen, dataset.choices, dataset.answers)

    def answer_name(self, choice: int, dataset: EncodedDataset, i: int) -> str | int:
        """The candidate's text."""
        return dataset.choices[i][choice]


def _normal(texts: Iterable[str]) -> set[str]:
    return {metrics.normalize_answer(text) for text in texts}


def _entity(text: str, place: Record) -> str:
    """The characters from `start` to `end`, which counts."""
    start, end = place.number("start"), place.number("end")
    if not 0 <= start <= end < len(text):
        raise place.error("end", f"is {end}, start {start}; the text has {len(text)} characters")
    return text[start : end + 1]
