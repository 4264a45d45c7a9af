"""Law: training does not depend on the layout: tensor parallel x data parallel x ZeRO 0 to 3.

The reference is plain PyTorch in one process. Every layout trains on the same global batches,
evaluates, writes the official files, and resumes.
"""

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mpu
from config import RunArgs
from data_utils.batch import Batch
from distill.context import TrainState
from distill.engine import files
from distill.engine.evaluate import evaluate
from distill.engine.weights import MODEL_FILE, whole_weights
from distill.engine.wrap import Engine, wrap
from distill.step import DistillStep
from tests.distill.engine.small import deepspeed_json, runtime
from tests.distill.runs import lm_task, rows_of, toy_run, toy_student, toy_teachers
from tests.ranks import run_ranks
from tests.toy import merged, toy_lm_batch

LOSSES = {
    "plain": [],
    "kd": ["--student_model=kd", "--distill_pt_soft", "--distill_pt_hard", "--distill_temperature=3"],
    "glmd": ["--student_model=glmd", "--distill_temperature=15"],
}  # fmt: skip
LAYOUTS = ((1, 1), (2, 1), (4, 1), (2, 2), (1, 2))  # model parallel, data parallel
STAGES = (0, 1, 2, 3)
RESUMED = ("kd",)  # the others train and are evaluated
RATE, CLIP = 1e-3, 0.5  # below every gradient norm here, so that clipping counts


def run_of(name: str, stage: int | None, *, offload: bool = False) -> RunArgs:
    run = toy_run(*LOSSES[name], "--weight-decay=0.1", f"--clip-grad={CLIP}")
    if stage is None:
        return run
    json = deepspeed_json(stage, 1, False, CLIP)
    if offload:
        json["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    parallel = dataclasses.replace(run.parallel, deepspeed=True)
    return dataclasses.replace(run, parallel=parallel, deepspeed=json)


def new_step(run: RunArgs) -> DistillStep:
    task = lm_task()
    module = toy_student(run, task)
    engine = wrap(module, run, runtime(mpu.get_data_parallel_rank(), 1))
    engine.module.train()
    return DistillStep(task, engine, toy_teachers(run, task), run, TrainState())


def mine(batch: Batch) -> Batch:
    """The samples of this data-parallel rank."""
    rank, size = mpu.get_data_parallel_rank(), len(batch) // mpu.get_data_parallel_world_size()
    return rows_of(batch, rank * size, (rank + 1) * size)


def train(step: DistillStep, stop: int) -> list[tuple[float, float]]:
    """(loss over all data-parallel ranks, gradient norm before clipping) of each step."""
    found = []
    while step.state.iteration < stop:
        batch = mine(toy_lm_batch(8, seed=step.state.iteration))
        counts = step.count([batch])
        with step.student.micro_step(last=True):
            loss = step(batch, counts).loss
            step.student.backward(loss)
        result = step.student.step(RATE)
        step.state.iteration += 1
        loss = mpu.mean_over_data_parallel(loss.detach())
        found.append((float(loss), float(result.grad_norm)))
    return found


def logits_of(engine: Engine) -> Tensor:
    """Of a batch, in evaluation, over the whole vocabulary [b, s, v]."""
    batch = mine(toy_lm_batch(8, seed=99))
    engine.module.eval()
    with torch.no_grad():
        inputs = (batch.tokens, batch.position_ids, batch.attention_mask)
        logits, *_ = engine.module(*inputs)
    engine.module.train()
    return mpu.gather_from_model_parallel_region(logits)


def scores(step: DistillStep) -> dict[str, float]:
    """Of three batches, the last with a row that only fills it."""
    batches = [toy_lm_batch(8, seed=seed) for seed in (50, 51, 52)]
    batches[-1].weight[-1] = 0
    for number, batch in enumerate(batches):
        batch.sample_ids = torch.arange(8) + 8 * number
    steps = [[mine(batch)] for batch in batches]
    return evaluate(step.student, step.task, steps, split="val").metrics


def on_ranks(rank: int, world_size: int, p: int, cases: list, stop: int, folder: str) -> list[dict]:
    """Every case on this layout."""
    mpu.initialize_model_parallel(p)
    return [
        one(run_of(*case[:2], **case[2]), stop, Path(folder) / str(i), case[0] in RESUMED)
        for i, case in cases
    ]


def one(run: RunArgs, stop: int, folder: Path, resumes: bool) -> dict[str, Any]:
    """Training to the end; and half of it, a checkpoint, new objects, the other half."""
    step = new_step(run)
    logits = logits_of(step.student)
    records = train(step, stop)
    found = {"logits": logits, "records": records, "scores": scores(step)}
    if not resumes:
        return found
    half = new_step(run)
    train(half, stop // 2)
    barrier()
    folder.mkdir(exist_ok=True, parents=True)
    barrier()
    half.student.save(folder, {"train_state": half.state.state_dict()})
    saved = whole_weights(half.student.module, everywhere=True)
    barrier()
    again = new_step(run)
    with torch.no_grad():
        for parameter in again.student.module.parameters():
            parameter.add_(1)
    client = again.student.load(folder)
    again.state.load_state_dict(client["train_state"])
    found["resumed"] = train(again, stop) == records[stop // 2 :]
    ends = [whole_weights(s.student.module, everywhere=True) for s in (step, again)]
    found["same end"] = all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())
    file = folder / MODEL_FILE.format(mpu.get_model_parallel_rank())
    content = files.read_tensors(file)["module"]
    found["file"] = content.keys() == saved.keys() and all(
        torch.equal(value, saved[key]) for key, value in content.items()
    )
    found["weights"] = {key: value.clone() for key, value in content.items()}
    return found


def barrier() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def cases_of(losses: list[str], stages: list[int | None]) -> list[tuple[str, int | None, dict]]:
    return [(name, stage, {}) for name in losses for stage in stages]


@functools.cache
def alone(name: str, stop: int) -> dict[str, Any]:
    """The reference of every layout and stage: one process, plain PyTorch."""
    with tempfile.TemporaryDirectory() as folder:
        return run_ranks(1, on_ranks, 1, [(0, (name, None, {}))], stop, folder)[0][0]


def check(layout: tuple[int, int], cases: list, stop: int, folder: Path) -> None:
    p, dp = layout
    numbered = list(enumerate(cases))
    like = toy_student(run_of("plain", None), lm_task())
    ranks = run_ranks(
        p * dp, on_ranks, p, numbered, stop, str(folder), preload="deepspeed", timeout=600
    )
    for number, (name, *_) in numbered:
        expected = alone(name, stop)
        about = f"{layout} {cases[number]}"
        for rank, found in enumerate(each[number] for each in ranks):
            rows = slice(8 // dp * (rank // p), 8 // dp * (rank // p + 1))
            width = found["logits"].size(1)
            torch.testing.assert_close(
                found["logits"], expected["logits"][rows, :width], rtol=0, atol=1e-5, msg=about
            )
            pairs = zip(found["records"], expected["records"], strict=True)
            for actual, wanted in pairs:
                assert actual[0] == pytest.approx(wanted[0], rel=1e-4), about
                assert actual[1] == pytest.approx(wanted[1], rel=1e-3), about
            assert found["scores"] == pytest.approx(expected["scores"], rel=1e-4), about
            assert all(found[key] for key in ("resumed", "same end", "file") if name in RESUMED), (
                about
            )
        assert all(norm > CLIP for _, norm in expected["records"])
        if name not in RESUMED:
            continue
        shards = [each[number]["weights"] for each in ranks[:p]]
        _same_weights(merged(shards, like), expected["weights"], about)


def _same_weights(actual: dict[str, Tensor], expected: dict[str, Tensor], about: str) -> None:
    assert actual.keys() == expected.keys()
    for key, wanted in expected.items():
        # A bias of the keys has gradient 0 up to rounding, and Adam takes steps of its sign.
        if not key.endswith("query_key_value.bias"):
            msg = f"{about} {key}"
            torch.testing.assert_close(actual[key], wanted, rtol=1e-3, atol=1e-4, msg=msg)


@pytest.mark.parametrize("layout", [(2, 2)])
def test_every_stage_trains_alike_in_a_few_steps(layout, tmp_path):
    check(layout, cases_of(["kd"], STAGES), 4, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_twenty_steps_do_not_depend_on_the_layout(layout, tmp_path):
    check(layout, cases_of(list(LOSSES), [*STAGES]), 20, tmp_path)


@pytest.mark.parametrize("layout", [(1, 2), pytest.param((2, 2), marks=pytest.mark.slow)])
def test_an_offloaded_optimizer_trains_alike(layout, tmp_path):
    check(layout, [("kd", stage, {"offload": True}) for stage in STAGES[1:]], 4, tmp_path)
