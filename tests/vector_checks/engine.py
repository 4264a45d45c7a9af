"""The learning-rate schedule against the seed's."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from config.training import OptimizerArgs
from distill.engine.lr_schedule import LRSchedule
from tests.vector_checks.common import Result, read_json


def check_lr_schedule(case: Path) -> list[Result]:
    """Every rate of every schedule of the case, and the restart as a linear one."""
    expected, result = read_json(case, "expected.json"), Result(case.name)
    for number, one in enumerate(expected["cases"]):
        rates = one["lr_after_k_scheduler_steps"]
        schedule = _schedule(one)
        result.values(f"case {number}", [schedule(k) for k in range(len(rates))], rates)
        _relative(result, f"case {number}", [schedule(k) for k in range(len(rates))], rates)
    if "switch_linear" in expected:
        _check_switch(expected["switch_linear"], result)
    return [result]


def _schedule(one: dict[str, Any]) -> LRSchedule:
    # The seed counts micro-batches while fine-tuning; ours counts optimizer steps.
    repeat = one["gradient_accumulation_steps"] if one["finetune"] else 1
    optim = OptimizerArgs(
        lr=one["lr"],
        lr_decay_style=one["lr_decay_style"],
        lr_decay_iters=one["lr_decay_iters"] and one["lr_decay_iters"] // repeat,
        lr_decay_ratio=one["lr_decay_ratio"],
        warmup=one["warmup"],
    )
    return LRSchedule.build(optim, one["train_iters"] // repeat, seed_compat=True)


def _check_switch(case: dict[str, Any], result: Result) -> None:
    args, done = case["args"], case["called_after_steps"]
    schedule = _schedule(args).switch_linear(done, args["train_iters"])
    actual = [schedule(done + k) for k in range(1, len(case["lr_after"]) + 1)]
    result.values("switch_linear", actual, case["lr_after"])
    _relative(result, "switch_linear", actual, case["lr_after"])


def _relative(result: Result, what: str, actual: list[float], expected: list[float]) -> None:
    """Rates are far below the absolute tolerance of losses: compare them relative to the peak."""
    peak = max(abs(x) for x in expected) or 1.0
    result.values(f"{what} / peak", [x / peak for x in actual], [x / peak for x in expected])


CHECKS: dict[str, Callable[[Path], list[Result]]] = {"lr_schedule*": check_lr_schedule}
