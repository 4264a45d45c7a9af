"""Every stage of every recipe learns: 30 real steps by the programs, on the shipped data.

The programs run in this process, one after the other, because importing torch would cost more time
than the steps. Stages start from, and learn from, what the recipe says.
"""

import json
import math
from dataclasses import replace
from statistics import mean

import pytest

from distill import finetune, pretrain
from scripts.count_tokens import main as count_tokens
from scripts.quickstart_plan import FULL, TASK
from scripts.recipes import (
    chain,
    command,
    has_several_teachers,
    ranking_command,
    stages,
    tokenizer_command,
)
from scripts.train_tokenizer import main as train_tokenizer
from tests.house import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

STEPS, PART = 30, 10
TEACHER_STEPS = {"pretrain": 60, "finetune": 100}  # so that there is something to learn from
# Rows of SST-2's files. An epoch is 2 steps: the first and the last 10 have the same samples, so
# that what differs between samples (as the entropy of their soft labels) does not count.
ROWS = {"train": 32, "val": 20, "test": 20}
SIZES = replace(
    FULL, vocabulary=2000, hidden=64, heads=4, teacher_layers=4, student_layers=2, seq_length=32,
    batch=16, ft_batch=16,
)  # fmt: skip
SHORT = [
    "--log-interval=1", "--custom_no_summary_writer", "--lr-decay-style=constant",
    "--attention-dropout=0", "--hidden-dropout=0",
]  # fmt: skip
RUN = {
    "pretrain": ["--lr=3e-3", "--split=98,1,1", "--eval-iters=1"],
    "finetune": ["--lr=3e-3"],
}
GENTLE = "--lr=5e-4"  # for students that start from layers of a teacher that knows all answers
LOSS = "Train/train_loss"
PROGRAMS = {"pretrain": pretrain.main, "finetune": finetune.main}


class World:
    """A folder of runs, each made when it is first asked for."""

    def __init__(self, folder):
        self.folder = folder
        self.rows = {}
        train_tokenizer(tokenizer_command(SIZES, folder)[1:])
        count_tokens(ranking_command(folder)[1:])
        (folder / "SST-2").mkdir()
        for split, number in ROWS.items():
            rows = (ROOT / TASK / f"{split}.jsonl").read_text().splitlines(keepends=True)
            (folder / "SST-2" / f"{split}.jsonl").write_text("".join(rows[:number]))

    def run(self, stage, *, rests=False, afresh=False):
        """The loss of each step. `rests`: with learning rate 0; `afresh`: from random weights."""
        return [row[LOSS] for row in self.steps(stage, rests=rests, afresh=afresh)]

    def steps(self, stage, *, rests=False, afresh=False):
        """The numbers of each step."""
        name = stage.run_name + ("-rests" if rests else "") + ("-afresh" if afresh else "")
        if name not in self.rows:
            alone = stage.role != "student" and not stage.teachers
            steps = TEACHER_STEPS[stage.program] if alone else STEPS
            words = command(stage, SIZES, self.folder)[1:]
            words = [word for word in words if not word.startswith("--epochs")]
            words += [*SHORT, *RUN[stage.program], f"--train-iters={steps}"]
            if stage.program == "finetune":
                words.append(f"--data-dir={self.folder}/SST-2")
            if not afresh and any(flag.startswith("--student_truncate_tn") for flag in stage.flags):
                words.append(GENTLE)
            if has_several_teachers(stage.recipe) and stage.program == "finetune":
                words.append("--eval-epoch=1000")  # at the end only
            if rests:
                words.append("--lr=0")
            if afresh:
                words = [word for word in words if word.partition("=")[0] not in STARTS]
            words.append(f"--experiment-name={name}")
            PROGRAMS[stage.program](words)
            lines = (self.folder / name / "metrics.jsonl").read_text().splitlines()
            self.rows[name] = [row for row in map(json.loads, lines) if LOSS in row]
            assert [row["iteration"] for row in self.rows[name]] == list(range(1, steps + 1))
        return self.rows[name]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("recipes"))


# Stages whose loss changes its meaning during the run, so that it need not fall.
CHANGING = {
    "sid.finetune": "a layer more in the second third, labels instead of layers in the last",
    "mobilebert.pretrain": "a layer more in the second third, labels besides in the last",
    "annealing_kd.finetune-1": "its target grows, from 1/7 of the teacher's logits to all",
    "continuation_kd.finetune": "hard labels take the place of soft ones",
    "theseus.finetune": "blocks of the student take the place of the teacher's",
}
STARTS = ("--student_truncate_tn", "--load-pretrained")
# Recipes whose loss depends on drawn teachers; that against each teacher shall fall.
DRAWN = ("dgkd.", "rl_kd.finetune-2", "rl_kd_reward_2.")


def knows(stage):
    """Whether a student of several teachers knows all answers of so small a task at its start."""
    truncated = any(flag.startswith("--student_truncate_tn") for flag in stage.flags)
    tuned = stage.start is not None and stages()[stage.start].program == "finetune"
    return (
        has_several_teachers(stage.recipe) and stage.program == "finetune" and (truncated or tuned)
    )


def terms(steps):
    """Teacher's term -> its values in the steps in which it took part."""
    names = sorted(
        {name for step in steps for name in step if name.startswith("pre_loss/ft_soft_")}
    )
    return {name: [step[name] for step in steps if name in step] for name in names}


def falls(losses):
    """The mean of the last 10 steps is below that of the first 10."""
    return mean(losses[-PART:]) < mean(losses[:PART])


def below(losses, others):
    """In each third of the run the mean is below that of another run."""
    thirds = [slice(start, start + PART) for start in range(0, STEPS, PART)]
    return all(mean(losses[third]) < mean(others[third]) for third in thirds)


@pytest.mark.parametrize("key", stages())
def test_the_stage_learns(key, world):
    for stage in chain(key):
        losses = world.run(stage)
    assert all(loss is not None and math.isfinite(loss) for loss in losses), losses
    steps = world.steps(stage, afresh=knows(stage))
    if key in CHANGING:  # what the same student would have that stays as it is
        assert below(losses, world.run(stage, rests=True)), losses
    elif key.startswith(DRAWN):
        found = terms(steps)
        numbers = {f"pre_loss/ft_soft_t{n}" for n in range(len(stage.teachers))}
        semantic = {"pre_loss/ft_soft_t0"} if "rl_kd" in key else set()
        assert set(found) == numbers - semantic
        assert all(falls(values) for values in found.values()), found
    else:
        losses = [step[LOSS] for step in steps]
        assert falls(losses), losses


def test_a_student_that_rests_does_not_pass(world):
    """The criteria can fail: with the same samples at the beginning and at the end."""
    stage = chain("kd.finetune")[-1]
    rests = world.run(stage, rests=True)
    assert mean(rests[:PART]) == pytest.approx(mean(rests[-PART:]), rel=1e-5)
    assert not below(rests, rests)
