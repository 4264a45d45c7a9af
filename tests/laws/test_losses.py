"""Law: a loss and its gradient do not depend on p. Every loss x layout x rows x keep_batch.

The reference is dense torch in float64 on one process, gradient by its autograd.
"""

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import distill.divergence
import mpu
import mpu.softmax
from distill import losses
from distill.rows import Rows, worth_picking
from mpu.layout import Layout
from tests.ranks import run_ranks

SHAPES = {
    Layout.REPLICATED: (3, 6, 8),
    Layout.SHARD_HEADS: (3, 4, 6, 8),
    Layout.SHARD_LAST: (3, 6, 16),
}
ROWS = ("none", "most", "few", "seed", "empty")
LOSSES = ("mse", "kl", "soft_cross_entropy", "excess", "floored_kl", "cosine_distance")
RELATIONS = ("relation_2", "relation_4")  # heads; 2 of them cannot be cut over 4 ranks
LOSSES += RELATIONS
ONLY = {"excess": Layout.SHARD_LAST, "floored_kl": Layout.SHARD_LAST}
ONLY |= {"cosine_distance": Layout.REPLICATED} | dict.fromkeys(RELATIONS, Layout.SHARD_LAST)
TEMPERATURE, TOP_N = 3.0, 5


@dataclasses.dataclass(frozen=True)
class Case:
    """One loss on one kind of tensor."""

    loss: str
    layout: Layout
    rows: str
    keep_batch: bool
    columns: bool
    teacher_grad: bool = False

    def __str__(self) -> str:
        words = [self.loss, self.layout.value, self.rows]
        words += [w for w in ("keep_batch", "columns", "teacher_grad") if getattr(self, w)]
        return "-".join(words)


def cases() -> list[Case]:
    made = []
    for loss, layout, rows, keep in itertools.product(LOSSES, Layout, ROWS, (False, True)):
        if ONLY.get(loss, layout) is not layout:
            continue
        made.append(Case(loss, layout, rows, keep, columns=False))
        if rows not in ("none", "few") or loss in ("excess", "floored_kl"):
            continue
        if loss != "cosine_distance":
            made.append(Case(loss, layout, rows, keep, columns=True))
        if loss not in RELATIONS:
            made.append(Case(loss, layout, rows, keep, columns=False, teacher_grad=True))
    return made


def tensors(case: Case) -> dict[str, Any]:
    """Whole student, teacher, columns, and the rows, from one generator."""
    generator = torch.Generator().manual_seed(7)
    shape = SHAPES[case.layout]
    student, teacher = (2 * torch.randn(shape, generator=generator) for _ in range(2))
    columns = torch.rand(shape, generator=generator) < 0.6
    columns[..., ::4] = True
    keys = torch.rand((3, 1, 1, 6), generator=generator) < 0.6
    keys[..., 0] = True
    return {
        "student": student,
        "teacher": teacher,
        "columns": keys if case.loss in RELATIONS else columns,
        "rows": make_rows(case.rows),
    }


def make_rows(kind: str) -> Rows | None:
    """Rows over [3, 6]: without, most, few (so that they are picked), none at all; D3's."""
    if kind == "none":
        return None
    mask = torch.ones(3, 6)
    if kind == "most":
        mask[0, 4:] = 0
    elif kind == "empty":
        mask[:] = 0
    else:
        mask[:, 3:] = 0
        mask[1] = 0
    if kind == "seed":
        return Rows(mask, torch.tensor(18.0), 3, worth_picking(mask), 1 - mask)
    return Rows(mask, torch.tensor(5.5), 3, worth_picking(mask))


def shard(x: Tensor, layout: Layout) -> Tensor:
    """This rank's part of a whole tensor."""
    if layout.dim is None:
        return x
    return x.chunk(mpu.get_model_parallel_world_size(), layout.dim)[mpu.get_model_parallel_rank()]


def actual(case: Case, x: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Loss, and the gradients of this rank's student and teacher."""
    student, teacher = (shard(x[k], case.layout).clone() for k in ("student", "teacher"))
    student.requires_grad_()
    teacher.requires_grad_(case.teacher_grad)
    options: dict[str, Any] = {
        "layout": case.layout,
        "rows": x["rows"],
        "keep_batch": case.keep_batch,
    }
    if case.loss == "cosine_distance":
        del options["layout"]
        loss = losses.cosine_distance(student, teacher, **options)
    elif case.loss in RELATIONS:
        options["columns"] = x["columns"] if case.columns else None
        loss = relation_kl(student, teacher, int(case.loss[-1]), options)
    elif case.loss == "excess":
        chosen = losses.top_n_columns(teacher, TOP_N, case.layout)
        loss, _ = losses.excess(student, chosen, **options)
    elif case.loss == "floored_kl":
        floored = losses.floored(teacher, TOP_N, case.layout)
        loss = losses.kl(student, floored, temperature=TEMPERATURE, **options)
    else:
        options["columns"] = shard(x["columns"], case.layout) if case.columns else None
        if case.loss != "mse":
            options["temperature"] = TEMPERATURE
        loss = getattr(losses, case.loss)(student, teacher, **options)
    weights = torch.arange(1.0, 4.0) if case.keep_batch else torch.tensor(1.0)
    (loss * weights).sum().backward()
    return loss.detach(), student.grad, teacher.grad


def relation_kl(student: Tensor, teacher: Tensor, heads: int, options: dict[str, Any]) -> Tensor:
    """KL between the relations of positions, in so many heads."""
    student, layout = losses.split_heads(student, heads)
    teacher, _ = losses.split_heads(teacher, heads)
    pair = losses.relation(student), losses.relation(teacher)
    return losses.kl(*pair, **(options | {"layout": layout}))


def expected(case: Case, x: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same on whole tensors in float64, by the formulas."""
    student, teacher = (x[k].double().requires_grad_() for k in ("student", "teacher"))
    per_row = dense_rows(case, student, teacher, x["columns"])
    masked = torch.tensor(0.0)
    if case.loss == "soft_cross_entropy":
        masked = TEMPERATURE**2 * torch.tensor(float(student.size(-1))).log()
    if case.loss == "cosine_distance":
        masked = torch.tensor(1.0)
    if per_row.dim() == 3:
        per_row = per_row.mean(1)
    rows = x["rows"]
    if rows is None:
        loss = per_row.mean(1) if case.keep_batch else per_row.mean()
    else:
        outside = 0.0 if rows.outside is None else rows.outside * masked
        values = (per_row * rows.mask + outside) / rows.total
        loss = 3 * values.sum(1) if case.keep_batch else values.sum()
    weights = torch.arange(1.0, 4.0) if case.keep_batch else torch.tensor(1.0)
    (loss * weights).sum().backward()
    return loss.detach(), student.grad, teacher.grad if case.teacher_grad else None


def dense_rows(case: Case, student: Tensor, teacher: Tensor, columns: Tensor) -> Tensor:
    """Row losses: everything but the last dim."""
    if case.loss == "excess":
        inside = torch.zeros_like(columns).scatter(-1, teacher.topk(TOP_N, -1).indices, True)
        theta = student.masked_fill(~inside, torch.inf).amin(-1, keepdim=True)
        above = (student - theta).clamp(min=0).masked_fill(inside, 0)
        return above.sum(-1) / (above > 0).sum(-1).clamp(min=1)
    if case.loss == "floored_kl":
        order = teacher.sort(-1, descending=True)
        lowest = order.values[..., -1:].expand_as(teacher)
        places = order.indices[..., TOP_N:]
        teacher = teacher.scatter(-1, places, lowest).detach()
    if case.loss == "cosine_distance":
        return 1 - torch.cosine_similarity(student, teacher, dim=-1)
    if case.loss in RELATIONS:
        return relation_rows(case, student, teacher, columns)
    columns = columns.double() if case.columns else torch.ones_like(student)
    if case.loss == "mse":
        return ((student - teacher) ** 2 * columns).sum(-1) / columns.sum(-1)
    p, q = (soft(x / TEMPERATURE, columns) for x in (teacher, student))
    inside = q.log() if case.loss == "soft_cross_entropy" else (q / p).log()
    inside = torch.where(columns > 0, inside, 0.0)
    return -(TEMPERATURE**2) * (p * inside).sum(-1)


def relation_rows(case: Case, student: Tensor, teacher: Tensor, keys: Tensor) -> Tensor:
    """Head by head, [b, heads, s]."""
    rows, heads = [], int(case.loss[-1])
    for s, t in zip(student.chunk(heads, -1), teacher.chunk(heads, -1), strict=True):
        log_q, log_p = (
            torch.einsum("bih,bjh->bij", x, x)
            .div(x.size(-1) ** 0.5)
            .masked_fill(~keys[:, 0] & case.columns, -1e300)
            .log_softmax(-1)
            for x in (s, t)
        )
        rows.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return torch.stack(rows, 1)


def soft(x: Tensor, columns: Tensor) -> Tensor:
    """Softmax over the columns, 1 elsewhere (so that its logarithm is 0)."""
    weights = x.exp() * columns
    return torch.where(columns > 0, weights / weights.sum(-1, keepdim=True), 1.0)


def on_rank(rank: int, world_size: int) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    mpu.initialize_model_parallel(world_size)
    return [actual(case, tensors(case)) for case in cases()]


@pytest.fixture(scope="module", params=[1, 2, 4])
def results(request: pytest.FixtureRequest) -> list[list[tuple[Tensor, Tensor, Tensor | None]]]:
    """Per rank, per case: all cases of a p at once."""
    if request.param == 1:
        return [[actual(case, tensors(case)) for case in cases()]]
    return run_ranks(request.param, on_rank)


GROUPS = sorted({(c.loss, c.layout.value) for c in cases()})


@pytest.mark.parametrize(("loss", "layout"), GROUPS)
def test_loss_and_gradient_equal_dense_torch(loss, layout, results):
    for number, case in enumerate(cases()):
        if (case.loss, case.layout.value) == (loss, layout):
            compare(case, [result[number] for result in results])


def compare(case: Case, ranks: list[tuple[Tensor, Tensor, Tensor | None]]) -> None:
    """All ranks of one case against dense torch."""
    loss, student_grad, teacher_grad = expected(case, tensors(case))
    for rank in ranks:
        torch.testing.assert_close(rank[0].double(), loss, rtol=1e-5, atol=1e-6, msg=str(case))
    close_gradient(join([r[1] for r in ranks], case.layout), student_grad, case)
    if case.teacher_grad:
        close_gradient(join([r[2] for r in ranks], case.layout), teacher_grad, case)
    else:
        assert all(r[2] is None for r in ranks), case


@pytest.mark.parametrize(("loss", "layout"), GROUPS)
def test_mean_over_the_batch_is_the_scalar_loss(loss, layout, results):
    for number, case in enumerate(cases()):
        if not case.keep_batch or (case.loss, case.layout.value) != (loss, layout):
            continue
        scalar = cases().index(dataclasses.replace(case, keep_batch=False))
        for rank in results:
            per_sample = rank[number][0]
            assert per_sample.shape == (3,), case
            torch.testing.assert_close(per_sample.mean(), rank[scalar][0], msg=str(case))


def join(parts: list[Tensor], layout: Layout) -> Tensor:
    """Shards of all ranks -> whole; of a replicated tensor every rank has the whole gradient."""
    if layout.dim is None:
        for part in parts[1:]:
            torch.testing.assert_close(part, parts[0], rtol=0, atol=0)
        return parts[0]
    return torch.cat(parts, layout.dim)


def close_gradient(actual: Tensor, expected: Tensor, case: Case) -> None:
    """Within 1e-6 of the largest entry."""
    atol = 1e-6 * max(float(expected.abs().max()), 1e-3)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=atol, msg=str(case))


# A law that cannot fail says nothing: each mutation must break it.

MUTATED = Case("kl", Layout.SHARD_LAST, "few", False, False)


def mutated(rank: int, world_size: int, mutation: str) -> tuple[Tensor, Tensor]:
    mpu.initialize_model_parallel(world_size)
    if mutation == "local softmax":
        losses.FEW = 0  # else so few numbers would not go that way
        distill.divergence.max_across = lambda x: x
        distill.divergence.reduce_from_model_parallel_region = lambda x: x
    elif mutation == "identity backward":
        mpu.softmax.sum_across_model_parallel_region = mpu.reduce_from_model_parallel_region
    case = dataclasses.replace(MUTATED, teacher_grad=mutation == "identity backward")
    loss, grad, _ = actual(case, tensors(case))
    factor = 1 / TEMPERATURE**2 if mutation == "no temperature" else 1.0
    return loss * factor, grad * factor


@pytest.mark.parametrize("mutation", ["local softmax", "identity backward", "no temperature"])
def test_the_law_sees_a_wrong_loss(mutation):
    ranks = run_ranks(2, mutated, mutation)
    with pytest.raises(AssertionError):
        compare(MUTATED, [(loss, grad, None) for loss, grad in ranks])
