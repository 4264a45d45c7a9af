"""CarriedMemory: the states of one batch as the memory of the next (Transformer-XL, 1901.02860).

A model that has one (`GLMModel.carried`) needs no memory from its caller. The training loop says
which micro-batch follows; how many states are kept is the model's `mem_length`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Carried:
    """The memory of the rows of one micro-batch."""

    moment: int  # the step that its last states are of
    states: list[Tensor]  # [b, m, h] each: embeddings and every layer's output, without gradient
    valid: Tensor  # int64 [b]: how many of the last states may be seen


class CarriedMemory:
    """Of each slot (micro-batch of a step) the states that its rows had a step ago.

    All forwards of a micro-batch see the same memory, and the first one's states are kept. A model
    that was not asked a step ago has an empty memory: what it has is not what lies just before.
    """

    def __init__(self) -> None:
        self.slots: dict[int, Carried] = {}
        self._slot, self._moment, self._open = 0, 0, False
        self._old: Carried | None = None

    def begin(self, slot: int, moment: int) -> None:
        """The forwards that follow are of this micro-batch of step `moment`."""
        old = self.slots.get(slot)
        self._old = old if old is not None and old.moment == moment - 1 else None
        self._slot, self._moment, self._open = slot, moment, True

    def before(self, mask: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        """Mask [b, 1, s, at least m + s] -> (memory, mask [b, 1, s, m + s] of what it may see)."""
        length = mask.size(2)
        if self._old is None:
            return (), mask[..., -length:]
        states, valid = self._old.states, self._old.valid
        memory = states[0].size(1)
        age = torch.arange(memory, 0, -1, device=valid.device)
        seen = F.pad(age <= valid[:, None], (0, length), value=True)
        return states, (mask[..., -(memory + length) :] != 0) & seen[:, None, None]

    def after(self, mems: Sequence[Tensor], length: int) -> None:
        """Keep the model's states [b, m, h] after a forward of `length` tokens.

        A row with a state that is not finite begins anew: it would never be rid of it.
        """
        if not self._open:
            return
        self._open = False
        rows, kept = mems[-1].shape[:2]
        sound = mems[-1].isfinite().all(-1).all(-1)
        before = sound.new_zeros(rows, dtype=torch.long) if self._old is None else self._old.valid
        valid = torch.where(sound, (before + length).clamp(max=kept), 0)
        # Copies: a view would keep the longer tensor that it is a part of.
        states = [torch.where(sound[:, None, None], x.detach(), 0.0) for x in mems]
        self.slots[self._slot] = Carried(self._moment, states, valid)
