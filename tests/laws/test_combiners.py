"""Laws of every combiner of several teachers, in pretraining and fine-tuning.

Teachers differ in depth, width and heads. Each case takes two steps: RL-KD's policy comes with the
second. That a re-partition of the global batch changes nothing is in `test_partition`.
"""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import distill.lazy_forward
import mpu
import mpu.row_losses
from config import ConfigError
from distill.combiner import COMBINERS, combiner_args
from distill.context import TrainState
from distill.engine.wrap import wrap
from distill.step import DistillStep, check_needs
from tests.distill.engine.small import runtime
from tests.distill.runs import (
    all_methods,
    grads_of,
    rows_of,
    take,
    toy_run,
    toy_step,
    toy_student,
    toy_teachers,
)
from tests.distill.teachers.several import KD, THREE, TWO, batch_of, task_of
from tests.laws.test_methods import BASE
from tests.ranks import run_ranks
from tests.toy import merged

STAGES = ("pretrain", "finetune")
METHODS = {
    "kd": KD,
    "pkd": ["--student_model=pkd", *KD[1:], "--pkd_beta=1"],
    "tinybert": ["--student_model=tinybert", *KD[1:], "--tinybert_fit_compatible_mt"]
    + ["--tinybert_wo_att"],
}
SAME = ["--mt_hidden_size=16:16"]  # pkd projects nothing itself
#: Combiner -> (method, further flags) of each case.
CASES: dict[str, list[tuple[str, list[str]]]] = {
    "avg": [
        ("kd", ["--distill_pt_hard", "--distill_ft_hard"]),
        ("pkd", SAME),
        ("tinybert", ["--avgmt_inter_checkpoint", "--avgmt_pre_checkpoint"]),
        ("tinybert", ["--avgmt_sum_loss", "--avgmt_teacher_survival_p=0.6"]),
    ],
    "mt_bert": [
        ("pkd", []),
        ("pkd", ["--mt_bert_fit_teacher", "--mt_bert_fix_layernorm"]),
        ("pkd", [*THREE, "--mt_num_layers=4:3:5"]),
        ("tinybert", ["--mt_bert_wo_convert_layer", "--mt_bert_wo_hard"]),
    ],
    "uncertainty": [
        ("kd", ["--uncertainty_hard", "--uncertainty_only_mask_pad"]),
        ("kd", [*THREE, "--uncertainty_teacher_seq=2:0:1"]),
        ("tinybert", ["--uncertainty_inter_entropy"]),
        ("kd", ["--compat=MT"]),
    ],
    "rl_kd": [
        ("kd", ["--rl_kd_semantic_model_dim=5"]),
        ("kd", [*THREE, "--rl_kd_semantic_model=1", "--rl_kd_reward=2", "--rl_kd_wo_loss_mask"]),
        ("tinybert", ["--rl_kd_semantic_model=0"]),
        ("tinybert", ["--rl_kd_semantic_model_dim=5", "--rl_kd_only_avg"]),
        ("kd", ["--rl_kd_semantic_model=0", "--compat=glmkd"]),
    ],
    "mixmt": [
        ("kd", ["--mixmt_model=Uncertainty,AvgTeacher"]),
        ("tinybert", [*THREE, "--mixmt_model=RL_KD,MT_BERT", "--rl_kd_semantic_model=2"]
        + ["--mt_bert_wo_convert_layer"]),
    ],
}  # fmt: skip


def cases() -> list[tuple[str, ...]]:
    """(program, combiner, method, further flags...)"""
    return [
        (program, name, method, *flags)
        for name, own in CASES.items()
        for method, flags in own
        for program in STAGES
    ]


every_case = pytest.mark.parametrize("case", cases(), ids="-".join)


def step_of(program: str, name: str, method: str, *flags: str) -> DistillStep:
    words = [*TWO, f"--multi_teacher_model={name}", *METHODS[method], *flags]
    return toy_step(toy_run(*words, program=program), task_of(program))


Result = tuple[float, dict[str, float], dict[str, Tensor]]


def two_steps(case: tuple[str, ...]) -> tuple[DistillStep, list[Result]]:
    step, results = step_of(*case), []
    for number in range(2):
        step.state.iteration = number
        output = take(step, batch_of(case[0], 3))
        terms = {name: float(value) for name, value in output.terms.items()}
        results.append((float(output.loss.detach()), terms, grads_of(step.student.module)))
    return step, results


def sharded(size: int) -> list[tuple[str, ...]]:
    """Language models, whose logits are cut, and of choices the first of each; at p = 4 fewer."""
    first = [
        (stage, name, own[0][0], *own[0][1]) for name, own in CASES.items() for stage in STAGES
    ]
    return first if size > 2 else [c for c in cases() if c[0] == "pretrain" or c in first]


def on_ranks(rank: int, world_size: int) -> list[list[Result]]:
    """Of each case; on 4 ranks without logits that are whole."""
    mpu.initialize_model_parallel(world_size)
    distill.lazy_forward.FEW = 0 if world_size == 4 else 1 << 40
    mpu.row_losses.CHUNK_ELEMENTS = 200
    return [two_steps(case)[1] for case in sharded(world_size)]


@pytest.mark.parametrize("size", [2, 4])
def test_a_combiner_does_not_depend_on_p(size):
    ranks = run_ranks(size, on_ranks)
    for number, case in enumerate(sharded(size)):
        step, results = two_steps(case)
        for second, (loss, terms, grads) in enumerate(results):
            found = [rank[number][second] for rank in ranks]
            for other, its, _ in found:
                assert other == pytest.approx(loss, rel=1e-5), case
                assert its == pytest.approx(terms, rel=1e-4, abs=1e-5), case
            actual = merged([each for _, _, each in found], step.student.module)
            assert actual.keys() == grads.keys()
            largest = max(float(g.abs().max()) for g in grads.values())
            for key, grad in grads.items():
                torch.testing.assert_close(
                    actual[key], grad, rtol=1e-4, atol=1e-5 * largest, msg=f"{case} {key}"
                )


def test_every_combiner_is_here():
    combiner_args()
    assert {COMBINERS[name] for name in CASES} == set(COMBINERS.values())


@every_case
def test_a_loss_reaches_the_student_and_not_the_teachers(case):
    step = step_of(*case)
    check_needs(step.run, step.task.head)
    before = [{k: v.clone() for k, v in t.module.state_dict().items()} for t in step.teachers]
    for number in range(2):
        step.state.iteration = number
        output = take(step, batch_of(case[0], 3))
        assert torch.isfinite(output.loss)
        assert all(g.isfinite().all() for g in grads_of(step.student.module).values())
        assert all(not torch.as_tensor(v).requires_grad for v in output.terms.values())
    assert any(bool(g.any()) for g in grads_of(step.student.module).values())
    for teacher, weights in zip(step.teachers, before, strict=True):
        assert not teacher.module.training
        assert all(p.grad is None and not p.requires_grad for p in teacher.module.parameters())
        assert all(torch.equal(v, weights[k]) for k, v in teacher.module.state_dict().items())


@every_case
def test_its_parameters_are_in_the_students_state(case):
    step = step_of(*case)
    own = dict(step.comparison.combiner.named_parameters())
    saved = step.student.module.state_dict()
    prefix = "student.multi_teacher_model."
    assert {k.removeprefix(prefix) for k in saved if k.startswith(prefix)} == set(own)
    other = step_of(*case)
    with torch.no_grad():
        for parameter in other.student.module.parameters():
            parameter.zero_()
    other.student.module.load_state_dict(saved)
    for key, value in other.comparison.combiner.named_parameters():
        assert torch.equal(value, own[key]), key


# One teacher, and each of several, by every method -------------------------------------------------

APART = ("theseus",)  # its teachers take turns within one forward


def words_of(name: str) -> list[str]:
    """Flags of a method with two teachers."""
    words = [f"--student_model={name}", *KD[1:], *BASE.get(name, []), "--mt_num_layers=4:3"]
    words += ["--mixbaseline_inter_bl=TinyBERT,CKD", "--tinybert_fit_compatible_mt"]
    if name in ("annealing_kd", "continuation_kd"):
        words += ["--distill_pt_soft_mse", "--distill_ft_soft_mse"]
    return words


@pytest.mark.parametrize("program", STAGES)
@pytest.mark.parametrize("name", [n for n in all_methods() if n not in APART])
def test_the_average_is_the_mean_of_each_teacher_alone(name, program):
    """So a method keeps to the teacher it is asked for: its depth, layers and projections."""
    words = words_of(name)
    words += [] if "--teacher_hidden_size=16" in words else ["--mt_hidden_size=24:16"]
    run, task = toy_run(*words, program=program), task_of(program)
    check_needs(run, task.head)
    both = toy_step(run, task)
    expected = take(both, batch_of(program, 3)).loss.detach()
    weights, losses = both.student.module.state_dict(), []
    for number in range(2):
        alone = toy_step(dataclasses.replace(run, teachers=(run.teachers[number],)), task)
        alone.teachers[0].module.load_state_dict(both.teachers[number].module.state_dict())
        state = alone.student.module.state_dict()
        for key in state:
            theirs = key if number == 0 else _of_second(key, weights)
            state[key] = weights[theirs]
        alone.student.module.load_state_dict(state)
        if hasattr(alone.method, "draw_layers"):
            drawn = both.method.draw_layers(number)
            alone.method.draw_layers = lambda t_no, drawn=drawn: drawn
        losses.append(take(alone, batch_of(program, 3)).loss.detach())
    torch.testing.assert_close(expected, sum(losses) / 2, rtol=1e-5, atol=1e-5)


def _of_second(key: str, weights: dict[str, Tensor]) -> str:
    """The name of a projection of teacher 1 that is called as that of teacher 0."""
    for first, second in (("dense_0", "dense_1"), ("dense.0", "dense.1"), ("_0.", "_1.")):
        if first in key and key.startswith("student.") and key.replace(first, second) in weights:
            return key.replace(first, second)
    return key


@pytest.mark.parametrize("name", all_methods())
@pytest.mark.parametrize(
    ("program", "combiner"),
    [("finetune", "mt_bert"), ("finetune", "rl_kd"), ("pretrain", "uncertainty")],
)
def test_any_method_runs_with_any_combiner_or_is_refused(name, program, combiner):
    words = [*words_of(name), f"--multi_teacher_model={combiner}", "--rl_kd_semantic_model=1"]
    same = ["--mt_hidden_size=16:16", "--mt_bert_wo_convert_layer"]
    for sizes in (same, same[:1], ["--mt_hidden_size=24:16"]):
        if sizes == same[:1] and combiner != "mt_bert":
            continue
        run, task = toy_run(*words, *sizes, program=program), task_of(program)
        if sizes is not same:
            try:
                check_needs(run, task.head)
            except ConfigError:
                continue
        check_needs(run, task.head)  # equal widths without projections go with all
        step = toy_step(run, task)
        for _ in range(2):
            assert torch.isfinite(take(step, batch_of(program, 3)).loss)


# Resuming -----------------------------------------------------------------------------------------

RESUMED = {
    "rl_kd": ["--rl_kd_semantic_model=1", *KD],
    "survival": ["--multi_teacher_model=avg", "--avgmt_teacher_survival_p=0.5", *METHODS["tinybert"]],
    "mt_bert": ["--mt_bert_fit_teacher", *METHODS["pkd"]],
    "mixmt": ["--mixmt_model=RL_KD,avg", "--rl_kd_semantic_model=1", *KD],
}  # fmt: skip


def new(rank: int, world_size: int, name: str) -> DistillStep:
    words = [*TWO, f"--multi_teacher_model={name}", *RESUMED[name], "--lr=0.01"]
    run, task = toy_run(*words), task_of("pretrain")
    engine = wrap(toy_student(run, task), run, runtime(rank, world_size))
    engine.module.train()
    return DistillStep(task, engine, toy_teachers(run, task), run, TrainState())


def train(step: DistillStep, rank: int, world_size: int, stop: int) -> list[float]:
    losses = []
    while step.state.iteration < stop:
        batch = batch_of("pretrain", 4)
        batch.tokens[:, 1] = 11 + step.state.iteration
        size = 4 // world_size
        batch = rows_of(batch, rank * size, (rank + 1) * size)
        counts = step.count([batch])
        with step.student.micro_step(last=True):
            loss = step(batch, counts).loss
            step.student.backward(loss)
        step.student.step(1e-2)
        step.state.iteration += 1
        losses.append(float(loss.detach()))
    return losses


def resumed(rank: int, world_size: int, name: str, folder: str) -> dict[str, Any]:
    """10 steps at once, and 5, a checkpoint, 5 more in new objects."""
    mpu.initialize_model_parallel(1)
    whole = new(rank, world_size, name)
    losses = train(whole, rank, world_size, 10)
    first = new(rank, world_size, name)
    before = train(first, rank, world_size, 5)
    first.remember()
    Path(folder).mkdir(exist_ok=True)
    first.student.save(Path(folder), {"train_state": first.state.state_dict()})
    if world_size > 1:
        torch.distributed.barrier()
    fresh = new(rank, world_size, name)
    state = TrainState().load_state_dict(fresh.student.load(Path(folder))["train_state"])
    again = DistillStep(fresh.task, fresh.student, fresh.teachers, fresh.run, state)
    after = train(again, rank, world_size, 10)
    weights = [step.student.module.state_dict() for step in (whole, again)]
    start = toy_student(whole.run, whole.task).state_dict()
    return {
        "losses": losses == before + after,
        "weights": all(torch.equal(v, weights[1][k]) for k, v in weights[0].items()),
        "memory": bool(state.combiner),
        "trained": [
            k.split(".")[-2]
            for k, v in weights[0].items()
            if "multi_teacher_model" in k and k.endswith("weight") and not torch.equal(v, start[k])
        ],
    }


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("name", RESUMED)
def test_resuming_is_exact(name, world_size, tmp_path):
    for found in run_ranks(world_size, resumed, name, str(tmp_path / "saved")):
        assert found["losses"]
        assert found["weights"]
        assert found["memory"] == (name in ("rl_kd", "mixmt"))
        if name in ("rl_kd", "mixmt"):
            assert found["trained"] == ["agent_semantic_mt_loss", "agent_mt_soft"]
        elif name == "mt_bert":
            assert found["trained"] == ["fit_dense_0", "fit_dense_1"]
