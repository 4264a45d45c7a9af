"""The planner's ZeRO against what two real ranks hold: live tensors, counted op by op."""

import dataclasses

import pytest
import torch

import mpu
from distill.context import TrainState
from distill.engine.wrap import wrap
from distill.memory import LiveBytes, build, sample, transient
from distill.resident import Counts, Layout, ZeroBlock, account, offloaded
from distill.step import DistillStep
from tests.distill.engine.small import deepspeed_json, runtime
from tests.distill.runs import lm_task, toy_run, toy_student, toy_teachers
from tests.ranks import run_ranks

pytestmark = pytest.mark.slow

FLAGS = [
    "--num-layers=4", "--hidden-size=128", "--num-attention-heads=4", "--vocab-size=1024",
    "--max-position-embeddings=64", "--teacher_num_layers=2", "--teacher_hidden_size=64",
    "--teacher_num_attention_heads=4", "--teacher_max_position_embeddings=64",
    "--student_model=kd", "--distill_pt_soft", "--distill_pt_hard", "--checkpoint-activations",
]  # fmt: skip
LENGTH = 64
SMALL = {"reduce_bucket_size": 50_000, "stage3_prefetch_bucket_size": 0}
PRESET = {"reduce_bucket_size": 50_000, "contiguous_gradients": False, "overlap_comm": True}
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
#: (model-parallel size, stage, bf16, samples, micro-batches of a step, zero_optimization)
CASES = {
    "0": (1, 0, False, 2, 1, {}),
    "1": (1, 1, True, 2, 1, SMALL),
    "1 preset": (1, 1, True, 8, 1, PRESET),
    "1 two models": (2, 1, True, 8, 1, SMALL),
    "2": (1, 2, True, 8, 1, SMALL),
    "2 accumulated": (1, 2, True, 2, 2, SMALL),
    "2 offload": (1, 2, True, 2, 1, SMALL | OFFLOAD),
    "3": (1, 3, True, 8, 1, SMALL),
    "3 fp32": (1, 3, False, 2, 1, SMALL),
    "3 offload": (1, 3, True, 2, 1, SMALL | OFFLOAD),
    "3 kept": (1, 3, True, 2, 1, {
        "reduce_bucket_size": 50_000, "stage3_param_persistence_threshold": 100_000,
        "stage3_max_reuse_distance": 1_000_000_000,
    }),
}  # fmt: skip


class RealBytes(LiveBytes):
    """Without DeepSpeed's tensors on the meta device."""

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage.device.type != "meta":
            super()._add(storage)


def block(name: str) -> dict:
    stage, settings = CASES[name][1], CASES[name][-1]
    return deepspeed_json(stage, 1, False, 1.0)["zero_optimization"] | settings


def measured(rank, world_size):
    """Case -> most bytes of the last of a few steps."""
    peaks = {}
    for name, (tp, stage, bf16, size, accumulation, _) in CASES.items():
        mpu.destroy_model_parallel()
        mpu.initialize_model_parallel(tp)
        run, task = toy_run(*FLAGS), lm_task()
        json = deepspeed_json(stage, accumulation, bf16, 1.0) | {"zero_optimization": block(name)}
        parallel = dataclasses.replace(run.parallel, deepspeed=True)
        precision = dataclasses.replace(run.precision, bf16=bf16)
        run = dataclasses.replace(run, parallel=parallel, precision=precision, deepspeed=json)
        with RealBytes() as live:
            engine = wrap(toy_student(run, task), run, runtime(rank, world_size))
            engine.module.train()
            teachers, batch = toy_teachers(run, task), sample(size, LENGTH)
            step = DistillStep(task, engine, teachers, run, TrainState())
            for _ in range(3 if stage == 3 else 2):  # ZeRO-3 has then seen what comes when
                live.peak = 0
                mpu.seed_step(1, 0, 0, 0)
                for number in range(accumulation):
                    with engine.micro_step(last=number == accumulation - 1):
                        engine.backward(step(batch, step.count([batch] * accumulation)).loss)
                engine.step(1e-3)
        peaks[name] = live.peak
    return peaks


def planned(rank, world_size):
    """Case -> bytes of a device and of the host, which on a CPU are the same memory."""
    totals = {}
    for name, (tp, stage, bf16, size, accumulation, settings) in CASES.items():
        layout = Layout(
            tensor_parallel=tp,
            data_parallel=2 // tp,
            micro_batch=size,
            accumulation=accumulation,
            engine="deepspeed",
            stage=stage,
            offload="offload_optimizer" in settings,
            half=bf16,
            zero=ZeroBlock.of(block(name)),
        )
        run, task = toy_run(*FLAGS), lm_task()
        student, teachers = build(run, task, torch.float32)
        own, *theirs = (Counts.of(module, layout) for module in (student, *teachers))
        step = transient(run, task, layout, seq_length=LENGTH)
        totals[name] = account(own, theirs, layout, step).total + offloaded(own, layout)
    return totals


def test_what_ranks_of_every_stage_hold():
    (plans,) = run_ranks(1, planned, process_group=False)
    ranks = run_ranks(2, measured, preload="deepspeed", timeout=240)
    for expected in ranks:
        for name in CASES:
            assert plans[name] == pytest.approx(expected[name], rel=0.15), name
