"""Batch: the tensors of one micro-batch, for pretraining and for every task.

b samples, c choices (a choice dimension only where a task has several rows per sample),
s positions, k verbalizers. Rows are padded with 0 on the right to the longest of the batch.
"""

import dataclasses
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass
class Batch:
    """One micro-batch. Every tensor field is optional but the first four."""

    tokens: Tensor  # [b, s] or [b, c, s] int64
    position_ids: Tensor  # [b, 2, s] or [b, c, 2, s]: positions, block positions; [b, s] without
    attention_mask: Tensor  # [b] or [b, c]: separators; position j < sep is visible to everyone
    labels: Tensor  # language model: targets [b, s]; tasks: class labels [b]
    weight: Tensor | None = None  # [b] float: 0 for a row that only fills the batch
    sample_ids: Tensor | None = None  # [b] int64: index of the sample in its data set
    loss_mask: Tensor | None = None  # [b, s] float: language-model targets that count
    kinds: Tensor | None = None  # [b] int64: of blank infilling, index into data_utils.block.KINDS
    target_ids: Tensor | None = None  # cloze: verbalizer ids [b, k], answer tokens [b, c, s]
    logit_mask: Tensor | None = None  # cloze: positions that score an answer, as target_ids
    choice_mask: Tensor | None = None  # [b, c] float: 1 for a real choice
    segments: Tensor | None = None  # [b, c, r] float: 1 where row r is a part of choice c's answer
    dec_tokens: Tensor | None = None  # fast decode, one short row an answer: [b, c, s_dec]
    dec_position_ids: Tensor | None = None  # [b, c, 2, s_dec]
    dec_attention_mask: Tensor | None = None  # [b, c]
    dec_target_ids: Tensor | None = None  # [b, c, s_dec]
    dec_logit_mask: Tensor | None = None  # [b, c, s_dec]

    def __post_init__(self) -> None:
        rows = self.tokens.size(0)
        if self.weight is None:
            self.weight = torch.ones(rows)
        if self.sample_ids is None:
            self.sample_ids = torch.arange(rows)
        assert self.weight.shape == self.sample_ids.shape == (rows,), (
            self.tokens.shape,
            self.weight.shape,
            self.sample_ids.shape,
        )

    def real_rows(self) -> Tensor | None:
        """[b, r] float: 1 on a sample's rows that do not only fill the batch; None if all do not.

        Rows are choices, or parts of their answers.
        """
        return self.choice_mask if self.segments is None else self.segments.sum(1)

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are set, by name."""
        values = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        return {name: value for name, value in values if value is not None}

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same batch on another device."""
        moved = {k: v.to(device, non_blocking=non_blocking) for k, v in self.tensors().items()}
        return dataclasses.replace(self, **moved)

    def pin_memory(self) -> Self:
        """The same batch in page-locked host memory (called by torch's DataLoader)."""
        return dataclasses.replace(self, **{k: v.pin_memory() for k, v in self.tensors().items()})

    def __len__(self) -> int:
        """Number of rows b, fillers included."""
        return self.tokens.size(0)
