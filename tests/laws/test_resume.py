"""Law: resuming is invisible. 6 steps = 3 + save + new objects + 3, bitwise, for every method."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import mpu
from distill.context import TrainState
from distill.step import DistillStep
from tests.distill.runs import (
    Local,
    all_methods,
    cloze_task,
    lm_task,
    toy_run,
    toy_student,
    toy_teachers,
)
from tests.laws.test_methods import BASE, SWITCHES, VARIANTS
from tests.toy import toy_cloze_batch, toy_lm_batch

STEPS = 6
# Schedules, draws and thresholds that change within so few steps.
MOVING: dict[str, list[str]] = {
    "tinybert": ["--tinybert_random_layers", "--tinybert_random_e=0", "--tinybert_random_i=2"],
    "rail_kd": ["--rail_kd_epochs=0", "--rail_kd_iters=2"],
    "sid": ["--sid_accumulate_t=1.5"],
}
DROPOUT = ["--attention-dropout=0.1", "--hidden-dropout=0.1", "--output-dropout=0.1"]


def cases() -> list[tuple[str, ...]]:
    """(program, method, flags...): what moves, and the first variant in the seed's numerics."""
    return [
        (program, name, *flags)
        for name in all_methods()
        for program in SWITCHES
        for flags in [MOVING.get(name, []), *VARIANTS.get(name, [])[:1]]
        if not any("compat" in flag for flag in flags)  # D20: the seed forgets on purpose
    ]


class Trained:
    """A toy run from a state on: weights, optimizer, train state."""

    def __init__(self, case: tuple[str, ...], saved: dict[str, Any] | None = None):
        self.program, name, *flags = case
        flags = [*DROPOUT, *SWITCHES[self.program], *BASE.get(name, []), *flags]
        self.run = toy_run(f"--student_model={name}", *flags, program=self.program)
        task = lm_task() if self.program == "pretrain" else cloze_task()
        module = toy_student(self.run, task).train()
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
        self.state = TrainState()
        if saved is not None:
            module.load_state_dict(saved["module"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.state.load_state_dict(saved["state"])
        teachers = toy_teachers(self.run, task)
        student = Local(module)
        self.step = DistillStep(task, student, teachers, self.run, self.state, total=STEPS)

    def train(self, until: int) -> list[Tensor]:
        """Steps of two micro-batches up to this iteration; their losses."""
        losses = []
        while self.state.iteration < until:
            self.optimizer.zero_grad()
            batches = [self.batch(number) for number in range(2)]
            counts = self.step.count(batches)
            for number, batch in enumerate(batches):
                mpu.seed_step(self.run.train.seed, self.state.iteration, number, 0)
                output = self.step(batch, counts, number)
                output.loss.backward()
                losses.append(output.loss.detach())
            self.optimizer.step()
            self.state.iteration += 1
            self.state.epoch = self.state.iteration // 2
        return losses

    def batch(self, number: int) -> Any:
        """Micro-batch `number` of this iteration."""
        seed = 10 * self.state.iteration + number
        if self.program == "pretrain":
            return toy_lm_batch(3, seed=seed)
        return toy_cloze_batch(3, choices=3, variable=True, seed=seed)

    def save(self) -> dict[str, Any]:
        """All that a checkpoint holds."""
        self.step.remember()
        parts = {
            "module": self.step.student.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "state": self.state.state_dict(),
        }
        return copy.deepcopy(parts)


@pytest.mark.parametrize("case", cases(), ids="-".join)
def test_resuming_is_invisible(case):
    whole = Trained(case)
    expected = whole.train(STEPS)
    first = Trained(case)
    losses = first.train(STEPS // 2)
    second = Trained(case, first.save())
    actual = losses + second.train(STEPS)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
    weights = whole.step.student.module.state_dict()
    for key, value in second.step.student.module.state_dict().items():
        assert torch.equal(value, weights[key]), key
