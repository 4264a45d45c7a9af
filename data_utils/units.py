"""UnitTable: pieces of text whose ids depend on nothing around them are encoded once."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, count, islice

import numpy as np

CACHED_UNITS = 500_000  # pieces of text that a table remembers: about 100 MB
CACHED_IDS = 4_000_000  # and their ids, where the pieces are long

Ids = tuple[np.ndarray, np.ndarray]  # of all units in one array [ids] int32, and [units] how many


def flatten(found: Sequence[Sequence[int]]) -> Ids:
    """Lists of ids in one array."""
    lengths = np.fromiter(map(len, found), dtype=np.int64, count=len(found))
    total = int(lengths.sum())
    return np.fromiter(chain.from_iterable(found), dtype=np.int32, count=total), lengths


def gather(ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The stretches [starts, starts + lengths) of ids, one after the other."""
    ends = np.cumsum(lengths)
    shift = np.repeat(starts - ends + lengths, lengths)
    shift += np.arange(len(shift))
    return ids[shift]


def split_at(ids: np.ndarray, separator: int) -> Ids:
    """The stretches before each separator, without the separators."""
    ends = np.flatnonzero(ids == separator)
    return ids[ids != separator], np.diff(ends, prepend=-1) - 1


def merge(chosen: np.ndarray, some: Ids, others: Ids) -> Ids:
    """Ids of units in their order: `some` are those where `chosen` [units] bool is, in order."""
    starts, lengths = np.empty((2, len(chosen)), dtype=np.int64)
    for where, (_, n), base in ((chosen, some, 0), (~chosen, others, len(some[0]))):
        starts[where], lengths[where] = base + np.cumsum(n) - n, n
    return gather(np.concatenate([some[0], others[0]]), starts, lengths), lengths


class UnitTable:
    """The ids of pieces of text met so far: a number for each, and arrays over the numbers."""

    def __init__(self) -> None:
        self._clear()

    def encode(self, encode: Callable[[list[str]], Ids], units: Iterable[str]) -> Ids:
        """Ids of all units in one array, and the length of each. `encode` is asked for new ones."""
        if len(self._numbers) > CACHED_UNITS or len(self._ids) > CACHED_IDS:
            self._clear()
        known = len(self._numbers)
        numbers = np.fromiter(map(self._numbers.__getitem__, units), dtype=np.int64)
        if len(self._numbers) > known:
            ids, lengths = encode(list(islice(self._numbers, known, None)))
            starts = len(self._ids) + np.cumsum(lengths) - lengths
            self._starts = np.concatenate([self._starts, starts])
            self._lengths = np.concatenate([self._lengths, lengths])
            self._ids = np.concatenate([self._ids, ids])
        taken = self._lengths[numbers]
        return gather(self._ids, self._starts[numbers], taken), taken

    def _clear(self) -> None:
        self._numbers: defaultdict[str, int] = defaultdict(count().__next__)
        self._starts = np.empty(0, np.int64)
        self._lengths = np.empty(0, np.int64)
        self._ids = np.empty(0, np.int32)
