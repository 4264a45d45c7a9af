"""StreamDataset: samples of a corpus that is larger than the disk, read with Hugging Face datasets.

The stream is cut into blocks of documents, in its own order, pass after pass. Each block makes the
same number of samples, which draw from its documents as from a corpus of its own. So a sample is a
pure function of (seed, index) and the stream. Of the blocks only the last ones are kept, tokenised,
in the cache, where all processes of a machine share them; the place in the stream where each one
ends is kept for good, so that a resumed run need not read again what came before.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_utils.bad_lines import BadLines
from data_utils.block import BlockSample
from data_utils.corpora import Corpus, clean_text
from data_utils.dataset import BlockDataset
from data_utils.english import is_english
from data_utils.infilling import BlankInfilling
from data_utils.parts import Part, save_array
from data_utils.reading import row_text
from data_utils.tokenization import Tokenizer

log = logging.getLogger(__name__)

SAMPLES = 4096  # of a block
CHARACTERS = 4  # of a token, about: a block has as many tokens as its samples
KEPT = 3  # blocks that stay in the cache


class BlockDocuments:
    """The documents of one block, memory-mapped: what Part asks of Documents."""

    has_prompts = True

    def __init__(self, path: Path):
        arrays = [
            np.load(path / f"{name}.npy", mmap_mode="r") for name in ("ids", "ends", "prompts")
        ]
        self._ids, self._ends, self._prompts = arrays
        self.starts = [0, len(self._ends)]

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> np.ndarray:
        return self._ids[int(self._ends[number - 1]) if number else 0 : int(self._ends[number])]

    def lengths(self, numbers: np.ndarray | None = None) -> np.ndarray:
        """Tokens of each document."""
        return np.diff(self._ends, prepend=0)

    def prompt(self, number: int) -> int:
        """How many of the document's first tokens are no targets."""
        return int(self._prompts[number])


class StreamDataset:
    """`dataset[i]` is sample i of an endless stream, `dataset[~i]` the same with weight 0.

    options: those of BlockDataset: seq_length, seed, ...
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        corrupt: BlankInfilling,
        cache_dir: Path,
        options: dict[str, Any],
        *,
        skip_bad_lines: bool = False,
        samples: int = SAMPLES,
    ):
        assert corpus.dataset is not None, "a corpus of files is no stream"
        self.corpus, self.tokenizer, self.corrupt, self.options = (
            corpus,
            tokenizer,
            corrupt,
            options,
        )
        self.samples, self._skip = samples, skip_bad_lines
        self._characters = CHARACTERS * samples * options["seq_length"]
        how = [corpus.text_key, corpus.format, corpus.english, self._characters, skip_bad_lines]
        key = json.dumps([corpus.dataset, how, tokenizer.fingerprint])
        self.folder = cache_dir / f"stream-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
        self._open: tuple[int, BlockDataset] | None = None

    def __getitem__(self, index: int) -> BlockSample:
        number = (index if index >= 0 else ~index) // self.samples
        if self._open is None or self._open[0] != number:
            self._open = number, self._dataset(number)
        return self._open[1][index]

    def _dataset(self, number: int) -> BlockDataset:
        part = Part(self._block(number))
        return BlockDataset(part, self.tokenizer, self.corrupt, **self.options)

    def _block(self, number: int) -> BlockDocuments:
        """The documents of a block, read now if no process has."""
        from filelock import FileLock

        path = self.folder / f"block-{number:06d}"
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "lock"):
            if not path.exists():
                self._read(number)
            return BlockDocuments(path)

    def _read(self, number: int) -> None:
        """Read on from the last known place to the end of a block, and keep this block."""
        ends = {int(p.stem.split("-")[1]): p for p in self.folder.glob("end-*.json")}
        before = max((n for n in ends if n < number), default=None)
        state = None if before is None else json.loads(ends[before].read_text(encoding="utf-8"))
        stream = _Stream(self.corpus, state, BadLines(self._skip))
        for block in range(0 if before is None else before + 1, number + 1):
            texts = stream.take(self._characters)
            if block == number:
                self._keep(number, texts)
            _write(self.folder / f"end-{block:06d}.json", json.dumps(stream.state()))
        stream.bad.report(f"{self.corpus.flag}={self.corpus.name}")

    def _keep(self, number: int, texts: list[tuple[str, str]]) -> None:
        pairs = [clean_text(text) for pair in texts for text in pair]
        ids, lengths = self.tokenizer.encode_arrays(pairs)
        prompts, lengths = lengths[::2], lengths.reshape(-1, 2).sum(1)
        own = lengths > 0
        temporary = self.folder / f".block-{number:06d}.{os.getpid()}.tmp"
        kind = np.uint16 if self.tokenizer.num_tokens <= 1 << 16 else np.int32
        arrays = {"ids": ids.astype(kind), "ends": np.cumsum(lengths[own]), "prompts": prompts[own]}
        for name, array in arrays.items():
            save_array(temporary / f"{name}.npy", array)
        temporary.rename(self.folder / f"block-{number:06d}")
        blocks = sorted(self.folder.glob("block-*"), key=lambda path: path.stat().st_mtime_ns)
        for old in blocks[:-KEPT]:
            for file in old.iterdir():
                file.unlink()
            old.rmdir()


class _Stream:
    """Texts of a data set, pass after pass, from a place in it."""

    def __init__(self, corpus: Corpus, state: dict[str, Any] | None, bad: BadLines):
        self.corpus, self.bad = corpus, bad
        self._passes = state["passes"] if state else 0
        self._rows = _open(corpus)
        if state:
            self._rows.load_state_dict(state["place"])
        self._texts = self._endless()

    def take(self, characters: int) -> list[tuple[str, str]]:
        """The next (prompt, text) pairs, until they have so many characters."""
        found, held = [], 0
        while held < characters:
            text = next(self._texts)
            found.append(text)
            held += len(text[0]) + len(text[1])
        return found

    def state(self) -> dict[str, Any]:
        """The place behind the last row that was taken."""
        return {"passes": self._passes, "place": self._rows.state_dict()}

    def _endless(self) -> Iterator[tuple[str, str]]:
        while True:
            read = 0
            # In a loader's worker plain iteration would give that worker its share of the files.
            for number, columns in enumerate(self._rows.iter(batch_size=1), start=1):
                row = {name: values[0] for name, values in columns.items()}
                try:
                    found = row_text(row, self.corpus.reading)
                except ValueError as e:
                    self.bad(ValueError(f"{self.corpus.name}: row {number} from here on: {e}"))
                    continue
                if found is None or (self.corpus.english and not is_english(found[1])):
                    continue
                read += 1
                yield found
            if not read and self._passes:
                raise ValueError(f"{self.corpus.flag}={self.corpus.name}: no text in the stream")
            self._passes += 1
            self._rows = _open(self.corpus)


def _open(corpus: Corpus) -> Any:
    try:
        from datasets import load_dataset
    except ImportError:
        raise ImportError(
            f"{corpus.flag}={corpus.name}: streaming needs datasets: pip install datasets"
        ) from None
    arguments = dict(corpus.dataset or ())
    if isinstance(pattern := arguments.get("data_files"), str):
        arguments["data_files"] = files_in_order(pattern)
    return load_dataset(**arguments, streaming=True)


def files_in_order(pattern: str) -> list[str]:
    """The files of a pattern, local or remote, by name: `load_dataset` keeps a folder's own order,

    which changes when something is written into it.
    """
    from fsspec.core import url_to_fs

    files, path = url_to_fs(pattern)
    found = sorted(files.glob(path)) if any(c in path for c in "*?[") else [path]
    return [files.unstrip_protocol(name) for name in found] or [pattern]


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
