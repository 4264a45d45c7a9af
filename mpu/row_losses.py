"""Row losses of vocabulary logits z = x W^T that never exist whole: value and gradient in one pass.

    z [n, v/p] = x [n, h]  W^T,  W [v/p, h] the rank's rows of an output embedding

Rows are taken a chunk at a time: logits of the student and of its teachers, the value of every
term, and, where the terms' weights are known beforehand, the gradient of their weighted sum with
respect to x and W at once. So no chunk's logits outlive it. The backward pass then only scales.
Where it meets other weights than expected (losses per sample, a second backward pass), it
computes the gradient from x and W again, in chunks too: right in any case, and slower.

Sharded rows cost two small all-reduces a chunk for each softmax, and one for all values.
The gradient of x is the rank's part: x goes through `copy_to_model_parallel_region` before.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .initialize import get_model_parallel_rank, get_model_parallel_world_size
from .layers import local_ids
from .mappings import max_across, reduce_from_model_parallel_region

# Elements of a chunk's logits, and of the part of it that is worked on at a time: 16 MB and 1 MB
# in fp32. The first sets the memory, the second keeps the work near the processor.
CHUNK_ELEMENTS = 1 << 22
BLOCK_ELEMENTS = 1 << 18
ON_GPU = 16  # times as many there, where starting a kernel costs more than memory
TOLERANCE = 2e-6  # relative; weights that differ by rounding only are the expected ones


class Total:
    """The gradient of a chunk's logits [r, v/p]: the first term writes, the others add."""

    def __init__(self, like: Tensor):
        self.sum = torch.empty_like(like)
        self.empty = True  # until the first term has written all rows

    def add(self, rows: slice, gradient: Tensor) -> None:
        """Of some of the chunk's rows."""
        if self.empty:
            self.sum[rows] = gradient
        else:
            self.sum[rows] += gradient


class RowLoss(Protocol):
    """A loss of each row."""

    teacher: int | None  # which teacher it compares with, if any
    slope: float  # size of its gradient, which it leaves to its weights

    def __call__(
        self,
        z: Tensor,
        teacher: Tensor | None,
        rows: slice,
        weight: Tensor | None,
        total: Total | None,
    ) -> Tensor:
        """Values [r] of a chunk, of which this rank gives its part: they are summed over ranks.

        z, teacher [r, v/p] fp32, not to be written into; rows: where the chunk is among all.
        With weight [r]: adds weight * (d value / d z) / slope to the total.
        """
        ...

    def at(self, places: Tensor) -> "RowLoss":
        """The same loss of some of the rows, int64 [m]."""
        ...


@dataclass(frozen=True)
class Side:
    """One model's rows and output embedding."""

    hidden: Tensor  # [n, h]
    weight: Tensor  # [v/p, h]; the product is computed in the precision of `hidden`

    def logits(self, rows: slice) -> Tensor:
        """[r, v/p], fp32."""
        return F.linear(self.hidden[rows], self.weight).float()


def row_losses(
    terms: Sequence[RowLoss],
    student: Side,
    teachers: Sequence[Side] = (),
    expected: Sequence[Tensor | None] = (),
) -> tuple[Tensor, ...]:
    """Each term's value of each row, [n] fp32, the same on every rank.

    `expected`: for each term the weights [n] of its rows in the loss to come, up to a factor that
    all terms have in common; None: not known, or 0. They make the gradient cheap, never wrong.
    No gradient goes into a teacher.
    """
    frozen = [Side(t.hidden.detach(), t.weight.detach().to(t.hidden.dtype)) for t in teachers]
    if not expected or not torch.is_grad_enabled():
        expected = [None] * len(terms)
    assert len(expected) == len(terms), (len(expected), len(terms))
    job = _Job(tuple(terms), tuple(frozen))
    return _RowLosses.apply(student.hidden, student.weight, job, *expected)


def chunks(number: int, width: int, size: int) -> Iterator[slice]:
    """Slices of rows, of about so many elements."""
    step = max(1, size // max(1, width))
    return (slice(first, min(first + step, number)) for first in range(0, number, step))


def blocks(z: Tensor) -> Iterator[slice]:
    """Slices of a chunk's rows, to be worked on one after the other."""
    return chunks(*z.shape, len(z) * z.size(1) if z.is_cuda else BLOCK_ELEMENTS)


@dataclass
class _Gradients:
    """Of hidden [n, h] and weight [v/p, h], in fp32; without a factor that is left out."""

    hidden: Tensor
    weight: Tensor | None  # None: not wanted
    factor: Tensor  # []

    def add(self, student: Side, rows: slice, gradient: Tensor) -> None:
        """A chunk's part, from the gradient of its logits [r, v/p]."""
        chunk = student.hidden[rows]
        gradient = gradient.to(chunk.dtype)
        if gradient.dtype is torch.float32:
            torch.mm(gradient, student.weight, out=self.hidden[rows])
            if self.weight is not None:
                self.weight.addmm_(gradient.t(), chunk)
            return
        self.hidden[rows] = (gradient @ student.weight).float()
        if self.weight is not None:
            self.weight += gradient.t() @ chunk

    def times(self, scale: Tensor | float) -> Iterator[Tensor | None]:
        """The gradients, times a number. They are written into."""
        scale = self.factor * scale
        yield self.hidden.mul_(scale)
        yield None if self.weight is None else self.weight.mul_(scale)


@dataclass(frozen=True)
class _Job:
    terms: tuple[RowLoss, ...]
    teachers: tuple[Side, ...]

    def run(
        self,
        hidden: Tensor,
        weight: Tensor,
        weights: Sequence[Tensor | None],
        of_weight: bool,
    ) -> tuple[Tensor, _Gradients | None]:
        """Values [k, n], and the gradient of their sum with these weights, if there are any."""
        student = Side(hidden.detach(), weight.detach().to(hidden.dtype))
        values = torch.zeros(len(self.terms), len(hidden), device=hidden.device)
        factor, weights = self._normalised(weights)
        made = None
        if factor is not None:
            of_hidden = torch.zeros_like(student.hidden, dtype=torch.float32)
            like = torch.zeros_like(weight, dtype=torch.float32) if of_weight else None
            made = _Gradients(of_hidden, like, factor)
        size = CHUNK_ELEMENTS * (ON_GPU if hidden.is_cuda else 1)
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in chunks(len(hidden), len(weight), size):
                self._chunk(student, rows, weights, values, made)
        return reduce_from_model_parallel_region(values), made

    def _chunk(
        self,
        student: Side,
        rows: slice,
        weights: Sequence[Tensor | None],
        values: Tensor,
        made: _Gradients | None,
    ) -> None:
        z = student.logits(rows)
        others = [teacher.logits(rows) for teacher in self.teachers]
        total = None if made is None else Total(z)
        for term, w, value in zip(self.terms, weights, values, strict=True):
            other = None if term.teacher is None else others[term.teacher]
            value[rows] = term(z, other, rows, None if w is None else w[rows], total)
            if w is not None:
                total.empty = False
        if made is not None:
            made.add(student, rows, total.sum)

    def _normalised(
        self, weights: Sequence[Tensor | None]
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """The largest weight, slopes in it, and the weights over it: so half precision has room."""
        scaled = [
            None if w is None else w.float() * term.slope
            for w, term in zip(weights, self.terms, strict=True)
        ]
        used = [w for w in scaled if w is not None]
        if not used:
            return None, scaled
        largest = torch.cat([*used, used[0].new_zeros(1)]).abs().amax()
        factor = torch.where(largest > 0, largest, 1.0)
        return factor, [None if w is None else w / factor for w in scaled]


class _RowLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, job: _Job, *expected: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Values, and the gradient of what is expected."""
        ctx.set_materialize_grads(False)
        values, ctx.made = job.run(hidden, weight, expected, ctx.needs_input_grad[1])
        ctx.save_for_backward(hidden, weight)
        ctx.job, ctx.expected = job, expected
        return values.unbind()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Scale what the forward has made, or make it with the weights that came."""
        made, ctx.made = ctx.made, None  # is written into, so it is good for one time
        scale = None if made is None else _common_factor(ctx.expected, grads)
        nothing = [None] * (1 + len(grads))
        if scale is None:
            hidden, weight = ctx.saved_tensors
            _, made = ctx.job.run(hidden, weight, grads, ctx.needs_input_grad[1])
            scale = 1.0
        # Autograd itself casts to the precision of hidden and weight.
        return *made.times(scale), *nothing


def _common_factor(
    expected: Sequence[Tensor | None], grads: Sequence[Tensor | None]
) -> Tensor | None:
    """c with grads = c * expected, [], or None: not so. The same answer on every rank.

    Reads one number, which waits for a GPU.
    """
    pairs = []
    for e, g in zip(expected, grads, strict=True):
        if e is None and g is None:
            continue
        like = e if e is not None else g
        pairs.append([torch.zeros_like(like) if x is None else x for x in (e, g)])
    if not pairs:
        return None
    e, g = (torch.cat(each).double() for each in zip(*pairs, strict=True))
    c = (e * g).sum() / (e * e).sum().clamp(min=torch.finfo(torch.float64).tiny)
    differs = ((g - c * e).abs() > TOLERANCE * (c * e).abs()).any()
    return None if bool(max_across(differs.float())) else c.float()


@dataclass(frozen=True)
class HardRows:
    """Cross entropy of hard labels, in nats: log sum_j exp z_j - z_label.

    With label smoothing e over all v words: log sum_j exp z_j - (1 - e) z_label - e / v sum_j z_j.
    """

    labels: Tensor  # int64 [n], ids of the whole vocabulary
    teacher: int | None = None
    slope: float = 1.0
    smoothing: float = 0.0  # e

    def at(self, places: Tensor) -> "HardRows":
        """With the labels of these rows."""
        return replace(self, labels=self.labels.index_select(0, places))

    def __call__(
        self,
        z: Tensor,
        teacher: Tensor | None,
        rows: slice,
        weight: Tensor | None,
        total: Total | None,
    ) -> Tensor:
        """As RowLoss says."""
        width, rank = z.size(-1), get_model_parallel_rank()
        ranks = get_model_parallel_world_size()
        local, elsewhere = local_ids(self.labels[rows], rank * width, width, width * ranks)
        here = (~elsewhere).float()
        normaliser = logsumexp_rows(z)
        if weight is not None:
            for block in blocks(z):
                probs = (z[block] - normaliser[block, None]).exp_()
                ones = here[block, None] * (self.smoothing - 1)
                if self.smoothing:
                    probs -= self.smoothing / (width * ranks)
                probs.scatter_add_(-1, local[block, None], ones).mul_(weight[block, None])
                total.add(block, probs)
        at_label = z.gather(-1, local[:, None]).squeeze(-1) * here * (1 - self.smoothing)
        if self.smoothing:
            at_label = at_label + z.sum(-1) * (self.smoothing / (width * ranks))
        return normaliser * (rank == 0) - at_label


def logsumexp_rows(z: Tensor, scale: float = 1.0) -> Tensor:
    """log sum exp (scale z) over all ranks' classes: [r, v/p] -> [r]. Two all-reduces."""
    local = torch.empty(len(z), dtype=z.dtype, device=z.device)
    for block in blocks(z):
        part = z[block] if scale == 1.0 else z[block] * scale
        torch.logsumexp(part, -1, out=local[block])
    if get_model_parallel_world_size() == 1:
        return local
    largest = max_across(local)
    return largest + reduce_from_model_parallel_region((local - largest).exp()).log()
