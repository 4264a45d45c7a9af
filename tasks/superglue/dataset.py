"""The samples of one split, encoded once; and how some of them become a batch."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from data_utils.batch import Batch
from tasks.superglue.data import UNLABELLED, Example
from tasks.superglue.encoded import Encoded, Sample


class EncodedDataset:
    """`dataset[i]` is a sample, `dataset[~i]` the same with weight 0, to fill a last batch."""

    def __init__(self, examples: Sequence[Example], encoded: Encoded):
        self.encoded = encoded
        self.labels = np.array([x.label for x in examples], dtype=np.int64)
        self.guids = [x.guid for x in examples]
        self.idx = [x.idx for x in examples]
        self.choices = [x.choices for x in examples]
        self.answers = [x.answers for x in examples]
        self.groups = [x.group for x in examples]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> bool:
        """Is every label known?"""
        return bool((self.labels != UNLABELLED).all())

    def __getitem__(self, i: int) -> Sample:
        weight, i = (1.0, i) if i >= 0 else (0.0, ~i)
        if i >= len(self):
            raise IndexError(i)
        return self.encoded.sample(i, int(self.labels[i]), weight)

    @property
    def max_choices(self) -> int:
        """Choices of the sample that has most."""
        return int(self.encoded.num_choices.max())

    @property
    def num_truncated(self) -> int:
        """Rows that lost tokens."""
        return self.encoded.num_truncated


def majority_class_accuracy(dataset: EncodedDataset) -> float:
    """Accuracy, in percent, of always answering the split's most frequent label."""
    assert dataset.labelled, "the split has no labels"
    return 100.0 * float(np.bincount(dataset.labels).max()) / len(dataset)


@dataclass(frozen=True)
class Collator:
    """Samples -> Batch, padded on the right to the longest row.

    eos, sop: command ids. verbalizers: ids of the labels' words, [] for multi-token answers.
    """

    eos: int
    sop: int
    cloze: bool
    verbalizers: tuple[int, ...] = ()
    block_position: bool = True  # False: block position 1 on all of the answer
    fast_decode: bool = False
    several_rows: bool = False  # a choice dimension, even of one choice
    seat_after: bool = False  # room for one token after the context, which a head may read

    def __call__(
        self,
        samples: Sequence[Sample],
        least_choices: int = 1,
        most_choices: int | None = None,
    ) -> Batch:
        """A choice that is missing in a sample is a copy of its choice 0, masked out.

        As many choices as the sample with most has, or `least_choices`. A sample with more than
        `most_choices` loses its last ones; its label, if it is one of these, takes the first seat.
        """
        b = len(samples)
        if most_choices is not None:
            samples = [_with_at_most(most_choices, x) for x in samples]
        num_choices = [x.num_choices for x in samples]
        c = max([least_choices, *num_choices]) if self.several_rows else 1
        rows = c
        if self.several_rows and samples[0].segments is not None:
            rows = max(len(x.contexts) for x in samples)
        fields = self._fast(samples, c) if self.fast_decode else self._full(samples, rows)
        if self.several_rows and samples[0].segments is not None:
            fields["segments"] = _segments(samples, c, rows)
        choice_mask = None
        if self.several_rows and min(num_choices) < c:
            choice_mask = torch.tensor([[float(k < n) for k in range(c)] for n in num_choices])
        if self.verbalizers:
            fields["target_ids"] = torch.tensor(self.verbalizers).expand(b, -1).clone()
        return Batch(
            labels=torch.tensor([x.label for x in samples]),
            weight=torch.tensor([x.weight for x in samples]),
            sample_ids=torch.tensor([x.sample_id for x in samples]),
            choice_mask=choice_mask,
            **fields,
        )

    def _width(self, x: Sample) -> int:
        if not self.cloze:
            return max(len(context) for context in x.contexts) + self.seat_after
        return max(len(c) + max(1, len(a)) for c, a in zip(x.contexts, x.answers, strict=True))

    def _full(self, samples: Sequence[Sample], c: int) -> dict[str, Tensor]:
        real = [[k if k < len(x.contexts) else 0 for k in range(c)] for x in samples]
        seats = [(x, k) for x, of_sample in zip(samples, real, strict=True) for k in of_sample]
        rows = _Rows(self, len(seats), max(self._width(x) for x in samples))
        rows.put_contexts([x.contexts[k] for x, k in seats])
        if self.cloze:
            rows.put_answers([x.answers[k] for x, k in seats], [x.masks[k] for x, k in seats])
        lead = (len(samples), c) if self.several_rows else (len(samples),)
        fields = {
            "tokens": rows.tokens.reshape(*lead, -1),
            "position_ids": rows.positions.reshape(*lead, 2, -1),
            "attention_mask": rows.sep.reshape(lead),
        }
        if self.cloze:
            fields["logit_mask"] = rows.scored.reshape(*lead, -1)
            fields["target_ids"] = rows.targets.reshape(*lead, -1)
        return {name: torch.from_numpy(array) for name, array in fields.items()}

    def _fast(self, samples: Sequence[Sample], c: int) -> dict[str, Tensor]:
        b = len(samples)
        rows = _Rows(self, b, max(len(x.contexts[0]) for x in samples))
        rows.put_contexts([x.contexts[0] for x in samples])
        longest = max(len(answer) for x in samples for answer in x.answers)
        answers = _Rows(self, b * c, longest)
        answers.put_answers(
            [x.answers[k if k < len(x.answers) else 0] for x in samples for k in range(c)],
            [x.masks[0] for x in samples for _ in range(c)],
        )
        fields = {
            "tokens": rows.tokens,
            "position_ids": rows.positions,
            "attention_mask": rows.sep,
            "dec_tokens": answers.tokens.reshape(b, c, -1),
            "dec_position_ids": answers.positions.reshape(b, c, 2, -1),
            "dec_attention_mask": np.repeat(rows.sep, c).reshape(b, c),
            "dec_target_ids": answers.targets.reshape(b, c, -1),
            "dec_logit_mask": answers.scored.reshape(b, c, -1),
        }
        return {name: torch.from_numpy(array) for name, array in fields.items()}


def _with_at_most(most: int, x: Sample) -> Sample:
    """The sample with its first choices only, the label's among them."""
    if x.num_choices <= most:
        return x
    assert x.segments is None, "choices of cut answers are never left out"
    kept = [x.label if x.label >= most else 0, *range(1, most)]
    one_context = len(x.contexts) == 1
    return dataclasses.replace(
        x,
        num_choices=most,
        contexts=x.contexts if one_context else [x.contexts[k] for k in kept],
        masks=x.masks if one_context else [x.masks[k] for k in kept],
        answers=[x.answers[k] for k in kept],
        label=0 if x.label >= most else x.label,
    )


def _segments(samples: Sequence[Sample], c: int, rows: int) -> Tensor:
    """float [b, c, r]: 1 where a row is a part of a choice's answer."""
    found = torch.zeros(len(samples), c, rows)
    for i, x in enumerate(samples):
        found[i, x.segments, range(len(x.segments))] = 1.0
    return found


class _Rows:
    """Padded rows under construction: tokens [r, s], positions [r, 2, s], targets [r, s], ..."""

    def __init__(self, collator: Collator, num_rows: int, width: int):
        self.collator = collator
        self.tokens = np.full((num_rows, width), collator.eos, dtype=np.int64)
        self.positions = np.zeros((num_rows, 2, width), dtype=np.int64)
        self.targets = np.zeros((num_rows, width), dtype=np.int64)
        self.scored = np.zeros((num_rows, width), dtype=np.int64)
        self.sep = np.zeros(num_rows, dtype=np.int64)

    def put_contexts(self, contexts: Sequence[np.ndarray]) -> None:
        """A context a row; rows that follow each other and share one are filled at once."""
        first = 0
        for _, group in groupby(contexts, key=id):
            end = first + len(list(group))
            self.tokens[first:end, : len(contexts[first])] = contexts[first]
            self.sep[first:end] = len(contexts[first])
            first = end
        columns = np.arange(self.tokens.shape[1])
        np.multiply(columns, columns < self.sep[:, None], out=self.positions[:, 0])

    def put_answers(self, answers: Sequence[np.ndarray], masks: Sequence[int]) -> None:
        """After each context [sop] and the answer but for its last token; [sop] alone scores too.

        masks: the answers' position.
        """
        lengths = np.array([len(answer) for answer in answers])
        seats = np.maximum(lengths, 1)
        steps = np.arange(int(seats.max()))
        rows, step = np.nonzero(steps < seats[:, None])
        columns = self.sep[rows] + step
        self.positions[rows, 0, columns] = np.array(masks)[rows]
        self.positions[rows, 1, columns] = step + 1 if self.collator.block_position else 1
        self.scored[rows, columns] = 1
        self.tokens[np.arange(len(answers)), self.sep] = self.collator.sop
        rows, step = np.nonzero(steps < lengths[:, None])
        columns, ids = self.sep[rows] + step, np.concatenate(answers)
        self.targets[rows, columns] = ids
        inner = step + 1 < lengths[rows]
        self.tokens[rows[inner], columns[inner] + 1] = ids[inner]
