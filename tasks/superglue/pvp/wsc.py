"""WSC: what does a pronoun stand for?"""

import dataclasses
import json
import logging
import string
from collections.abc import Iterator, Sequence

from tasks.registry import register_task
from tasks.superglue import metrics
from tasks.superglue.data import Example, Record
from tasks.superglue.dataset import EncodedDataset
from tasks.superglue.encode import MASK, PROMPT, Cut, Row
from tasks.superglue.pvp.base import PVP, Parts

log = logging.getLogger(__name__)

MOST_CANDIDATES = 9  # of a sample, beside the span in question
CHOOSING = ("generative", "mix")  # losses that compare the span with the line's other candidates


@register_task("wsc")
class WSC(PVP):
    """Winograd schemas. Lines: {"text", "target": {"span1_text", "span1_index", "span2_text",

    "span2_index"}, "label", "candidates": [{"text"}]}. Span 2 is the pronoun, indices count words.
    Or {"text", "pronoun", "candidate", "label"}, with a pronoun that the text has once.

    --loss-func=mix or generative, with `candidates` (--wsc-negative in the official recipe): the
    span is chosen among them. Any other loss: the span is written (`GenerativeTask`). Both learn
    from true examples only. A classification head learns from all.
    """

    fields = (("text",),)
    labels = ("False", "True")
    num_patterns = 3
    own_answers = True
    variable_choices = True
    official = "WSC.jsonl"

    @property
    def generative(self) -> bool:
        """With the losses that compare nothing."""
        return self.options.cloze and self.options.loss not in CHOOSING

    @property
    def row_per_choice(self) -> bool:
        """A classification head reads the text and its span."""
        return False

    def examples(self, record: Record, split: str) -> list[Example]:
        """One: `texts` are the text with its pronoun in stars, the pronoun and the span."""
        (example,) = super().examples(record, split)
        loose = "target" not in record.values and "candidate" in record.values
        target = _loose_target(record) if loose else record.part("target")
        pronoun, span = target.text("span2_text"), target.text("span1_text")
        words = _starred(example.texts[0].split(), pronoun, target)
        given = record.parts("candidates", required=False)
        candidates = tuple(dict.fromkeys(x.text("text") for x in given))
        texts = (" ".join(words), pronoun, span)
        group = record.line  # an example may become several samples
        return [dataclasses.replace(example, texts=texts, choices=candidates, group=group)]

    def arrange(self, examples: list[Example], split: str) -> list[Example]:
        """Cloze: training has true examples only, of at most 9 candidates each."""
        if not self.options.cloze:
            return examples
        if split == "train":
            examples = [x for x in examples if x.label == 1]
        if self.generative:
            return examples
        self._warn_of_lone_spans(examples, split)
        found = [y for x in examples for y in _in_groups(x)]
        if split == "train":
            for x in found:
                x.label = 0  # the first choice
        return found

    def _warn_of_lone_spans(self, examples: list[Example], split: str) -> None:
        lone = [x.where for x in examples if not x.choices]
        if lone and split != "train":
            log.warning(
                "%s: %d of %d examples have no other candidates (field 'candidates'), and are true "
                "whatever the model says; without --loss-func=%s the span is written instead",
                *(lone[0], len(lone), len(examples), self.options.loss),
            )

    def parts(self, example: Example) -> Parts:
        """The text, and a sentence or a question about its pronoun."""
        text, pronoun, _ = example.texts
        if self.pattern_id == 2:
            asks = f" Question: In the passage above, what does the pronoun '*{pronoun}*' refer to?"
            return [PROMPT, Cut(text), PROMPT, asks, PROMPT, " Answer:", MASK, "."], []
        lead = " The" if self.pattern_id == 0 else " In the previous sentence, the"
        told = f"{lead} pronoun '*{pronoun}*' refers to"
        return [PROMPT, Cut(text), PROMPT, told, PROMPT, MASK, "."], []

    def answers(self, example: Example) -> list[str]:
        """The span in question; after it the other candidates, where there is a choice."""
        others = () if self.generative else example.choices
        return [" " + text for text in (example.texts[2], *others)]

    def classifier_rows(self, example: Example) -> list[Row]:
        """The text, then the span."""
        text, _, span = example.texts
        return [Row([Cut(text)], [Cut(span)])]

    def scores(self, chosen: Sequence[int], dataset: EncodedDataset) -> dict[str, float]:
        """Accuracy, in percent, of whole examples."""
        found = self._truths(chosen, dataset)
        labels = dict(zip(dataset.groups, dataset.labels.tolist(), strict=True))
        return {"accuracy": metrics.accuracy(list(found.values()), [labels[x] for x in found])}

    def submission_lines(self, chosen: Sequence[int], dataset: EncodedDataset) -> list[str]:
        """One line an example."""
        idx = dict(zip(dataset.groups, dataset.idx, strict=True))
        return [
            json.dumps({"idx": idx[group], "label": self.labels[truth]})
            for group, truth in self._truths(chosen, dataset).items()
        ]

    def _truths(self, chosen: Sequence[int], dataset: EncodedDataset) -> dict[object, int]:
        """Example -> 1 if the span won in every sample of it."""
        comparing = self.options.cloze and not self.generative
        found: dict[object, int] = {}
        for group, choice in zip(dataset.groups, chosen, strict=True):
            found[group] = found.get(group, 1) & (int(choice == 0) if comparing else choice)
        return found


def _loose_target(record: Record) -> Record:
    """The spans of a line that says no indices. ValueError for a pronoun that is not there once."""
    name, pronoun = "pronoun", record.text("pronoun")
    words = [word.strip(string.punctuation) for word in record.text("text").split()]
    places = [i for i, word in enumerate(words) if word.lower() == pronoun.lower()]
    if len(places) != 1:
        problem = f"is {pronoun!r}, which the text has {len(places)} times"
        raise record.error(name, f"{problem}; give 'target' with its span2_index")
    spans = {"span2_text": words[places[0]], "span2_index": places[0]}
    return Record(record.path, record.line, spans | {"span1_text": record.text("candidate")})


def _starred(words: list[str], pronoun: str, target: Record) -> list[str]:
    """The words with the pronoun in stars; its index may be wrong by one.

    What is glued to the pronoun becomes a word of its own. ValueError if it is not there.
    """
    index = target.number("span2_index")
    near = [i for i in (index, index - 1, index + 1) if 0 <= i < len(words)]
    for i in near:
        if words[i] == pronoun:
            return [*words[:i], f"*{pronoun}*", *words[i + 1 :]]
    for i in near[:1]:
        if words[i].startswith(pronoun):
            return [*words[:i], f"*{pronoun}*", words[i][len(pronoun) :], *words[i + 1 :]]
    raise target.error("span2_index", f"is {index}, where the text has no word {pronoun!r}")


def _in_groups(x: Example) -> Iterator[Example]:
    """The example, or if it has too many candidates one for each group of them."""
    if len(x.choices) <= MOST_CANDIDATES:
        yield x
        return
    for start in range(0, len(x.choices), MOST_CANDIDATES):
        group = x.choices[start : start + MOST_CANDIDATES]
        # The last one is filled up from the front.
        yield dataclasses.replace(x, choices=group + x.choices[: MOST_CANDIDATES - len(group)])
