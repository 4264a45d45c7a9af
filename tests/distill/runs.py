"""Toy distillation runs: a 2-layer student and a 4-layer teacher, built as the programs do."""

import contextlib
import dataclasses
import os
from typing import Any

import torch
from torch import Tensor, nn

from config import RunArgs, parse_args
from data_utils.batch import Batch
from distill.combiner import combiner_args
from distill.context import TrainState
from distill.registry import METHODS, method_args
from distill.step import DistillStep, StepOutput
from distill.student import build_student
from distill.teacher import Teacher, build_teachers
from model.build import HeadSpec, add_head, build_model
from tasks.base import Task
from tasks.block_lm import BlockLM
from tasks.choice import ChoiceTask
from tests.toy import randomize

SIZES = [
    "--num-layers=2",
    "--hidden-size=16",
    "--num-attention-heads=4",
    "--vocab-size=64",
    "--max-position-embeddings=40",
    "--attention-dropout=0",
    "--hidden-dropout=0",
    "--output-dropout=0",
    "--teacher_num_layers=4",
    "--teacher_hidden_size=24",
    "--teacher_num_attention_heads=4",
    "--teacher_max_position_embeddings=40",
    "--teacher_random_para",
]


@dataclasses.dataclass
class Local:
    """An engine of this process alone: the module itself."""

    module: nn.Module
    device: torch.device = torch.device("cpu")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        return self.module(*inputs, **options)

    def autocast(self) -> contextlib.AbstractContextManager:
        """fp32."""
        return contextlib.nullcontext()

    def settle(self) -> None:
        """Nothing is ever under way."""


def toy_run(*flags: str, program: str = "pretrain") -> RunArgs:
    """A run of toy sizes; flags given later win."""
    kinds = {"methods": method_args(), "combiners": combiner_args()}
    return parse_args([*SIZES, *flags], program=program, **kinds, check=False)


def lm_task() -> Task:
    """Pretraining."""
    return BlockLM()


def cloze_task(kind: str = "multi_token") -> Task:
    """Fine-tuning with a cloze head."""
    return ChoiceTask("toy", HeadSpec(kind))


def toy_student(run: RunArgs, task: Task, seed: int = 0) -> nn.Module:
    """The student with the task's head and lively weights, as they are at p = 1."""
    student = build_student(build_model(run.model, task.head), run, task.shape)
    return randomize(add_head(student, task.head, run.model), seed)


def toy_teachers(run: RunArgs, task: Task) -> tuple[Teacher, ...]:
    """The run's teachers with lively weights."""
    teachers = build_teachers(run, task, "cpu")
    for number, teacher in enumerate(teachers):
        randomize(teacher.module, 100 + number)
    return teachers


def toy_step(run: RunArgs, task: Task | None = None, iteration: int = 0) -> DistillStep:
    """A whole step; `step.student.module` is the student."""
    task = task or (lm_task() if run.program == "pretrain" else cloze_task())
    student = Local(toy_student(run, task))
    return DistillStep(task, student, toy_teachers(run, task), run, TrainState(iteration=iteration))


def take(step: DistillStep, batch: Batch) -> StepOutput:
    """One micro-batch as an optimizer step of its own, backward included."""
    step.student.module.zero_grad()
    output = step(batch, step.count([batch]))
    output.loss.backward()
    return output


def rows_of(batch: Batch, first: int, last: int, longer: int = 0) -> Batch:
    """Samples first..last - 1, padded to their own longest plus `longer` positions."""
    parts = {k: v[first:last] for k, v in batch.tensors().items()}
    used = parts["position_ids"].flatten(0, -3)[:, 0].gt(0).any(0).nonzero().max() + 1
    width, old = int(used) + longer, batch.tokens.size(-1)
    for name in ("tokens", "position_ids", "labels", "loss_mask", "target_ids", "logit_mask"):
        x = parts.get(name)
        if x is not None and x.size(-1) == old:
            parts[name] = torch.nn.functional.pad(x[..., :width], (0, max(0, width - old)))
    return Batch(**parts)


def grads_of(module: nn.Module) -> dict[str, Tensor]:
    """Checkpoint name -> gradient, zeros where there is none."""
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in module.state_dict(keep_vars=True).items()
    }


def all_methods() -> list[str]:
    """One name of every class of the package, and those that OWN_METHODS names (with commas)."""
    own = os.environ.get("OWN_METHODS", "")
    method_args([f"--mixbaseline_inter_bl={own}"])
    names: dict[type, str] = {}
    for name, cls in METHODS.items():
        if cls.__module__.startswith("distill.") or name in own.split(","):
            names.setdefault(cls, name)
    return list(names.values())
