"""Law: models of another vocabulary or other positions train alike on every layout, ZeRO-3 included.

Vocabulary maps (logits over ids, over kept ids, of a narrow table) and Transformer-XL. The reference
is plain PyTorch in one process; that a mapped or relative model is right is in `tests/model`.
"""

import dataclasses

import pytest
import torch

import mpu
from distill.context import TrainState
from distill.engine.weights import whole_weights
from distill.engine.wrap import wrap
from distill.step import DistillStep
from tests.distill.engine.small import deepspeed_json, runtime
from tests.distill.runs import lm_task, toy_run, toy_student, toy_teachers
from tests.laws.test_layouts import train
from tests.ranks import run_ranks
from tests.toy import toy_tables

ROWS, STEPS = 24, 3
KD = ["--student_model=kd", "--distill_pt_soft", "--distill_pt_hard", "--distill_temperature=3"]
GLMD = ["--student_model=glmd", "--distill_temperature=15"]
MAPPED = f"--map_vocab_size={ROWS}"
RUNS = {
    "mapped": [*KD, MAPPED],
    "kept ids": [*GLMD, MAPPED, "--unmap_vocab_output"],
    "narrow": [*KD, MAPPED, "--compress_word_emb=8", "--distill_logits_parallel"],
    "relative": [*KD, "--transformer-xl", "--block-lm"],
}


def new_step(name: str, stage: int | None) -> DistillStep:
    run = toy_run(*RUNS[name], "--weight-decay=0.1", "--clip-grad=0.5")
    if stage is not None:
        parallel = dataclasses.replace(run.parallel, deepspeed=True)
        json = deepspeed_json(stage, 1, False, 0.5)
        run = dataclasses.replace(run, parallel=parallel, deepspeed=json)
    task = lm_task()
    module = toy_student(run, task)
    if MAPPED in RUNS[name]:
        module.vocab_map.set_tables(toy_tables(9, rows=ROWS))
    teachers = toy_teachers(run, task)
    engine = wrap(module, run, runtime(mpu.get_data_parallel_rank(), 1))
    engine.module.train()
    return DistillStep(task, engine, teachers, run, TrainState())


def on_rank(rank: int, world_size: int, p: int, cases: list) -> list:
    """(loss and gradient norm of each step, the trained word table of this rank) of each case."""
    mpu.initialize_model_parallel(p)
    found = []
    for name, stage in cases:
        step = new_step(name, stage)
        records = train(step, STEPS)
        weights = whole_weights(step.student.module, everywhere=True)
        found.append((records, weights["word_embeddings.weight"].clone()))
    return found


@pytest.mark.parametrize(
    ("p", "dp", "stages"),
    [
        (1, 2, [3]),
        pytest.param(2, 2, [None, 1, 3], marks=pytest.mark.slow),
        pytest.param(4, 1, [None, 3], marks=pytest.mark.slow),
    ],
)
def test_every_layout_trains_alike(p, dp, stages):
    reference = run_ranks(1, on_rank, 1, [(name, None) for name in RUNS])[0]
    expected = dict(zip(RUNS, reference, strict=True))
    cases = [(name, stage) for name in RUNS for stage in stages]
    ranks = run_ranks(p * dp, on_rank, p, cases, preload="deepspeed", timeout=600)
    for number, (name, stage) in enumerate(cases):
        records, table = expected[name]
        for rank in ranks:
            for actual, wanted in zip(rank[number][0], records, strict=True):
                assert actual[0] == pytest.approx(wanted[0], rel=1e-4), (name, stage)
                assert actual[1] == pytest.approx(wanted[1], rel=1e-3), (name, stage)
        whole = torch.cat([rank[number][1] for rank in ranks[:p]])
        torch.testing.assert_close(whole, table, rtol=1e-3, atol=1e-4, msg=f"{name} {stage}")
