"""Row losses of vocabulary logits z = x W^T that never exist whole: value and gradient in one pass.

    z [n, v/p] = x [n, h]  W^T,  W [v/p, h] the rank's rows of an output embedding

Rows are taken a chunk at a time: logits of the student and of its teachers, the value of every
term, and, where the terms' weights are known beforehand, the gradient of their weighted sum with
respect to x and W at once (a teacher's too, if it is trained). So no chunk's logits outlive it.
The backward pass then only scales.
Where it meets other weights than expected (losses per sample, a second backward pass), it
computes the gradient from x and W again, in chunks too: right in any case, and slower.

Sharded rows cost two small all-reduces a chunk for each softmax, and one for all values.
The gradient of x is the rank's part: x goes through `copy_to_model_parallel_region` before.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
        self.empty = True  # until a term has written all rows
        self._written = False  # some of them

    def room(self, rows: slice) -> Tensor:
        """Where to compute the gradient of some of the rows, to be added next."""
        return self.sum[rows] if self.empty else torch.empty_like(self.sum[rows])

    def add(self, rows: slice, gradient: Tensor) -> None:
        """Of some of the chunk's rows."""
        self._written = True
        if not self.empty:
            self.sum[rows] += gradient
        elif gradient.data_ptr() != self.sum[rows].data_ptr():
            self.sum[rows] = gradient

    def end(self) -> None:
        """A term has added all that it has: all rows or none."""
        self.empty = self.empty and not self._written


@dataclass(frozen=True)
class Chunk:
    """Some of the rows, as a term sees them."""

    z: Tensor  # [r, v/p] fp32 the student's logits, not to be written into
    teacher: Tensor | None  # likewise of the teacher that the term compares with
    rows: slice  # where the chunk is among all rows
    weight: Tensor | None  # [r] of the gradient; None: it is not wanted
    total: Total | None  # gets weight * (d value / d z) / slope
    of_teacher: Total | None  # likewise of a teacher that is trained


class RowLoss(Protocol):
    """A loss of each row."""

    teacher: int | None  # which teacher it compares with, if any
    slope: float  # size of its gradient, which it leaves to its weights

    def __call__(self, chunk: Chunk) -> Tensor:
        """Values [r], of which this rank gives its part: they are summed over ranks."""
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
    """
    tensors = [x for side in (student, *teachers) for x in (side.hidden, side.weight)]
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    if not expected or not learns:
        expected = [None] * len(terms)
    assert len(expected) == len(terms), (len(expected), len(terms))
    return _RowLosses.apply(_Job(tuple(terms)), len(tensors), *tensors, *expected)


def chunks(number: int, width: int, size: int) -> Iterator[slice]:
    """Slices of rows, of about so many elements."""
    step = max(1, size // max(1, width))
    return (slice(first, min(first + step, number)) for first in range(0, number, step))


def blocks(z: Tensor) -> Iterator[slice]:
    """Slices of a chunk's rows, to be worked on one after the other."""
    return chunks(*z.shape, len(z) * z.size(1) if z.is_cuda else BLOCK_ELEMENTS)


class _Gradients:
    """Of one side's hidden [n, h] and weight [v/p, h], in fp32; without a factor that is left out.

    None: not wanted.
    """

    def __init__(self, side: Side, wanted: Sequence[bool], factor: Tensor):
        """`wanted`: of hidden, of weight."""
        self.side, self.factor = side, factor
        empty = partial(torch.empty_like, dtype=torch.float32)
        self.hidden = empty(side.hidden) if wanted[0] else None
        self.weight = empty(side.weight) if wanted[1] else None
        self.wanted = any(wanted)
        self._begun = False

    def add(self, rows: slice, total: Total) -> None:
        """A chunk's part, from the gradient of its logits [r, v/p]. Every chunk once."""
        if total.empty:
            total.sum.zero_()
        chunk, table = self.side.hidden[rows], self.side.weight
        gradient = total.sum.to(chunk.dtype)
        half = gradient.dtype is not torch.float32
        if self.hidden is not None and half:
            self.hidden[rows] = gradient @ table
        elif self.hidden is not None:
            torch.mm(gradient, table, out=self.hidden[rows])
        if self.weight is None:
            return
        if half and self._begun:
            self.weight += gradient.t() @ chunk
        elif half:
            self.weight.copy_(gradient.t() @ chunk)
        elif self._begun:
            self.weight.addmm_(gradient.t(), chunk)
        else:
            torch.mm(gradient.t(), chunk, out=self.weight)
        self._begun = True

    def times(self, scale: Tensor | float) -> Iterator[Tensor | None]:
        """The gradients, times a number. They are written into."""
        scale = self.factor * scale
        for x in (self.hidden, self.weight if self._begun else _zeros(self.weight)):
            yield None if x is None else x.mul_(scale)


def _zeros(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.zero_()


@dataclass(frozen=True)
class _Job:
    terms: tuple[RowLoss, ...]

    def run(
        self,
        tensors: Sequence[Tensor],
        weights: Sequence[Tensor | None],
        wanted: Sequence[bool],
    ) -> tuple[Tensor, list[_Gradients]]:
        """Values [k, n], and the gradients of their sum with these weights, if there are any.

        `tensors`: hidden and weight of every side, the student's first; `wanted`: their gradients.
        """
        pairs = list(zip(tensors[::2], tensors[1::2], strict=True))
        sides = [Side(x.detach(), w.detach().to(x.dtype)) for x, w in pairs]
        number, width = len(tensors[0]), len(tensors[1])
        values = torch.zeros(len(self.terms), number, device=tensors[0].device)
        factor, weights = self._normalised(weights)
        made: list[_Gradients] = []
        if factor is not None:
            flags = zip(wanted[::2], wanted[1::2], strict=True)
            made = [_Gradients(*each, factor) for each in zip(sides, flags, strict=True)]
        size = CHUNK_ELEMENTS * (ON_GPU if tensors[0].is_cuda else 1)
        with torch.autocast(tensors[0].device.type, enabled=False):
            for rows in chunks(number, width, size):
                self._chunk(sides, rows, weights, values, made)
        return reduce_from_model_parallel_region(values), made

    def _chunk(
        self,
        sides: Sequence[Side],
        rows: slice,
        weights: Sequence[Tensor | None],
        values: Tensor,
        made: Sequence[_Gradients],
    ) -> None:
        logits = [side.logits(rows) for side in sides]
        totals: list[Total | None] = [None] * len(sides)
        for i, each in enumerate(made):
            if i == 0 or each.wanted:  # terms write the student's in any case
                totals[i] = Total(logits[i])
        for term, w, value in zip(self.terms, weights, values, strict=True):
            z, own = logits[0], None if w is None else totals[0]
            t, its = None, None
            if term.teacher is not None:
                t = logits[1 + term.teacher]
                its = None if w is None else totals[1 + term.teacher]
            weight = None if w is None else w[rows]
            value[rows] = term(Chunk(z, t, rows, weight, own, its))
            for total in totals:
                if total is not None:
                    total.end()
        for each, total in zip(made, totals, strict=bool(made)):
            if total is not None:
                each.add(rows, total)

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
    def forward(ctx: Any, job: _Job, number: int, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        """Values, and the gradient of what is expected. Inputs: so many tensors, expectations."""
        ctx.set_materialize_grads(False)
        ctx.job, tensors, ctx.expected = job, inputs[:number], inputs[number:]
        ctx.wanted = ctx.needs_input_grad[2 : 2 + number]
        values, ctx.made = job.run(tensors, ctx.expected, ctx.wanted)
        ctx.save_for_backward(*tensors)
        return values.unbind()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Scale what the forward has made, or make it with the weights that came."""
        made, ctx.made = ctx.made, []  # is written into, so it is good for one time
        scale = _common_factor(ctx.expected, grads) if made else None
        if scale is None:
            _, made = ctx.job.run(ctx.saved_tensors, grads, ctx.wanted)
            scale = 1.0
        # Autograd itself casts to the precision of hidden and weight.
        found = [x for each in made for x in each.times(scale)]
        return None, None, *found, *[None] * len(grads)


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

    def __call__(self, chunk: Chunk) -> Tensor:
        """As RowLoss says."""
        z, width, rank = chunk.z, chunk.z.size(-1), get_model_parallel_rank()
        ranks = get_model_parallel_world_size()
        local, elsewhere = local_ids(self.labels[chunk.rows], rank * width, width, width * ranks)
        here = (~elsewhere).float()
        if chunk.weight is None:
            normaliser = logsumexp_rows(z)
        else:
            normaliser = torch.empty(len(z), device=z.device)
            known = logsumexp_rows(z) if ranks > 1 else None
            for block in blocks(z):
                highest = z[block].amax(-1) if known is None else known[block]
                probs = torch.sub(z[block], highest[:, None], out=chunk.total.room(block)).exp_()
                sums = probs.sum(-1) if known is None else torch.ones_like(highest)
                normaliser[block] = highest + sums.log()
                w = chunk.weight[block]
                probs *= (w / sums)[:, None]
                if self.smoothing:
                    probs -= (w * (self.smoothing / (width * ranks)))[:, None]
                ones = (w * here[block] * (self.smoothing - 1))[:, None]
                chunk.total.add(block, probs.scatter_add_(-1, local[block, None], ones))
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
