"""Documents: the token ids of corpora, read from memory-mapped shards in constant memory.

A corpus is a folder of the cache: Arrow files (`datasets.Dataset.from_file` opens each) with a
list of ids a document, and an index. Only the pages that are touched are in memory.
"""

import json
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

INFO, ENDS, PROMPTS = "info.json", "ends.npy", "prompts.npy"


class _CorpusTokens:
    """One corpus. `ends` [documents]: where each ends in the tokens of all shards."""

    def __init__(self, folder: Path):
        import pyarrow as pa

        self.info: dict[str, Any] = json.loads((folder / INFO).read_text(encoding="utf-8"))
        self.ends = np.load(folder / ENDS, mmap_mode="r")
        has_prompts = (folder / PROMPTS).exists()
        self.prompts = np.load(folder / PROMPTS, mmap_mode="r") if has_prompts else None
        self._values, self._starts = [], [0]
        for shard in self.info["shards"]:
            with pa.memory_map(str(folder / shard)) as source:
                chunks = pa.ipc.open_stream(source).read_all().column("tokens").chunks
            for chunk in chunks:
                self._values.append(chunk.values.to_numpy(zero_copy_only=True))
                self._starts.append(self._starts[-1] + len(self._values[-1]))

    def __getitem__(self, number: int) -> np.ndarray:
        start = int(self.ends[number - 1]) if number else 0
        chunk = bisect_right(self._starts, start) - 1
        first = self._starts[chunk]
        return self._values[chunk][start - first : int(self.ends[number]) - first]


class Documents(Sequence):
    """Token ids of the documents of one or several corpora. Pickles as a list of folders."""

    def __init__(self, caches: Sequence[Path]):
        self.caches = tuple(caches)
        self._corpora = [_CorpusTokens(folder) for folder in self.caches]
        counts = [len(corpus.ends) for corpus in self._corpora]
        self.starts = np.cumsum([0, *counts]).tolist()  # first document of each corpus; the end

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return sum(int(corpus.ends[-1]) for corpus in self._corpora)

    @property
    def has_prompts(self) -> bool:
        """Whether any document begins with tokens that are no targets."""
        return any(corpus.prompts is not None for corpus in self._corpora)

    def lengths(self, numbers: np.ndarray | None = None) -> np.ndarray:
        """Tokens of each document, or of those of sorted numbers [n], int64."""
        found = []
        for corpus, first, end in zip(self._corpora, self.starts, self.starts[1:], strict=False):
            lengths = np.diff(corpus.ends, prepend=0)
            if numbers is not None:
                own = np.searchsorted(numbers, [first, end])
                lengths = lengths[numbers[own[0] : own[1]] - first]
            found.append(lengths)
        return np.concatenate([np.empty(0, np.int64), *found])

    def prompt(self, number: int) -> int:
        """How many of the document's first tokens are no targets."""
        corpus, inside = self._find(number)
        return 0 if corpus.prompts is None else int(corpus.prompts[inside])

    def _find(self, number: int) -> tuple[_CorpusTokens, int]:
        which = bisect_right(self.starts, number) - 1
        return self._corpora[which], number - self.starts[which]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, number: int) -> np.ndarray:
        """Ids of a document [length]; nothing is copied."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        corpus, inside = self._find(number)
        return corpus[inside]

    def __reduce__(self) -> tuple[type, tuple]:
        return Documents, (self.caches,)
