"""Law: a distilled student is the same on every engine: plain or DeepSpeed, one process or two."""

import dataclasses
import functools

import pytest
import torch
from torch import Tensor, nn

import mpu
from distill.capture import embeddings
from distill.context import TrainState
from distill.engine.weights import whole_weights
from distill.engine.wrap import wrap
from distill.registry import METHODS
from distill.step import DistillStep
from distill.student import GLMStudent
from tests.distill.engine.small import deepspeed_json, runtime
from tests.distill.runs import lm_task, rows_of, toy_run, toy_student, toy_teachers
from tests.ranks import run_ranks
from tests.toy import toy_lm_batch

KD = ["--student_model=kd", "--distill_pt_soft", "--distill_pt_hard", "--distill_temperature=3"]
AGAIN = ["--forward_repeat_num=1", "--distill_random_data=replace", "--distill_random_data_n=1"]
AGAIN += ["--distill_random_data_method=sample"]
MIX = ["--student_model=mixbaseline", "--mixbaseline_inter_bl=adapted,glmd"]
#: What is trained on each engine: name -> flags.
RUNS = {
    "kd": KD,
    "glmd": ["--student_model=glmd", "--distill_temperature=15", "--logitsdistil_top_n=9"],
    "adapted": ["--student_model=adapted", "--distill_logits_parallel"],
    "several passes": [*KD, *AGAIN, "--distil_analysis_inter", "--log-interval=2"],
    "a pass for its gradient": [
        "--student_model=perturbed",
        "--distill_pt_hard",
        "--forward_repeat_num=1",
        "--ignore_first_backward_gard",
    ],
    "mt_bert": [
        "--student_model=pkd",
        "--distill_pt_soft",
        "--pkd_beta=1",
        "--mt_num_layers=4:3",
        "--mt_hidden_size=24:16",
        "--multi_teacher_model=mt_bert",
    ],
    # TinyBERT's projection is not used.
    "mix": [*MIX, "--mixbaseline_pre_bl_pt_soft=tinybert", "--distill_pt_soft", *AGAIN],
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


class Perturbed(GLMStudent):
    """The second pass sees embeddings changed along the gradient of the first one's loss."""

    gradient: Tensor

    def gradient_points(self):
        return [embeddings()]

    def take_gradients(self, gradients):
        self.gradient = gradients[embeddings()]

    def get_student_hook_op(self, **kwargs):
        if self.clock.repeat == 0:
            return {}
        step = torch.nn.functional.normalize(self.gradient, dim=-1)
        return {"transformer": {"embeddings": lambda hidden_states, this: hidden_states + step}}


def train(
    rank: int, world_size: int, name: str, stage: int | None
) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of 4 optimizer steps of 8 samples, and the weights after them."""
    import distill.methods  # noqa: F401 - before the name is added

    METHODS.update(adapted=Adapted, perturbed=Perturbed)
    if world_size > 1:
        mpu.initialize_model_parallel(1)
    run = toy_run(*RUNS[name], "--weight-decay=0.1")
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
        step.state.iteration, size = number, 8 // world_size
        batch = rows_of(toy_lm_batch(8, seed=number), rank * size, (rank + 1) * size)
        counts = step.count([batch])
        with engine.micro_step(last=True):
            loss = step(batch, counts).loss
            engine.backward(loss)
        engine.step(RATE)
        losses.append(float(loss.detach()))
    return losses, whole_weights(engine.module, everywhere=True)


@functools.cache
def alone(name: str) -> tuple[list[float], dict[str, Tensor]]:
    """One process, plain engine."""
    return run_ranks(1, train, name, None)[0]


def combinations() -> list:
    """(run, ZeRO stage; None is plain). By default all stages of two runs, two of the others."""
    found = [(name, stage) for name in RUNS for stage in (None, 0, 1, 2, 3)]
    found.remove(("a pass for its gradient", 3))  # refused: see tests/distill/test_limits.py
    often = [(name, stage) for name, stage in found if name in ("kd", "adapted") or stage in (2, 3)]
    return [pytest.param(*pair, marks=[] if pair in often else pytest.mark.slow) for pair in found]


@pytest.mark.parametrize(("name", "stage"), combinations())
def test_two_ranks_of_every_engine_equal_one_process(name, stage):
    losses, weights = alone(name)
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
    _, after = alone("adapted")
    own = [key for key in after if key.startswith("student.")]
    assert own == ["student.fit_dense.weight", "student.fit_dense.bias"]
    assert all(not torch.equal(before[key], after[key]) for key in own)


def test_what_only_the_second_pass_sees_is_trained_on():
    weights = {name: alone(name)[1] for name in ("kd", "several passes")}
    key = "transformer.layers.1.mlp.dense_h_to_4h.weight"
    assert not torch.allclose(*(each[key] for each in weights.values()), rtol=1e-3)
