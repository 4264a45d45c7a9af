"""Rates against formulas, the seed's numbers, and the promise never to go below the floor."""

import json
import math

import pytest

from config.training import OptimizerArgs
from distill.engine.lr_schedule import LRSchedule
from tests.vector_checks.common import OK
from tests.vector_checks.engine import check_lr_schedule

STYLES = ("constant", "linear", "cosine", "exponential")


def schedule(style: str, *, total: int = 100, compat: bool = False, **changes) -> LRSchedule:
    values = {"lr": 1e-3, "lr_decay_style": style, "warmup": 0.1, "lr_decay_ratio": 0.2} | changes
    return LRSchedule.build(OptimizerArgs(**values), total, seed_compat=compat)


def test_every_rate_of_the_seed(vectors):
    (result,) = check_lr_schedule(vectors / "lr_schedule")
    assert result.status == OK, result.message


def test_the_vector_check_can_fail(vectors, tmp_path):
    content = json.loads((vectors / "lr_schedule" / "expected.json").read_text())
    content["cases"][0]["lr_after_k_scheduler_steps"][30] *= 1.001
    (tmp_path / "expected.json").write_text(json.dumps(content))
    (result,) = check_lr_schedule(tmp_path)
    assert result.status != OK


@pytest.mark.parametrize("style", STYLES)
def test_warm_up_is_linear_from_zero(style):
    actual = [schedule(style)(k) for k in range(11)]
    assert actual == pytest.approx([1e-3 * k / 10 for k in range(11)])


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("constant", 1e-3),
        ("linear", 1e-3 * (1 - 0.8 / 2)),
        ("cosine", 1e-3 * (0.2 + 0.8 * (1 + math.cos(math.pi / 2)) / 2)),
        ("exponential", 1e-3 * 0.2**0.5),
    ],
)
def test_half_way_down(style, expected):
    assert schedule(style)(55) == pytest.approx(expected)


@pytest.mark.parametrize("style", ["linear", "cosine", "exponential"])
def test_never_below_the_floor(style):
    actual = [schedule(style)(k) for k in range(100, 400, 7)]
    assert actual == pytest.approx([2e-4] * len(actual))


def test_the_seed_goes_below_zero_under_compat_only():
    assert schedule("linear", compat=True)(400) < 0
    assert schedule("linear")(400) > 0


def test_decay_iters_come_before_the_length_of_the_run():
    short = schedule("linear", total=1000, lr_decay_iters=100)
    assert short(100) == pytest.approx(2e-4)
    assert schedule("linear", total=1000)(100) == pytest.approx(1e-3)


def test_extremes_do_not_divide_by_zero():
    assert schedule("linear", warmup=0.0)(0) == pytest.approx(1e-3)
    assert schedule("cosine", warmup=1.0)(150) == pytest.approx(2e-4)
    assert schedule("linear", total=0)(0) >= 0
