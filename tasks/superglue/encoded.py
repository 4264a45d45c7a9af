"""Encoded: the ids of a split's samples in a few flat arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np


@dataclass(slots=True)
class Sample:
    """One example as ids. c choices; one context for all with fast decoding."""

    num_choices: int  # c
    contexts: list[np.ndarray]  # int32, up to and including [eos]; rows may share one
    masks: list[int]  # position of the mask in each context; 0 without cloze
    answers: list[np.ndarray]  # int32, ending in [eop]; empty: one token, or no cloze
    label: int
    sample_id: int
    weight: float = 1.0
    segments: list[int] | None = None  # choice of each answer, where they are cut


class Ragged:
    """Rows of ids of unequal length as one int32 array and offsets."""

    def __init__(self, lists: Sequence[Sequence[int]], which: Sequence[int] | None = None):
        """which: the list of each row; None: a row a list."""
        self.start = np.zeros(len(lists) + 1, dtype=np.int64)
        np.cumsum([len(x) for x in lists], out=self.start[1:])
        self.flat = np.fromiter(chain.from_iterable(lists), np.int32, count=int(self.start[-1]))
        self.which = np.arange(len(lists)) if which is None else np.array(which, dtype=np.int64)

    def __getitem__(self, i: int) -> np.ndarray:
        return self._list(self.which[i])

    def __len__(self) -> int:
        return len(self.which)

    def rows(self, first: int, end: int) -> list[np.ndarray]:
        """Rows first ... end - 1; those of one list are one object."""
        which = self.which[first:end].tolist()
        lists = {k: self._list(k) for k in which}
        return [lists[k] for k in which]

    def _list(self, k: int) -> np.ndarray:
        return self.flat[self.start[k] : self.start[k + 1]]


@dataclass(slots=True)
class Encoded:
    """All samples of a split."""

    contexts: Ragged
    answers: Ragged
    masks: np.ndarray  # int32 [contexts]
    segments: np.ndarray | None  # int32 [answers]: the choice that each is a part of
    num_choices: np.ndarray  # int32 [samples]
    first_context: np.ndarray  # int64 [samples + 1]
    first_answer: np.ndarray  # int64 [samples + 1]
    num_truncated: int = 0  # rows that lost tokens
    num_squeezed: int = 0  # those among them that also lost text meant to stay, as a COPA choice

    def sample(self, i: int, label: int, weight: float) -> Sample:
        """Sample i."""
        rows = self.first_context[i : i + 2].tolist()
        answers = self.first_answer[i : i + 2].tolist()
        return Sample(
            num_choices=int(self.num_choices[i]),
            contexts=self.contexts.rows(*rows),
            masks=self.masks[slice(*rows)].tolist(),
            answers=self.answers.rows(*answers),
            label=label,
            sample_id=i,
            weight=weight,
            segments=None if self.segments is None else self.segments[slice(*answers)].tolist(),
        )
