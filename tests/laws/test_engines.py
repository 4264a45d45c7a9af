"""Law: a distilled student is the same on every engine: plain or DeepSpeed, one process or two."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

import mpu
from distill.context import TrainState
from distill.engine.wrap import wrap
from distill.registry import METHODS
from distill.step import DistillStep
from distill.student import GLMStudent
from tests.distill.engine.small import deepspeed_json, runtime
from tests.distill.runs import lm_task, rows_of, toy_run, toy_student, toy_teachers
from tests.ranks import run_ranks
from tests.toy import toy_lm_batch

FLAGS = {
    "kd": ["--distill_pt_soft", "--distill_pt_hard", "--distill_temperature=3"],
    "glmd": ["--distill_temperature=15", "--logitsdistil_top_n=9"],
    "adapted": ["--distill_logits_parallel"],
}
STEPS, RATE = 4, 1e-3


class Adapted(GLMStudent):
    """Parameters of its own, used outside the forward, on captures of a middle layer."""

    def __init__(self, language_model, args):
        super().__init__(language_model, args)
        self.fit_dense = nn.Linear(args.model.hidden_size, args.teachers[0].hidden_size)

    def get_student_hook(self, **kwargs):
        return {"transformer": {"layers": {1: {"layernorm_output": None}}}}

    def get_teacher_hook(self, **kwargs):
        return {"transformer": {"output": None}}

    def inter_loss(self, s_inter_vars, t_inter_vars, s_hook, t_hook, rows=None, **kwargs):
        s = s_inter_vars[s_hook["transformer"]["layers"][1]["layernorm_output"]]
        t = t_inter_vars[t_hook["transformer"]["output"]]
        loss = rows["tokens"].mean((self.fit_dense(s) - t).square().mean(-1))
        return loss + super().inter_loss(
            s_inter_vars, t_inter_vars, s_hook, t_hook, rows=rows, **kwargs
        )


def train(
    rank: int, world_size: int, name: str, stage: int | None
) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of 4 optimizer steps of 8 samples, and the weights after them."""
    import distill.methods  # noqa: F401 - before the name is added

    METHODS["adapted"] = Adapted
    if world_size > 1:
        mpu.initialize_model_parallel(1)
    run = toy_run(f"--student_model={name}", *FLAGS[name], "--weight-decay=0.1")
    if stage is not None:
        json = deepspeed_json(stage, 1, False, 1.0)
        parallel = dataclasses.replace(run.parallel, deepspeed=True)
        run = dataclasses.replace(run, parallel=parallel, deepspeed=json)
    task = lm_task()
    engine = wrap(toy_student(run, task), run, runtime(rank, world_size))
    engine.module.train()
    step = DistillStep(task, engine, toy_teachers(run, task), run, TrainState())
    losses = []
    for number in range(STEPS):
        size = 8 // world_size
        batch = rows_of(toy_lm_batch(8, seed=number), rank * size, (rank + 1) * size)
        counts = step.count([batch])
        with engine.micro_step(last=True):
            loss = step(batch, counts).loss
            engine.backward(loss)
        engine.step(RATE)
        losses.append(float(loss.detach()))
    return losses, {k: v.detach().clone() for k, v in engine.module.state_dict().items()}


@pytest.fixture(scope="module", params=list(FLAGS))
def alone(request: pytest.FixtureRequest) -> tuple[str, list[float], dict[str, Tensor]]:
    """One process, plain engine."""
    losses, weights = run_ranks(1, train, request.param, None)[0]
    return request.param, losses, weights


@pytest.mark.parametrize("stage", [None, 0, 1, 2])
def test_two_ranks_of_every_engine_equal_one_process(alone, stage):
    name, losses, weights = alone
    ranks = run_ranks(2, train, name, stage, preload="torch" if stage is None else "deepspeed")
    for number, expected in enumerate(losses):
        assert sum(r[0][number] for r in ranks) / 2 == pytest.approx(expected, rel=1e-5)
    for _, actual in ranks:
        assert actual.keys() == weights.keys()
        for key, expected in weights.items():
            # A bias of the keys has gradient 0 up to rounding, and Adam takes steps of its sign.
            if not key.endswith("query_key_value.bias"):
                torch.testing.assert_close(actual[key], expected, rtol=1e-4, atol=2e-5, msg=key)


def test_a_methods_own_parameters_are_trained_and_saved(monkeypatch):
    import distill.methods  # noqa: F401 - before the name is added

    monkeypatch.setitem(METHODS, "adapted", Adapted)
    before = toy_student(toy_run("--student_model=adapted"), lm_task()).state_dict()
    _, after = run_ranks(1, train, "adapted", None)[0]
    own = [key for key in after if key.startswith("student.")]
    assert own == ["student.fit_dense.weight", "student.fit_dense.bias"]
    assert all(not torch.equal(before[key], after[key]) for key in own)
