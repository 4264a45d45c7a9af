"""pre_loss: every --distill_* switch, by default and as in the seed, against dense torch."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from config import Compat, DistillArgs
from distill.context import LossContext, Predictions
from distill.rows import Rows
from distill.soft_labels import SoftLabels
from mpu.layout import Layout

T = 3.0
TARGETS = torch.tensor([[0.0, 0, 1, 1, 0], [0, 0, 1, 0, 0]])
TOKENS = torch.tensor([[1.0, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
LABELS = torch.tensor([[5, 0, 7, 8, 0], [5, 6, 7, 0, 0]])  # a token with id 0 in row 0
CHOICES = torch.tensor([[1.0, 1, 1], [1, 1, 0]])
HARD = torch.tensor(2.0)


def soft_labels(stage: str, compat: str = "", **switches: Any) -> SoftLabels:
    args = DistillArgs(distill_temperature=T, **switches)
    return SoftLabels(args=args, compat=Compat.parse(compat), stage=stage)


def terms_of(
    labels: SoftLabels, student: Tensor, teacher: Tensor, ctx: LossContext, weight: float = 1.0
) -> dict[str, Tensor]:
    given = Predictions(
        lazy_student=student, lazy_teacher=teacher, hard_loss=HARD, teacher_weight=weight
    )
    return labels.terms(given, ctx)


def logits(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(shape, generator=generator) for _ in range(2))
    return student, teacher


def lm_context(d3: bool = False) -> LossContext:
    """Two rows of five positions; D3: all ten count."""
    every = torch.ones(2, 5)
    if d3:
        total = torch.tensor(10.0)
        rows = {
            n: Rows(m, total, 2, None, every - m)
            for n, m in (("targets", TARGETS), ("tokens", TOKENS))
        }
        rows["all"] = Rows(every, total, 2)
    else:
        rows = {n: Rows(m, m.sum(), 2) for n, m in (("targets", TARGETS), ("tokens", TOKENS))}
        rows["all"] = rows["tokens"]
    return LossContext(rows=rows, labels=LABELS, loss_mask=TARGETS, layout=Layout.SHARD_LAST)


def row_losses(kind: str, student: Tensor, teacher: Tensor) -> Tensor:
    """Without T^2."""
    if kind == "mse":
        return ((student - teacher) ** 2).mean(-1)
    log_q, p = F.log_softmax(student / T, -1), F.softmax(teacher / T, -1)
    if kind == "kl":
        return F.kl_div(log_q, p, reduction="none").sum(-1)
    return -(p * log_q).sum(-1)


STAGES = {
    "pt": {"kl": {}, "ce": {"distill_pt_soft_ce": True}, "mse": {"distill_pt_soft_mse": True}},
    "ft": {"ce": {}, "kl": {"distill_ft_soft_kl": True}, "mse": {"distill_ft_soft_mse": True}},
}
MASKS = {
    "targets": {},
    "tokens": {"distill_only_mask_pad": True},
    "all": {"distill_wo_loss_mask": True},
}
LM = [
    (stage, kind, mask)
    for stage, kinds in STAGES.items()
    for kind, mask in itertools.product(kinds, MASKS)
]


@pytest.mark.parametrize(("stage", "kind", "mask"), LM)
def test_language_model_by_default(stage, kind, mask):
    student, teacher = logits(2, 5, 8)
    labels = soft_labels(
        stage, **{f"distill_{stage}_soft": True}, **STAGES[stage][kind], **MASKS[mask]
    )
    terms = terms_of(labels, student, teacher, lm_context())
    rows = TARGETS if mask == "targets" else TOKENS
    scale = 1 if kind == "mse" else T**2
    expected = scale * (row_losses(kind, student, teacher) * rows).sum() / rows.sum()
    assert list(terms) == [f"{stage}_soft"]
    torch.testing.assert_close(terms[f"{stage}_soft"], expected)


@pytest.mark.parametrize(("stage", "kind", "mask"), LM)
def test_language_model_as_in_the_seed(stage, kind, mask):
    student, teacher = logits(2, 5, 8)
    switches = {f"distill_{stage}_soft": True} | STAGES[stage][kind] | MASKS[mask]
    labels = soft_labels(stage, "glmkd", **switches)
    (actual,) = terms_of(labels, student, teacher, lm_context(d3=True)).values()
    rows = {"targets": TARGETS, "tokens": (LABELS > 0).float(), "all": torch.ones(2, 5)}[mask]
    if kind == "mse" and stage == "ft":
        rows = torch.ones(2, 5)  # D1
    losses = row_losses(kind, student * rows[..., None], teacher * rows[..., None])  # D3: zeros
    scale = T**2 if kind == "kl" else 1  # D2
    torch.testing.assert_close(actual, scale * losses.mean())


@pytest.mark.parametrize("kind", ["ce", "kl", "mse"])
@pytest.mark.parametrize("compat", ["", "glmkd"])
def test_choices(kind, compat):
    student, teacher = logits(2, 3)
    labels = soft_labels("ft", compat, distill_ft_soft=True, **STAGES["ft"][kind])
    mask = None if compat else CHOICES  # D6: the step leaves it out
    context = LossContext(
        rows={"samples": Rows(torch.ones(2), torch.tensor(2.0), 2)}, class_mask=mask
    )
    (actual,) = terms_of(labels, student, teacher, context).values()
    if compat:
        expected = row_losses(kind, student, teacher).mean()
    else:  # the second sample has two real choices
        whole = row_losses(kind, student[0], teacher[0])
        expected = (whole + row_losses(kind, student[1, :2], teacher[1, :2])) / 2
    scale = 1 if kind == "mse" or (kind == "ce" and compat) else T**2
    torch.testing.assert_close(actual, scale * expected)


def test_single_defects_can_be_chosen():
    student, teacher = logits(2, 5, 8)
    context = lm_context(d3=True)
    by = {}
    for compat in ("", "D1", "D2", "D3"):
        labels = soft_labels("ft", compat, distill_ft_soft=True)
        by[compat] = terms_of(labels, student, teacher, context)["ft_soft"]
    torch.testing.assert_close(by["D2"] * T**2, by[""])
    torch.testing.assert_close(by["D1"], by[""])  # concerns the squared error only
    assert soft_labels("ft", "D1", distill_ft_soft=True, distill_ft_soft_mse=True).kind == "mse"


def test_rates_and_hard_labels():
    student, teacher = logits(2, 5, 8)
    switches = {
        "distill_pt_soft": True,
        "distill_pt_hard": True,
        "distill_soft_rate": 0.5,
        "distill_hard_rate": 0.25,
    }
    terms = terms_of(soft_labels("pt", **switches), student, teacher, lm_context())
    expected = T**2 * (row_losses("kl", student, teacher) * TARGETS).sum() / TARGETS.sum()
    assert list(terms) == ["pt_soft", "pt_hard"]
    torch.testing.assert_close(terms["pt_soft"], 0.5 * expected)
    torch.testing.assert_close(terms["pt_hard"], 0.25 * HARD)


@pytest.mark.parametrize(
    ("stage", "switches"),
    [
        ("pt", {}),
        ("pt", {"distill_ft_soft": True, "distill_ft_hard": True}),
        ("ft", {"distill_pt_soft": True, "distill_pt_hard": True}),
        (
            "ft",
            {
                "distill_ft_soft": True,
                "distill_soft_rate": 0.0,
                "distill_ft_hard": True,
                "distill_hard_rate": 0.0,
            },
        ),
    ],
)
def test_switches_of_the_other_stage_and_zero_rates_do_nothing(stage, switches):
    student, teacher = logits(2, 5, 8)
    assert terms_of(soft_labels(stage, **switches), student, teacher, lm_context()) == {}


def test_the_teachers_weight_is_for_the_squared_error():
    student, teacher = logits(2, 5, 8)
    labels = soft_labels("pt", distill_pt_soft=True, distill_pt_soft_mse=True)
    actual = terms_of(labels, student, teacher, lm_context(), 0.5)["pt_soft"]
    expected = (row_losses("mse", student, teacher / 2) * TARGETS).sum() / TARGETS.sum()
    torch.testing.assert_close(actual, expected)


def test_a_masked_row_of_the_seeds_cross_entropy_counts_log_v():
    student, teacher = logits(2, 5, 8)
    labels = soft_labels("pt", "glmkd", distill_pt_soft=True, distill_pt_soft_ce=True)
    actual = terms_of(labels, student, teacher, lm_context(d3=True))["pt_soft"]
    inside = (row_losses("ce", student, teacher) * TARGETS).sum()
    expected = (inside + 7 * math.log(8)) / 10
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("stage", "compat", "switches", "expected"),
    [
        ("pt", "", {}, True),
        ("pt", "", {"distill_pt_soft": True}, True),
        ("pt", "", {"distill_pt_soft": True, "distill_wo_loss_mask": True}, False),
        ("pt", "", {"distill_pt_soft": True, "distill_only_mask_pad": True}, False),
        ("pt", "", {"distill_pt_hard": True, "distill_only_mask_pad": True}, True),
        ("ft", "D1", {"distill_ft_soft": True, "distill_ft_soft_mse": True}, False),
        ("ft", "", {"distill_ft_soft": True, "distill_ft_soft_mse": True}, True),
    ],
)
def test_which_positions_are_needed(stage, compat, switches, expected):
    assert soft_labels(stage, compat, **switches).targets_only is expected
