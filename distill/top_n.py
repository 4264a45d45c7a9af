"""Losses over the teacher's n largest logits of a row, C: GLMD's top-n, of logits whole or lazy.

    divergence    KL (or squared error) over C
    excess        mean over {j not in C: z_j > m} of z_j - m,    m = min over C of z

or, with a floor, the divergence over all entries, the teacher's outside C at the row's minimum.
Of lazy logits the same functions see a chunk of rows at a time, and autograd gives the gradient.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from distill.divergence import soft_rows_by_autograd
from distill.lazy_logits import Logits, Planned
from distill.losses import (
    excess,
    excess_mean,
    excess_rows,
    floored,
    kl,
    mean_of_rows,
    mse,
    top_n_columns,
    whole_width,
)
from distill.rows import Rows
from distill.vocab_rows import OtherRows
from mpu.layout import Layout
from mpu.softmax import sum_last

LAYOUT = Layout.SHARD_LAST


@dataclass(frozen=True)
class TopN:
    """What is compared."""

    n: int
    temperature: float | None  # of KL; None: squared error
    floor: bool = False  # keep all entries, the teacher's others at the row's minimum

    @property
    def squared(self) -> float:
        """T^2, by which KL is multiplied; 1 for the squared error."""
        return 1.0 if self.temperature is None else self.temperature**2


@dataclass(frozen=True)
class _Divergence:
    """[r, v/p] twice -> [r], without T^2."""

    top: TopN

    def __call__(self, z: Tensor, teacher: Tensor) -> Tensor:
        top, columns, width = self.top, None, whole_width(z, LAYOUT)
        if top.floor:
            teacher = floored(teacher, top.n, LAYOUT)
        else:
            columns = top_n_columns(teacher, top.n, LAYOUT)
            width = sum_last(columns, LAYOUT)
        if top.temperature is not None:
            options = {"columns": columns, "temperature": top.temperature}
            return soft_rows_by_autograd(z, teacher, layout=LAYOUT, **options)
        square = (z - teacher).square()
        return sum_last(square if columns is None else square * columns, LAYOUT) / width


@dataclass(frozen=True)
class _Excess:
    """[r, v/p] twice -> [r]: the mean, the sum or the number of what exceeds."""

    n: int
    kind: str

    def __call__(self, z: Tensor, teacher: Tensor) -> Tensor:
        sums, counts = excess_rows(z, top_n_columns(teacher, self.n, LAYOUT), LAYOUT)
        if self.kind == "mean":
            return sums / counts.clamp(min=1)
        return sums if self.kind == "sum" else counts


def top_n_losses(
    student: Tensor | Logits,
    teacher: Tensor | Logits,
    top: TopN,
    *,
    rows: Rows | None,
    pooled: bool,
    keep_batch: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """(excess, how many entries exceed, divergence): [] or [b], [], [] or [b]; with a floor None,

    None, divergence. `pooled`: see `losses.excess`."""
    if isinstance(student, Logits):
        return _of_lazy(student, teacher, top, rows, pooled, keep_batch)
    if rows is not None:
        student, teacher = rows.pick(student), rows.pick(teacher)
    above, count, columns = None, None, None
    if top.floor:
        teacher = floored(teacher, top.n, LAYOUT)
    else:
        columns = top_n_columns(teacher, top.n, LAYOUT)
        above, count = excess(
            student, columns, layout=LAYOUT, rows=rows, pooled=pooled, keep_batch=keep_batch
        )
    options = {"layout": LAYOUT, "rows": rows, "columns": columns, "keep_batch": keep_batch}
    if top.temperature is None:
        return above, count, mse(student, teacher, **options)
    return above, count, kl(student, teacher, temperature=top.temperature, **options)


def planned_top_n(top: TopN, rows: Rows | None, *, pooled: bool) -> Iterator[Planned]:
    """The terms that `top_n_losses` will ask lazy logits for."""
    yield Planned(OtherRows(_Divergence(top)), rows, top.squared)
    if not top.floor:
        # Pooled, its weight depends on how many exceed.
        yield Planned(_excess(top, pooled), rows, 0.0 if pooled else 1.0)
        yield Planned(OtherRows(_Excess(top.n, "number")), rows, 0.0)


def _excess(top: TopN, pooled: bool) -> OtherRows:
    return OtherRows(_Excess(top.n, "sum" if pooled else "mean"))


def _of_lazy(
    student: Logits, teacher: Logits, top: TopN, rows: Rows | None, pooled: bool, keep_batch: bool
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    weight = float(not keep_batch)
    divergence = student.rows(OtherRows(_Divergence(top)), teacher, rows, weight=weight)
    divergence = mean_of_rows(divergence, rows, keep_batch) * top.squared
    if top.floor:
        return None, None, divergence
    values = student.rows(_excess(top, pooled), teacher, rows, weight=weight)
    counts = student.rows(OtherRows(_Excess(top.n, "number")), teacher, rows, weight=0.0).detach()
    if pooled:
        above, count = excess_mean(values, counts, rows=rows, pooled=True, keep_batch=keep_batch)
        return above, count, divergence
    count = counts.sum() if rows is None else rows.mean(counts) * rows.total
    return mean_of_rows(values, rows, keep_batch), count, divergence
