"""From examples to ids: contexts of one length, blanks, and the pieces that fill them.

    [ENC] ... [mask] ... [pad] ...   |   [sop] w1 w2 ...          S tokens, then at most T
    0 1 2 ...                S - 1   |   mask's position          positions
    0 0 0 ...                    0   |   1 2 3 ...                block positions

All S positions of the context are visible, its padding included, as in GLM: official checkpoints
were fine-tuned so. A piece's targets are w1 w2 ... [eop]; cut to T, a long one has no [eop].
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from data_utils.batch import Batch
from data_utils.tokenization import Tokenizer


@dataclass(frozen=True, slots=True)
class Lengths:
    """S and T, in tokens."""

    source: int
    target: int


@dataclass(slots=True)
class Row:
    """One row: a context, and a piece for each of its blanks."""

    example: int  # index of the example it was made of
    context: list[int]  # at most S
    blanks: list[int]  # positions of the masks
    pieces: list[list[int]]  # [eop] included
    truncated: bool = False  # lost tokens


@dataclass(slots=True)
class Ids:
    """A tokenizer with the command ids at hand."""

    tokenizer: Tokenizer
    command: dict[str, int] = field(init=False)

    def __post_init__(self):
        names = ("ENC", "MASK", "sop", "eop", "pad", "gMASK", "sMASK")
        known = self.tokenizer.commands
        self.command = {name: known[name].Id for name in names if name in known}

    def mask(self, preferred: str = "sMASK") -> int:
        """The id of a blank: that of --task-mask where the tokenizer has it, else [MASK]."""
        return self.command.get(preferred, self.command["MASK"])

    @property
    def masks(self) -> tuple[int, ...]:
        """Ids of every kind of mask."""
        return tuple(self.command[n] for n in ("MASK", "gMASK", "sMASK") if n in self.command)

    def of(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, tokenized in one call."""
        return self.tokenizer.encode_batch(list(texts))

    def one(self, text: str) -> list[int]:
        """The ids of a text."""
        return self.tokenizer.encode(text)

    def ended(self, piece: Sequence[int]) -> list[int]:
        """With [eop]."""
        return [*piece, self.command["eop"]]


@dataclass(slots=True)
class Sample:
    """One row as the collator takes it."""

    row: Row
    sample_id: int
    weight: float = 1.0


@dataclass(frozen=True)
class Collator:
    """Samples -> Batch: contexts padded to S, targets to the longest of the batch."""

    ids: Ids
    lengths: Lengths
    block_position: bool = True

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """`labels` and `loss_mask` [b, s]; `attention_mask` is S in every row."""
        source, pad = self.lengths.source, self.ids.command["pad"]
        targets = [self._targets(x.row) for x in samples]
        width = source + max(len(tokens) for tokens, *_ in targets)
        shape = (len(samples), width)
        tokens = np.full(shape, pad, dtype=np.int64)
        positions = np.zeros((len(samples), 2, width), dtype=np.int64)
        positions[:, 0, :source] = np.arange(source)
        labels, counted = np.full(shape, pad, dtype=np.int64), np.zeros(shape, dtype=np.float32)
        for r, (x, (inputs, wanted, places, blocks)) in enumerate(
            zip(samples, targets, strict=True)
        ):
            tokens[r, : len(x.row.context)] = x.row.context
            own = slice(source, source + len(inputs))
            tokens[r, own], labels[r, own], counted[r, own] = inputs, wanted, 1.0
            positions[r, 0, own], positions[r, 1, own] = places, blocks
        return Batch(
            tokens=torch.from_numpy(tokens),
            position_ids=torch.from_numpy(positions),
            attention_mask=torch.full((len(samples),), source),
            labels=torch.from_numpy(labels),
            loss_mask=torch.from_numpy(counted),
            weight=torch.tensor([x.weight for x in samples]),
            sample_ids=torch.tensor([x.sample_id for x in samples]),
        )

    def _targets(self, row: Row) -> tuple[list[int], list[int], list[int], list[int]]:
        """Inputs, targets, positions and block positions of all pieces, cut to T together."""
        inputs: list[int] = []
        wanted: list[int] = []
        places: list[int] = []
        blocks: list[int] = []
        for blank, piece in zip(row.blanks, row.pieces, strict=True):
            inputs += [self.ids.command["sop"], *piece[:-1]]
            wanted += piece
            places += [blank] * len(piece)
            blocks += range(1, len(piece) + 1) if self.block_position else [1] * len(piece)
        longest = self.lengths.target
        return inputs[:longest], wanted[:longest], places[:longest], blocks[:longest]
