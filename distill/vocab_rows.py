"""Row losses between vocabulary logits that are never whole: the terms of `mpu.row_losses`.

    p = softmax(t / T), q = softmax(z / T)        z, t [r, v/p] of student and teacher, a chunk

| term        | value of a row               | d / d z_j              |
|-------------|------------------------------|------------------------|
| SoftRows    | sum p (log p - log q)        | (q_j - p_j) / T        |
|             | or -sum p log q              | the same               |
| SquaredRows | mean_j (z_j - a t_j)^2       | 2 (z_j - a t_j) / v    |
| OtherRows   | any function of z and t      | by autograd            |

The same numbers as `distill.losses` gives on whole logits.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor

from distill.divergence import NOWHERE
from mpu import get_model_parallel_rank, get_model_parallel_world_size
from mpu.row_losses import Total, blocks, logsumexp_rows


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

    def __call__(
        self,
        z: Tensor,
        teacher: Tensor | None,
        rows: slice,
        weight: Tensor | None,
        total: Total | None,
    ) -> Tensor:
        """As `mpu.row_losses.RowLoss` says."""
        values = torch.empty(len(z), device=z.device)
        sharded = get_model_parallel_world_size() > 1
        known = None
        if sharded:
            known = [logsumexp_rows(self._part(x), self.slope) for x in (z, teacher)]
        for block in blocks(z):
            log_q, log_p = (self._part(x[block]) * self.slope for x in (z, teacher))
            sums = []
            for i, x in enumerate((log_q, log_p)):
                # Alone the block's own maximum is taken off, and the sum is known after exp.
                x -= known[i][block, None] if sharded else x.amax(-1, keepdim=True)
            q = log_q.exp()
            inside = log_q.neg_() if self.cross_entropy else torch.sub(log_p, log_q, out=log_q)
            p = log_p.exp_()
            sums = [1.0, 1.0] if sharded else [x.sum(-1) for x in (q, p)]
            values[block] = inside.mul_(p).sum(-1) / sums[1]
            if not sharded:
                values[block] += sums[0].log() if self.cross_entropy else (sums[0] / sums[1]).log()
            if weight is not None:
                w = weight[block]
                q *= (w / sums[0])[:, None]
                q -= p.mul_((w / sums[1])[:, None])
                total.add(block, q)
        return values

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

    def __call__(
        self,
        z: Tensor,
        teacher: Tensor | None,
        rows: slice,
        weight: Tensor | None,
        total: Total | None,
    ) -> Tensor:
        """As `mpu.row_losses.RowLoss` says."""
        values = torch.empty(len(z), device=z.device)
        for block in blocks(z):
            difference = torch.sub(z[block], teacher[block], alpha=self.factor)
            if self.columns is not None:
                difference *= self.columns
            values[block] = difference.square().sum(-1) / self.width
            if weight is not None:
                total.add(block, difference.mul_(weight[block, None]))
        return values


@dataclass(frozen=True)
class OtherRows(_EveryRow):
    """`function(z, t)` [r, v/p] twice -> [r], equal on every rank; its gradient by autograd."""

    function: Callable[[Tensor, Tensor | None], Tensor]
    slope: ClassVar[float] = 1.0

    def __call__(
        self,
        z: Tensor,
        teacher: Tensor | None,
        rows: slice,
        weight: Tensor | None,
        total: Total | None,
    ) -> Tensor:
        """As `mpu.row_losses.RowLoss` says."""
        with torch.enable_grad():
            leaf = z.detach().requires_grad_(weight is not None)
            values = self.function(leaf, teacher)
        if weight is not None:
            (gradient,) = torch.autograd.grad(values, leaf, weight)
            total.add(slice(None), gradient)
        return values.detach() * (get_model_parallel_rank() == 0)
