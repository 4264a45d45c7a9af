"""Losses between a student's and a teacher's tensor, on shards: pure functions.

Law: the value is the same on every rank and for every model-parallel size p, and a rank's gradient
is its slice of the gradient at p = 1.

| layout      | elementwise (mse)        | distribution over the last dim (kl, soft_cross_entropy) |
|-------------|--------------------------|---------------------------------------------------------|
| REPLICATED  | local                    | local softmax                                           |
| SHARD_HEADS | local, mean over ranks   | local softmax per head, mean over ranks                 |
| SHARD_LAST  | local, mean over ranks   | softmax over all shards, rows summed over ranks         |

Each returns [] or, with keep_batch, [b]. `rows` says which rows count and what their sum is divided
by (`distill.rows`); None: the plain mean. `columns` [..., v/p] marks the entries of the last dim
that take part (True), broadcast: padded choices, top-n, keys that are padding. Everything is fp32
inside. Gradients go into the student, and into a teacher that has them.

Vocabulary logits may also be `distill.lazy_logits.Logits` of both sides, for `mse`, `kl` and
`soft_cross_entropy` without `columns`: the same numbers, computed a chunk of rows at a time.

`cosine_distance` takes whole rows (REPLICATED). Relations between positions are made of shards by
`split_heads` and `relation`, and compared by `kl` or `mse`.
"""

import math
from collections.abc import Iterator

from torch import Tensor

from distill.divergence import soft_rows, soft_rows_by_autograd
from distill.lazy_logits import Logits as Logits
from distill.lazy_logits import Planned as Planned
from distill.rows import Rows
from distill.top_n import LAYOUT as LOGITS
from distill.top_n import TopDivergence, TopExcess, excess_rows
from distill.top_n import TopN as TopN
from distill.top_n import floored as floored
from distill.top_n import top_n_columns as top_n_columns
from distill.top_n import whole_width as whole_width
from distill.vocab_rows import OtherRows, SquaredRows
from distill.vocab_rows import SoftRows as SoftRows
from mpu import (
    gather_from_model_parallel_region,
    get_model_parallel_world_size,
)
from mpu.layout import Layout
from mpu.softmax import mean_over_shards, sum_last

FEW = 1024  # elements that autograd may keep some copies of
EPS = 1e-12  # added to squared norms, as in the seed: a row of zeros has cosine 0


def mean_of_rows(losses: Tensor, rows: Rows | None, keep_batch: bool = False) -> Tensor:
    """Row losses [b, s] or picked [n], equal on all ranks -> [] or, keep_batch, [b]."""
    return _mean(losses, Layout.REPLICATED, rows, keep_batch)


def mse(
    student: Tensor | Logits,
    teacher: Tensor | Logits,
    *,
    layout: Layout = Layout.REPLICATED,
    rows: Rows | None = None,
    columns: Tensor | None = None,
    keep_batch: bool = False,
    teacher_weight: float = 1.0,
) -> Tensor:
    """Mean over rows and entries of (student - teacher_weight teacher)^2.

    [b, ..., h] twice -> [] or [b].
    """
    if isinstance(student, Logits):
        losses = student.rows(
            squared_rows(student, teacher_weight), teacher, rows, weight=float(not keep_batch)
        )
        return _mean(losses, Layout.REPLICATED, rows, keep_batch)
    student, teacher, columns = _pick(rows, student, teacher, columns)
    teacher = teacher.float()
    teacher = teacher if teacher_weight == 1 else teacher * teacher_weight
    square = (student.float() - teacher).square()
    if columns is None:
        return _mean(square.mean(-1), layout, rows, keep_batch)
    kept = sum_last(columns, layout).clamp(min=1)
    return _mean(sum_last(square * columns, layout) / kept, _heads(layout), rows, keep_batch)


def kl(
    student: Tensor | Logits,
    teacher: Tensor | Logits,
    *,
    layout: Layout = Layout.REPLICATED,
    rows: Rows | None = None,
    columns: Tensor | None = None,
    temperature: float = 1.0,
    keep_batch: bool = False,
) -> Tensor:
    """T^2 mean_rows KL(softmax(teacher / T) || softmax(student / T)), in nats.

    [b, ..., v/p] twice, before the softmax -> [] or [b].
    """
    losses = _soft_rows(student, teacher, layout, rows, columns, temperature, keep_batch)
    return _mean(losses, _heads(layout), rows, keep_batch) * temperature**2


def soft_cross_entropy(
    student: Tensor | Logits,
    teacher: Tensor | Logits,
    *,
    layout: Layout = Layout.REPLICATED,
    rows: Rows | None = None,
    columns: Tensor | None = None,
    temperature: float = 1.0,
    keep_batch: bool = False,
) -> Tensor:
    """T^2 mean_rows of -sum softmax(teacher / T) log softmax(student / T), in nats.

    [b, ..., v/p] twice, before the softmax -> [] or [b]. KL plus the teacher's entropy: the same
    gradient. Under D3 a masked row counts log v, as two rows of zeros do in the seed.
    """
    losses = _soft_rows(
        student, teacher, layout, rows, columns, temperature, keep_batch, cross_entropy=True
    )
    masked = math.log(whole_width(student, layout))
    return _mean(losses, _heads(layout), rows, keep_batch, masked) * temperature**2


def cosine_distance(
    student: Tensor, teacher: Tensor, *, rows: Rows | None = None, keep_batch: bool = False
) -> Tensor:
    """Mean over rows of 1 - cos(student, teacher). [b, ..., h] twice, whole rows -> [] or [b].

        1 - cos = |x - y|^2 / 2     x, y: the rows over their norms

    So the distance of equal rows is 0 to the last bit, and never negative. A row of zeros has
    distance 1 to everything. Under D3 a masked row counts 1, as two rows of zeros do in the seed.
    """
    student, teacher = _pick(rows, student, teacher)
    units, short = [], 0.0  # by how much squared norms fall short of 1, halved: EPS in rows of 0
    for x in (student.float(), teacher.float()):
        square = x.square().sum(-1, keepdim=True) + EPS
        units.append(x * square.rsqrt())
        short = short + EPS / square.squeeze(-1) / 2
    distances = (units[0] - units[1]).square().sum(-1) / 2 + short
    return _mean(distances, Layout.REPLICATED, rows, keep_batch, masked=1.0)


def relation(x: Tensor) -> Tensor:
    """How positions relate in a head: x x^T / sqrt(d). [..., s, d] -> [..., s, s], fp32."""
    x = x.float()
    return x @ x.transpose(-1, -2) / math.sqrt(x.size(-1))


def split_heads(x: Tensor, number: int) -> tuple[Tensor, Layout]:
    """Cut the whole width h into so many heads r: [b, s, h/p] -> [b, r/p, s, h/r], SHARD_HEADS.

    Where p does not divide r: all of them on every rank, [b, r, s, h/r], REPLICATED (all-gather
    forward, own slice backward).
    """
    layout, size = Layout.SHARD_HEADS, get_model_parallel_world_size()
    if number % size:
        x, layout, size = gather_from_model_parallel_region(x), Layout.REPLICATED, 1
    heads = x.unflatten(-1, (number // size, -1))
    return heads.transpose(1, 2), layout


def squared_rows(student: Logits, teacher_weight: float = 1.0) -> SquaredRows:
    """The term of a squared error over the whole vocabulary."""
    return SquaredRows(float(teacher_weight), width=student.whole_width)


def excess(
    student: Tensor,
    columns: Tensor,
    *,
    layout: Layout,
    rows: Rows | None = None,
    pooled: bool = False,
    keep_batch: bool = False,
) -> tuple[Tensor, Tensor]:
    """By how much entries outside `columns` exceed the smallest one inside. -> ([] or [b], []).

        theta = min over columns of z      loss = mean over {j outside: z_j > theta} of z_j - theta

    z [b, s, v/p], columns [b, s, v/p]. The mean is taken in each row, then over rows; 0 where
    nothing exceeds. `pooled` (D3): all such entries of the micro-batch in one mean. The second
    result is how many there are.
    """
    student, columns = _pick(rows, student, columns)
    sums, counts = excess_rows(student, columns, layout)
    heads = _heads(layout)
    return excess_mean(sums, counts, heads, rows=rows, pooled=pooled, keep_batch=keep_batch)


def excess_mean(
    sums: Tensor,
    counts: Tensor,
    layout: Layout = Layout.REPLICATED,
    *,
    rows: Rows | None = None,
    pooled: bool = False,
    keep_batch: bool = False,
) -> tuple[Tensor, Tensor]:
    """`excess` from `excess_rows`."""
    number = counts.sum() if rows is None else rows.mean(counts) * rows.total
    if not pooled:
        return _mean(sums / counts.clamp(min=1), layout, rows, keep_batch), number
    # _mean divides by the rows; the seed's divisor is the number of entries.
    divisor = float(counts.numel()) if rows is None else rows.total
    mean = _mean(sums, layout, rows, keep_batch)
    return mean * divisor / number.clamp(min=1), number


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
        teacher = floored(teacher, top.n, LOGITS)
    else:
        columns = top_n_columns(teacher, top.n, LOGITS)
        above, count = excess(
            student, columns, layout=LOGITS, rows=rows, pooled=pooled, keep_batch=keep_batch
        )
    options = {"layout": LOGITS, "rows": rows, "columns": columns, "keep_batch": keep_batch}
    if top.temperature is None:
        return above, count, mse(student, teacher, **options)
    return above, count, kl(student, teacher, temperature=top.temperature, **options)


def planned_top_n(top: TopN, rows: Rows | None, *, pooled: bool) -> Iterator[Planned]:
    """The terms that `top_n_losses` will ask lazy logits for."""
    yield Planned(OtherRows(TopDivergence(top)), rows, top.squared)
    if not top.floor:
        # Pooled, its weight depends on how many exceed.
        yield Planned(_excess(top, pooled), rows, 0.0 if pooled else 1.0)
        yield Planned(OtherRows(TopExcess(top.n, "number")), rows, 0.0)


def _excess(top: TopN, pooled: bool) -> OtherRows:
    return OtherRows(TopExcess(top.n, "sum" if pooled else "mean"))


def _of_lazy(
    student: Logits, teacher: Logits, top: TopN, rows: Rows | None, pooled: bool, keep_batch: bool
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    weight = float(not keep_batch)
    divergence = student.rows(OtherRows(TopDivergence(top)), teacher, rows, weight=weight)
    divergence = mean_of_rows(divergence, rows, keep_batch) * top.squared
    if top.floor:
        return None, None, divergence
    values = student.rows(_excess(top, pooled), teacher, rows, weight=weight)
    counts = student.rows(OtherRows(TopExcess(top.n, "number")), teacher, rows, weight=0.0).detach()
    if pooled:
        above, count = excess_mean(values, counts, rows=rows, pooled=True, keep_batch=keep_batch)
        return above, count, divergence
    count = counts.sum() if rows is None else rows.mean(counts) * rows.total
    return mean_of_rows(values, rows, keep_batch), count, divergence


def _pick(rows: Rows | None, *tensors: Tensor | None) -> list[Tensor | None]:
    """The unmasked rows of each [b, s, ...], where leaving the others out saves work."""
    if rows is None:
        return list(tensors)
    depth = rows.mask.dim() + 1
    return [rows.pick(x) if x is not None and x.dim() == depth else x for x in tensors]


def _soft_rows(
    student: Tensor | Logits,
    teacher: Tensor | Logits,
    layout: Layout,
    rows: Rows | None,
    columns: Tensor | None,
    temperature: float,
    keep_batch: bool,
    cross_entropy: bool = False,
) -> Tensor:
    """Row losses of distributions: the lean way, or by autograd for a teacher that is trained.

    By autograd also for the few numbers of choices: it rounds less where one is nearly certain.
    """
    if isinstance(student, Logits):
        assert columns is None, "all of a vocabulary takes part"
        term = SoftRows(float(temperature), cross_entropy)
        return student.rows(term, teacher, rows, weight=float(not keep_batch))
    if columns is not None:
        columns = columns.expand_as(student)
    student, teacher, columns = _pick(rows, student, teacher, columns)
    few = layout is Layout.REPLICATED and student.numel() <= FEW
    lean = not (teacher.requires_grad or few)
    return (soft_rows if lean else soft_rows_by_autograd)(
        student,
        teacher,
        layout=layout,
        columns=columns,
        temperature=temperature,
        cross_entropy=cross_entropy,
    )


def _heads(layout: Layout) -> Layout:
    """What is left of the layout when the last dim has been summed over the ranks."""
    return layout if layout is Layout.SHARD_HEADS else Layout.REPLICATED


def _mean(
    losses: Tensor, layout: Layout, rows: Rows | None, keep_batch: bool, masked: float = 0.0
) -> Tensor:
    """Row losses [b, s], [b, n/p, s], [b] or picked [n] -> [] or [b]; shards: over the ranks."""
    if rows is not None:
        if losses.dim() > rows.mask.dim():  # heads
            losses = losses.mean(1)
        mean = rows.mean(losses, keep_batch, masked)
    elif keep_batch:
        mean = losses.flatten(1).mean(1) if losses.dim() > 1 else losses
    else:
        mean = losses.mean()
    return mean_over_shards(mean, layout)
