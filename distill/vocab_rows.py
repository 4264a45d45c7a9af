"""Row losses between vocabulary logits that are never whole: the terms of `mpu.row_losses`.

    p = softmax(t / T), q = softmax(z / T)        z, t [r, v/p] of student and teacher, a chunk

| term        | value l of a row        | d l / d z_j         | d l / d t_j                     |
|-------------|-------------------------|---------------------|---------------------------------|
| SoftRows    | sum p (log p - log q)   | (q_j - p_j) / T     | p_j (log p_j - log q_j - l) / T |
|             | or -sum p log q         | the same            | p_j (-log q_j - l) / T          |
| SquaredRows | mean_j (z_j - a t_j)^2  | 2 (z_j - a t_j) / v | -2 a (z_j - a t_j) / v          |
| OtherRows   | any function of z and t | by autograd         | likewise                        |

The same numbers as `distill.losses` gives on whole logits. The last column: of teachers that are
trained.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor

from distill.divergence import NOWHERE
from mpu import (
    get_model_parallel_rank,
    get_model_parallel_world_size,
    reduce_from_model_parallel_region,
)
from mpu.row_losses import Chunk, blocks, logsumexp_rows


@dataclass(frozen=True)
class _EveryRow:
    """A term that is the same for every row."""

    # Number of the one it compares with; None: it does not.
    teacher: int | None = field(default=0, kw_only=True)

    def at(self, places: Tensor) -> Self:
        """Of some of the rows."""
        return self


@dataclass(frozen=True)
class SoftRows(_EveryRow):
    """KL(p || q), or cross entropy of p and q, in nats."""

    temperature: float = 1.0
    cross_entropy: bool = False
    columns: Tensor | None = None  # bool [v/p]: entries that take part

    @property
    def slope(self) -> float:
        """The gradient's 1 / T."""
        return 1.0 / self.temperature

    def __call__(self, chunk: Chunk) -> Tensor:
        """As `mpu.row_losses.RowLoss` says."""
        z, teacher = chunk.z, chunk.teacher
        values = torch.empty(len(z), device=z.device)
        sharded = get_model_parallel_world_size() > 1
        known = None
        if sharded:
            known = [logsumexp_rows(self._part(x), self.slope) for x in (z, teacher)]
        for block in blocks(z):
            log_q, log_p = (self._part(x[block]) * self.slope for x in (z, teacher))
            for i, x in enumerate((log_q, log_p)):
                # Alone the block's own maximum is taken off, and the sum is known after exp.
                x -= known[i][block, None] if sharded else x.amax(-1, keepdim=True)
            room = None if chunk.total is None else chunk.total.room(block)
            q = torch.exp(log_q, out=room)
            inside = log_q.neg_() if self.cross_entropy else torch.sub(log_p, log_q, out=log_q)
            p = log_p.exp_()
            sums = [1.0, 1.0] if sharded else [x.sum(-1) for x in (q, p)]
            inside *= p
            values[block] = inside.sum(-1) / sums[1]
            if chunk.weight is not None:
                self._add(chunk, block, (q, p), sums, inside)
            if not sharded:
                values[block] += sums[0].log() if self.cross_entropy else (sums[0] / sums[1]).log()
        return values

    def _add(
        self,
        chunk: Chunk,
        block: slice,
        probs: tuple[Tensor, Tensor],
        sums: Sequence[Tensor | float],
        inside: Tensor,
    ) -> None:
        """Gradients of a block; probs q and p over sums, inside: p (log p - log q + a constant)."""
        w = [(chunk.weight[block] / each)[:, None] for each in sums]
        (q, p), trained = probs, chunk.of_teacher
        if trained is not None:
            mean = reduce_from_model_parallel_region(inside.sum(-1)) / sums[1]
            trained.add(block, torch.addcmul(inside, p, mean[:, None], value=-1).mul_(w[1]))
        q *= w[0]
        q -= p.mul_(w[1])
        chunk.total.add(block, q)

    def _part(self, x: Tensor) -> Tensor:
        return x if self.columns is None else x.masked_fill(~self.columns, NOWHERE)


@dataclass(frozen=True)
class SquaredRows(_EveryRow):
    """Mean over the vocabulary of (z - a t)^2."""

    factor: float = 1.0  # a, of the teacher's logits
    columns: Tensor | None = None  # bool [v/p]: entries that take part
    width: int = 0  # entries of the whole vocabulary that take part

    @property
    def slope(self) -> float:
        """The gradient's 2 / v."""
        return 2.0 / self.width

    def __call__(self, chunk: Chunk) -> Tensor:
        """As `mpu.row_losses.RowLoss` says."""
        z, teacher = chunk.z, chunk.teacher
        values = torch.empty(len(z), device=z.device)
        for block in blocks(z):
            room = None if chunk.total is None else chunk.total.room(block)
            difference = torch.sub(z[block], teacher[block], alpha=self.factor, out=room)
            if self.columns is not None:
                difference *= self.columns
            values[block] = difference.square().sum(-1) / self.width
            if chunk.weight is not None:
                difference *= chunk.weight[block, None]
                if chunk.of_teacher is not None:
                    chunk.of_teacher.add(block, difference * -self.factor)
                chunk.total.add(block, difference)
        return values


@dataclass(frozen=True)
class OtherRows(_EveryRow):
    """`function(z, t)` [r, v/p] twice -> [r], equal on every rank; its gradient by autograd."""

    function: Callable[[Tensor, Tensor | None], Tensor]
    slope: ClassVar[float] = 1.0

    def __call__(self, chunk: Chunk) -> Tensor:
        """As `mpu.row_losses.RowLoss` says."""
        z, t, wanted = chunk.z, chunk.teacher, chunk.weight is not None
        with torch.enable_grad():
            leaves = [z.detach().requires_grad_(wanted)]
            leaves += [] if chunk.of_teacher is None else [t.detach().requires_grad_()]
            values = self.function(leaves[0], leaves[-1] if len(leaves) > 1 else t)
        if wanted:
            found = torch.autograd.grad(values, leaves, chunk.weight, allow_unused=True)
            for total, gradient in zip((chunk.total, chunk.of_teacher), found, strict=False):
                if gradient is not None:
                    total.add(slice(None), gradient)
        return values.detach() * (get_model_parallel_rank() == 0)
