"""TextDataset: text as it goes on from step to step, for models with a memory (Transformer-XL).

    text     ENC x1 ... xn eos ENC y1 ... eos ...    documents side by side, none cropped
    chunk c  tokens[c S ... (c + 1) S - 1], and as targets those one further on

Row r of a global batch is a *lane*: a place in the text of its own, from which it reads one chunk a
step. The lanes start evenly spaced and go round. An ENC is no target, nor are a prompt's tokens.
Positions count from 1 at every ENC, so that a position says how many tokens of its own document a
token may see, itself included, however many chunks ago they were; padding has 0.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data_utils.batch import Batch
from data_utils.parts import Part
from data_utils.tokenization import Tokenizer

ADDED = 2  # tokens that a document has here besides its own: ENC and eos


@dataclass(frozen=True)
class TextChunk:
    """One chunk. All arrays are as long as the data set's chunks, [s] int64."""

    number: int
    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    counts: np.ndarray  # 1 on targets that count
    weight: float


class TextDataset:
    """`dataset[k * lanes + r]` is the chunk that lane r reads at step k.

    part: the documents, in the order of the text. lanes: samples of a global batch.
    seq_length: tokens of a chunk; the last one may be shorter, and is padded.
    once: a lane's chunks have weight 0 from where the next lane has begun.
    """

    def __init__(
        self, part: Part, tokenizer: Tokenizer, *, seq_length: int, lanes: int, once: bool = False
    ):
        self.part, self.seq_length, self.lanes, self.once = part, seq_length, lanes, once
        self._enc = tokenizer.get_command("ENC").Id
        self._eos = tokenizer.get_command("eos").Id
        self.num_tokens = part.num_tokens + ADDED * len(part)
        self.num_chunks = -(-(self.num_tokens - 1) // seq_length)

    @property
    def steps(self) -> int:
        """Until every chunk has been read."""
        return -(-self.num_chunks // self.lanes)

    def chunk_of(self, index: int) -> tuple[int, bool]:
        """The chunk of an index, and whether its lane has come to where the next one began."""
        step, lane = divmod(index, self.lanes)
        first, end = (x * self.num_chunks // self.lanes for x in (lane, lane + 1))
        return (first + step) % self.num_chunks, first + step >= end

    def __getitem__(self, index: int) -> TextChunk:
        number, again = self.chunk_of(index if index >= 0 else ~index)
        start, length = number * self.seq_length, self.seq_length
        tokens, positions, counts = np.zeros((3, length + 1), dtype=np.int64)
        filled = 0
        for ids, counted, first in self._pieces(start, min(start + length + 1, self.num_tokens)):
            place = slice(filled, filled + len(ids))
            tokens[place], counts[place] = ids, counted
            positions[place] = np.arange(first + 1, first + 1 + len(ids))
            filled += len(ids)
        inputs, targets = tokens[:-1].copy(), tokens[1:]
        inputs[filled - 1 :] = positions[filled - 1 :] = 0  # what has no target
        weight = float(index >= 0 and not (self.once and again))
        return TextChunk(number, inputs, targets, positions[:-1], counts[1:], weight)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """Parts of documents between two places of the text: ids, 1 on targets, the first's place.

        The place is that in its document, from 0.
        """
        number = bisect_right(range(len(self.part)), start, key=self._end)
        while start < stop:
            ids, counts = self._document(number)
            first = start - (self._end(number) - len(ids))
            last = min(len(ids), first + stop - start)
            yield ids[first:last], counts[first:last], first
            start += last - first
            number += 1

    def _document(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        """ENC, the ids of a document and eos; 1 on what is a target."""
        documents, numbers = self.part.documents, self.part.numbers
        number = place if numbers is None else int(numbers[place])
        ids = np.concatenate(([self._enc], documents[number], [self._eos])).astype(np.int64)
        counts = np.ones_like(ids)
        counts[: 1 + documents.prompt(number)] = 0
        return ids, counts

    def _end(self, place: int) -> int:
        """Where a document of the part ends in the text."""
        return int(self.part.ends[place]) + ADDED * (place + 1)


def collate_text(chunks: Sequence[TextChunk]) -> Batch:
    """Batch of chunks of one length. Positions are [b, s]; the model sees nothing ahead (sep 0)."""

    def stack(arrays: Iterable[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(list(arrays)))

    return Batch(
        tokens=stack(chunk.tokens for chunk in chunks),
        position_ids=stack(chunk.positions for chunk in chunks),
        attention_mask=torch.zeros(len(chunks), dtype=torch.long),
        labels=stack(chunk.targets for chunk in chunks),
        weight=torch.tensor([chunk.weight for chunk in chunks]),
        sample_ids=torch.tensor([chunk.number for chunk in chunks]),
        loss_mask=stack(chunk.counts for chunk in chunks).float(),
    )
