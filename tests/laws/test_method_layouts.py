"""Law: every registered method and combiner trains alike cut in four, and cut and copied under ZeRO.

Two steps each: losses and gradient norms, of which the second ones have seen the first update.
That losses, terms and every gradient do not depend on p is in `test_methods` and `test_combiners`.
"""

import dataclasses
from typing import Any

import pytest

import mpu
from config import RunArgs
from data_utils.batch import Batch
from distill.context import TrainState
from distill.engine.wrap import wrap
from distill.step import DistillStep
from tests.distill.engine.small import deepspeed_json, runtime
from tests.distill.runs import (
    all_methods,
    cloze_task,
    lm_task,
    rows_of,
    toy_run,
    toy_student,
    toy_teachers,
)
from tests.distill.teachers.several import TWO
from tests.laws.test_combiners import CASES as COMBINED
from tests.laws.test_combiners import METHODS as COMBINED_METHODS
from tests.laws.test_methods import BASE, SWITCHES
from tests.ranks import run_ranks
from tests.toy import toy_cloze_batch, toy_lm_batch

STEPS, RATE = 2, 1e-3
#: They compare, rank or change whole micro-batches (their docstrings say so): both data-parallel
#: ranks get the same samples.
WHOLE = ("mgskd", "lrc_bert", "diito", "theseus", "uncertainty", "rl_kd", "mixmt")

#: Draws that differ between data-parallel ranks on purpose are left out.
UNDRAWN = {"diito": ["--diito_interchange_prop=0"]}

Records = list[tuple[float, float]]


def cases() -> list[tuple[str, str, list[str]]]:
    """(program, method or combiner, flags)."""
    methods = [
        (program, name, [f"--student_model={name}", *SWITCHES[program], *_flags_of(name)])
        for name in all_methods()
        for program in SWITCHES
    ]
    combiners = [
        ("pretrain", name, [*TWO, f"--multi_teacher_model={name}", *COMBINED_METHODS[method], *flags])
        for name, [(method, flags), *_] in COMBINED.items()
        if name != "rl_kd"  # draws a teacher for every sample and rank
    ]  # fmt: skip
    return methods + combiners


def _flags_of(name: str) -> list[str]:
    return [*BASE.get(name, []), *UNDRAWN.get(name, [])]


def run_of(program: str, flags: list[str], stage: int | None, recompute: bool) -> RunArgs:
    run = toy_run(*flags, program=program)
    model = dataclasses.replace(run.model, checkpoint_activations=recompute)
    run = dataclasses.replace(run, model=model)
    if stage is None:
        return run
    parallel = dataclasses.replace(run.parallel, deepspeed=True)
    json = deepspeed_json(stage, 1, False, run.train.clip_grad)
    return dataclasses.replace(run, parallel=parallel, deepspeed=json)


def samples(program: str, name: str, number: int) -> Batch:
    """This rank's part of a global batch of 4, or all of it."""
    if program == "pretrain":
        batch = toy_lm_batch(4, seed=number)
    else:
        batch = toy_cloze_batch(4, choices=3, variable=True, seed=number)
    if name in WHOLE:
        return batch
    rank, size = mpu.get_data_parallel_rank(), 4 // mpu.get_data_parallel_world_size()
    return rows_of(batch, rank * size, (rank + 1) * size)


def two_steps(case: tuple[str, str, list[str]], stage: int | None, recompute: bool) -> Records:
    program, name, flags = case
    run, task = run_of(program, flags, stage, recompute), lm_task()
    if program == "finetune":
        task = cloze_task()
    engine = wrap(toy_student(run, task), run, runtime(mpu.get_data_parallel_rank(), 1))
    engine.module.train()
    step = DistillStep(task, engine, toy_teachers(run, task), run, TrainState())
    found = []
    for number in range(STEPS):
        step.state.iteration = number
        batch = samples(program, name, number)
        counts = step.count([batch])
        with engine.micro_step(last=True):
            loss = step(batch, counts).loss
            engine.backward(loss)
        norm = engine.step(RATE).grad_norm
        found.append((float(mpu.mean_over_data_parallel(loss.detach())), float(norm)))
    return found


def on_ranks(
    rank: int, world_size: int, p: int, stages: Any, recompute: bool, programs: tuple[str, ...]
) -> list[Records]:
    """Every case of these programs, the others empty; `stages` are taken in turn."""
    mpu.initialize_model_parallel(p)
    return [
        two_steps(case, stages[number // 2 % len(stages)], recompute) if case[0] in programs else []
        for number, case in enumerate(cases())
    ]


@pytest.fixture(scope="module")
def alone() -> list[Records]:
    """One process, plain PyTorch."""
    return run_ranks(1, on_ranks, 1, (None,), False, tuple(SWITCHES))[0]


def check(
    alone: list[Records],
    p: int,
    stages: tuple[int, ...],
    *,
    recompute: bool = False,
    programs: tuple[str, ...] = tuple(SWITCHES),
) -> None:
    ranks = run_ranks(4, on_ranks, p, stages, recompute, programs, preload="deepspeed", timeout=900)
    for number, (case, expected) in enumerate(zip(cases(), alone, strict=True)):
        for found in (rank[number] for rank in ranks if case[0] in programs):
            for which, tolerance in ((0, 1e-4), (1, 1e-3)):  # losses, gradient norms
                actual, wanted = (
                    [step[which] for step in records] for records in (found, expected)
                )
                assert actual == pytest.approx(wanted, rel=tolerance, abs=1e-6), case


def test_pretraining_cut_and_copied_under_zero_1_and_2(alone):
    check(alone, 2, (1, 2), programs=("pretrain",))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("p", "stages"), [(2, (1, 2)), (2, (2, 1)), (2, (3,)), (4, (1, 2)), (4, (3,))]
)
def test_every_layout_and_stage(alone, p, stages):
    check(alone, p, stages)


@pytest.mark.slow
@pytest.mark.parametrize("stages", [(1, 2), (3,)])
def test_every_layout_with_recomputed_activations(alone, stages):
    check(alone, 2, stages, recompute=True)
