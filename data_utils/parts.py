"""Parts: which documents of corpora train, validate and test, and drawing from them.

The tables of a part - its documents, and where each ends when they lie side by side - are files
of the cache, memory-mapped: all processes share them.
"""

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from random import Random

import numpy as np

from config.errors import ConfigError
from data_utils.documents import Documents

# Which documents and samples validate does not depend on --seed: runs stay comparable, and a
# student is never validated on what its teacher was trained on.
SPLIT_SEED = 1234


class Part:
    """Documents that are drawn with a probability proportional to their tokens.

    numbers [documents]: those of `documents` that belong to the part, sorted; None: all. In another
        order they are a text, read from end to end, and have no weights.
    ends [documents]: sums of their lengths; computed if it is not given.
    weights: of each corpus, how many times as often as by its tokens; None: once.
    """

    def __init__(
        self,
        documents: Documents,
        numbers: np.ndarray | None = None,
        ends: np.ndarray | None = None,
        weights: Sequence[float] | None = None,
    ):
        self.documents, self.numbers = documents, numbers
        self.ends = np.cumsum(documents.lengths(numbers)) if ends is None else ends
        self._shares: list[float] = []
        if weights is not None:
            # Where the part's documents of each corpus begin and end, in tokens.
            starts = documents.starts
            cuts = starts if numbers is None else np.searchsorted(numbers, starts).tolist()
            self._borders = [int(self.ends[cut - 1]) if cut else 0 for cut in cuts]
            sizes = np.diff(self._borders).tolist()
            self._shares = list(accumulate(w * n for w, n in zip(weights, sizes, strict=True)))

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def num_tokens(self) -> int:
        """Tokens of the documents of this part."""
        return int(self.ends[-1])

    def draw(self, rng: Random) -> tuple[np.ndarray, int]:
        """A document's ids, and how many of them are its prompt."""
        place = self._place(rng)
        found = int(np.searchsorted(self.ends, place, side="right"))
        number = found if self.numbers is None else int(self.numbers[found])
        return self.documents[number], self.documents.prompt(number)

    def _place(self, rng: Random) -> int:
        if not self._shares:
            return rng.randrange(self.num_tokens)
        which = bisect_right(self._shares, rng.random() * self._shares[-1])
        which = min(which, len(self._shares) - 1)
        return rng.randrange(self._borders[which], self._borders[which + 1])


def split_documents(
    num_documents: int,
    shares: Sequence[float],
    split: str,
    order: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Numbers of the documents of each part, sorted: disjoint, at least one where the share is.

    order: a permutation of all numbers instead of the usual one. Raises ConfigError if there are
    fewer documents than parts.
    """
    parts = sum(share > 0 for share in shares)
    if num_documents < parts:
        raise ConfigError(
            f"--split={split}: --train-data has {num_documents} document(s), too few for {parts} "
            "parts; give --valid-data and --test-data, or --split=1,0,0"
        )
    if order is None:
        order = document_order(num_documents)
    total = sum(shares)
    sizes = [max(1, int(num_documents * share / total)) if share else 0 for share in shares[1:]]
    while sum(sizes) > num_documents - 1:
        sizes[sizes.index(max(sizes))] -= 1
    ends = np.cumsum([num_documents - sum(sizes), *sizes])[:-1]
    return [np.sort(numbers) for numbers in np.split(order, ends)]


def document_order(num_documents: int) -> np.ndarray:
    """The permutation that --split cuts."""
    return np.random.default_rng(SPLIT_SEED).permutation(num_documents)


def read_order(path: str, num_documents: int) -> np.ndarray:
    """The permutation of --load-splits. ConfigError if it is none of this many documents."""
    try:
        order = np.load(Path(path).expanduser(), allow_pickle=False)
    except (OSError, ValueError) as e:
        raise ConfigError(f"--load-splits={path}: cannot be read as a .npy file: {e}") from None
    if order.shape != (num_documents,) or not np.array_equal(
        np.sort(order), np.arange(num_documents)
    ):
        raise ConfigError(
            f"--load-splits={path}: must hold each number of 0 ... {num_documents - 1} once, for "
            f"the {num_documents} documents of --train-data; it has shape {list(order.shape)}"
        )
    return order


def keep_part(
    documents: Documents,
    numbers: np.ndarray,
    folder: Path,
    weights: Sequence[float] | None = None,
) -> Part:
    """The part with its tables in the cache folder, memory-mapped."""
    from filelock import FileLock

    content = [[str(cache) for cache in documents.caches], len(numbers)]
    state = hashlib.sha256(json.dumps(content).encode())
    state.update(np.ascontiguousarray(numbers, dtype=np.int64))
    paths = [folder / f"part-{state.hexdigest()[:32]}.{name}.npy" for name in ("numbers", "ends")]
    with FileLock(paths[0].with_suffix(".lock")):
        if not all(path.exists() for path in paths):
            order = np.argsort(numbers, kind="stable")
            lengths = np.empty(len(numbers), dtype=np.int64)
            lengths[order] = documents.lengths(numbers[order])
            ends = np.cumsum(lengths)
            for path, array in zip(paths, (numbers, ends), strict=True):
                save_array(path, array)
    numbers, ends = (np.load(path, mmap_mode="r") for path in paths)
    return Part(documents, numbers, ends, weights)


def save_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
