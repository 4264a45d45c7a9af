"""Law: losses of logits that nobody computes are those of whole logits, whatever p and chunk.

The reference is dense torch in float64 on one process: the products, then the formulas of
`test_losses`; gradients of the student's states and table by its autograd.
"""

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mpu
import mpu.row_losses
from distill import losses
from distill.entropy import ENTROPY
from distill.lazy_logits import Logits, Planned
from distill.losses import planned_top_n, top_n_losses
from distill.rows import Rows
from distill.top_n import TopN
from distill.vocab_rows import SoftRows, SquaredRows
from mpu.layout import Layout
from mpu.row_losses import HardRows
from tests.laws.test_losses import TEMPERATURE, TOP_N, Case, dense_rows, make_rows
from tests.ranks import run_ranks

BATCH, LENGTH, WIDTH, HIDDEN, TEACHER_HIDDEN = 3, 6, 16, 5, 7
HARD = {"hard": 0.0, "smoothed": 0.1}  # and their label smoothing
KINDS = ("kl", "soft_cross_entropy", "mse", *HARD, "top_n", "top_n_mse", "floored_kl", "entropy")
LAYOUT = Layout.SHARD_LAST
RATE = 0.3  # of the soft loss beside the hard one


@dataclasses.dataclass(frozen=True)
class Lazy:
    """One loss, as it is asked for."""

    kind: str
    rows: str
    keep_batch: bool
    prepared: bool
    trained: bool = False  # the teacher

    def __str__(self) -> str:
        return "-".join(str(value) for value in dataclasses.astuple(self))


def cases() -> list[Lazy]:
    made = [Lazy(kind, "few", keep, not keep) for kind in KINDS for keep in (False, True)]
    made += [Lazy(kind, "none", False, False) for kind in KINDS]
    for kind in ("kl", "soft_cross_entropy", "mse", "top_n", "top_n_mse"):
        made += [Lazy(kind, "few", keep, not keep, trained=True) for keep in (False, True)]
    every = itertools.product(("kl", "hard"), ("none", "most", "empty"), (False, True))
    return made + [Lazy(kind, rows, keep, True) for kind, rows, keep in every]


def tensors() -> dict[str, Tensor]:
    """States and tables of both, whole, and labels."""
    generator = torch.Generator().manual_seed(3)
    made = {}
    for name, width in (("student", HIDDEN), ("teacher", TEACHER_HIDDEN)):
        made[name] = torch.randn(BATCH, LENGTH, width, generator=generator)
        made[f"{name}_table"] = torch.randn(WIDTH, width, generator=generator)
    made["labels"] = torch.randint(WIDTH, (BATCH, LENGTH), generator=generator)
    return made


class Table:
    """An output layer of a rank's rows of a table."""

    def __init__(self, table: Tensor):
        self.table = table

    def __call__(self, states, use=F.linear):
        return use(mpu.copy_to_model_parallel_region(states), self.table)


def actual(case: Lazy) -> list[Tensor]:
    """Loss, gradient of the states, gradient of this rank's table."""
    x, rows = tensors(), make_rows(case.rows)
    size, rank = mpu.get_model_parallel_world_size(), mpu.get_model_parallel_rank()
    states = x["student"].requires_grad_()
    table = x["student_table"].chunk(size)[rank].clone().requires_grad_()
    other = x["teacher_table"].chunk(size)[rank].clone().requires_grad_(case.trained)
    x["teacher"].requires_grad_(case.trained)
    student = Logits(states, Table(table), WIDTH // size, torch.float32)
    teacher = Logits(x["teacher"], Table(other), WIDTH // size, torch.float32)
    hard = HardRows(x["labels"].flatten(), smoothing=HARD.get(case.kind, 0.0))
    if case.prepared:
        plans = [*planned(case, rows), Planned(hard, rows, 1.0)]
        student.prepare(plans, teacher)
    loss = losses.mean_of_rows(student.rows(hard, None, rows), rows, case.keep_batch)
    if case.kind not in HARD:
        loss = loss + RATE * soft_loss(case, student, teacher, rows)
    weights = torch.arange(1.0, 1.0 + BATCH) if case.keep_batch else torch.tensor(1.0)
    (loss * weights).sum().backward()
    theirs = [x["teacher"].grad, other.grad] if case.trained else []
    return [loss.detach(), states.grad, table.grad, *theirs]


def planned(case: Lazy, rows: Rows | None) -> list[Planned]:
    """What `soft_loss` will ask for."""
    square = TEMPERATURE**2
    made = {
        "kl": [Planned(SoftRows(TEMPERATURE), rows, RATE * square)],
        "soft_cross_entropy": [Planned(SoftRows(TEMPERATURE, True), rows, RATE * square)],
        "mse": [Planned(SquaredRows(0.5, width=WIDTH), rows, RATE)],
        "entropy": [Planned(ENTROPY, rows, RATE)],
        **{kind: [] for kind in HARD},
    }
    if case.kind in made:
        return made[case.kind]
    return list(planned_top_n(top_of(case), rows, pooled=False))


def top_of(case: Lazy) -> TopN:
    temperature = None if case.kind == "top_n_mse" else TEMPERATURE
    return TopN(TOP_N, temperature, floor=case.kind == "floored_kl")


def soft_loss(case: Lazy, student: Logits, teacher: Logits, rows: Rows | None) -> Tensor:
    options = {"rows": rows, "keep_batch": case.keep_batch}
    if case.kind == "mse":
        return losses.mse(student, teacher, layout=LAYOUT, teacher_weight=0.5, **options)
    if case.kind == "entropy":
        return losses.mean_of_rows(student.rows(ENTROPY, None, rows), **options)
    if case.kind in ("kl", "soft_cross_entropy"):
        options |= {"layout": LAYOUT, "temperature": TEMPERATURE}
        return getattr(losses, case.kind)(student, teacher, **options)
    above, _, divergence = top_n_losses(student, teacher, top_of(case), pooled=False, **options)
    return divergence if above is None else divergence + above


def expected(case: Lazy) -> list[Tensor]:
    """The same of whole logits in float64."""
    x, rows = tensors(), make_rows(case.rows)
    x = {k: v.double() if v.is_floating_point() else v for k, v in x.items()}
    states, table = x["student"].requires_grad_(), x["student_table"].requires_grad_()
    others = [x[name].requires_grad_(case.trained) for name in ("teacher", "teacher_table")]
    z, t = states @ table.T, others[0] @ others[1].T
    smoothing = HARD.get(case.kind, 0.0)
    labels = x["labels"].flatten()
    values = F.cross_entropy(z.flatten(0, 1), labels, reduction="none", label_smoothing=smoothing)
    values = values.view(BATCH, LENGTH)
    if case.kind not in HARD:
        values = values + RATE * dense_soft_rows(case, z, t)
    if rows is not None:
        values = values * rows.mask
    total = float(values.numel()) if rows is None else float(rows.total)
    loss = values.sum(1) * BATCH / total if case.keep_batch else values.sum() / total
    weights = torch.arange(1.0, 1.0 + BATCH) if case.keep_batch else torch.tensor(1.0)
    (loss * weights).sum().backward()
    theirs = [other.grad for other in others] if case.trained else []
    return [loss.detach(), states.grad, table.grad, *theirs]


def dense_soft_rows(case: Lazy, z: Tensor, t: Tensor) -> Tensor:
    """Row losses by the formulas of whole logits."""
    if case.kind == "mse":
        return (z - 0.5 * t).square().mean(-1)
    if case.kind == "entropy":
        return -(z.softmax(-1) * z.log_softmax(-1)).sum(-1)
    if not case.kind.startswith("top_n"):
        return dense_rows(Case(case.kind, LAYOUT, "none", False, False), z, t, None)
    inside = torch.zeros_like(t, dtype=torch.bool).scatter(-1, t.topk(TOP_N, -1).indices, True)
    name = "mse" if case.kind == "top_n_mse" else "kl"
    divergence = dense_rows(Case(name, LAYOUT, "none", False, True), z, t, inside)
    return divergence + dense_rows(Case("excess", LAYOUT, "none", False, False), z, t, inside)


def on_rank(rank: int, world_size: int) -> list[list[Tensor]]:
    mpu.initialize_model_parallel(world_size)
    mpu.row_losses.CHUNK_ELEMENTS = 3 * WIDTH // world_size
    mpu.row_losses.BLOCK_ELEMENTS = 2 * WIDTH // world_size
    return [*(actual(case) for case in cases()), means()]


def means() -> list[Tensor]:
    """Logits of each sample's mean over its rows, and the gradient of their squares."""
    x, size, rank = tensors(), mpu.get_model_parallel_world_size(), mpu.get_model_parallel_rank()
    table = x["student_table"].chunk(size)[rank].clone().requires_grad_()
    student = Logits(x["student"].requires_grad_(), Table(table), WIDTH // size, torch.float32)
    found = student.over_rows(lambda rows: rows.mean(1))
    found.square().sum().backward()
    return [found.detach(), x["student"].grad, table.grad]


@pytest.fixture(scope="module", params=[1, 2, 4])
def results(request: pytest.FixtureRequest) -> list[list[list[Tensor]]]:
    """Per rank, per case: all cases of a p at once."""
    return run_ranks(request.param, on_rank)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_equal_dense_torch(kind, results):
    for number, case in enumerate(cases()):
        if case.kind == kind:
            compare(case, [result[number] for result in results])


def test_means_over_rows_are_those_of_dense_logits(results):
    x = {name: value.double() for name, value in tensors().items() if name != "labels"}
    states, table = x["student"].requires_grad_(), x["student_table"].requires_grad_()
    expected = (states @ table.T).mean(1)
    expected.square().sum().backward()
    ranks = [result[-1] for result in results]
    for number, (wanted, of_ranks) in enumerate(((expected.detach(), 1), (table.grad, 0))):
        actual = torch.cat([rank[2 * number] for rank in ranks], of_ranks)
        torch.testing.assert_close(actual.double(), wanted, rtol=1e-5, atol=1e-5)
    for _, gradient, _ in ranks:
        torch.testing.assert_close(gradient.double(), states.grad, rtol=1e-5, atol=1e-5)


def compare(case: Lazy, ranks: list[list[Tensor]]) -> None:
    """All ranks of one case against dense torch."""
    loss, *gradients = expected(case)
    for rank in ranks:
        torch.testing.assert_close(rank[0].double(), loss, rtol=1e-5, atol=1e-6, msg=str(case))
        for of_states, wanted in zip(rank[1::2], gradients[::2], strict=True):
            close(of_states, wanted, case)
    for number, wanted in enumerate(gradients[1::2]):
        close(torch.cat([rank[2 + 2 * number] for rank in ranks]), wanted, case)


def close(found: Tensor, wanted: Tensor, case: Lazy) -> None:
    """Within 1e-5 of the largest entry."""
    atol = 1e-5 * max(float(wanted.abs().max()), 1e-3)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=atol, msg=str(case))


def wrong(rank: int, world_size: int) -> list[Tensor]:
    mpu.initialize_model_parallel(world_size)
    mpu.row_losses.max_across = lambda x: x
    mpu.row_losses.reduce_from_model_parallel_region = lambda x: x
    return actual(Lazy("kl", "few", False, True))


def test_the_law_sees_a_softmax_of_one_rank():
    ranks = run_ranks(2, wrong)
    with pytest.raises(AssertionError):
        compare(Lazy("kl", "few", False, True), ranks)
