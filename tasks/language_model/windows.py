"""Windows of long texts, and batches of them.

    [ENC] prompt [mask]  |  [sop] w1 w2 ...

Window i holds the tokens from i * o on, W of them; W is the sequence length - 1. Its prompt are the
first W - o, the last o are predicted, so that each token is predicted once. Of the first window all
but the first token are predicted. Unidirectional: the prompt is the first token, the others are
read causally; what an earlier window has predicted does not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data_utils.batch import Batch


@dataclass(slots=True)
class Window:
    """Ids of one row, and from which target on they count."""

    context: np.ndarray  # [ENC] prompt [mask], and what follows the mask
    mask: int  # its position
    targets: np.ndarray
    first: int = 0
    sample_id: int = 0
    weight: float = 1.0


@dataclass(frozen=True)
class Cut:
    """How texts become windows."""

    length: int  # W + 1
    step: int  # o
    unidirectional: bool
    enc: int
    mask: int

    def number(self, tokens: int) -> int:
        """Windows of a text with so many tokens, two at least."""
        return max(0, -(-(tokens - self.length + 1) // self.step)) + 1

    def window(self, ids: np.ndarray, i: int) -> Window:
        """Window i of a text."""
        width = self.length - 1
        part = ids[i * self.step : i * self.step + width]
        new = 1 if i == 0 else width - self.step  # where those begin that count
        prompt = 1 if self.unidirectional else new
        context = np.concatenate([[self.enc], part[:prompt], [self.mask]])
        return Window(context, len(context) - 1, part[prompt:], new - prompt)


@dataclass(frozen=True)
class Collator:
    """Windows -> Batch, padded on the right."""

    pad: int
    sop: int
    block_position: bool = True

    def __call__(self, windows: Sequence[Window]) -> Batch:
        """labels and loss_mask [b, s]; separators [b] are the lengths of the contexts."""
        width = max(len(x.context) + len(x.targets) for x in windows)
        shape = (len(windows), width)
        tokens, labels = (np.full(shape, self.pad, dtype=np.int64) for _ in range(2))
        positions = np.zeros((len(windows), 2, width), dtype=np.int64)
        counted = np.zeros(shape, dtype=np.float32)
        for r, x in enumerate(windows):
            sep, stop = len(x.context), len(x.context) + len(x.targets)
            tokens[r, :sep], tokens[r, sep] = x.context, self.sop
            tokens[r, sep + 1 : stop] = x.targets[:-1]
            labels[r, sep:stop] = x.targets
            counted[r, sep + x.first : stop] = 1.0
            positions[r, 0, :sep], positions[r, 0, sep:stop] = np.arange(sep), x.mask
            blocks = np.arange(1, stop - sep + 1) if self.block_position else 1
            positions[r, 1, sep:stop] = blocks
        return Batch(
            tokens=torch.from_numpy(tokens),
            position_ids=torch.from_numpy(positions),
            attention_mask=torch.tensor([len(x.context) for x in windows]),
            labels=torch.from_numpy(labels),
            loss_mask=torch.from_numpy(counted),
            weight=torch.tensor([x.weight for x in windows]),
            sample_ids=torch.tensor([x.sample_id for x in windows]),
        )
