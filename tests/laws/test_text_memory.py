"""Law: text in chunks with a memory trains as the text in one piece, on every layout, and resumes.

The model alone is compared with dense formulas in `tests/model/test_carried.py`. Here student and
teacher, each with a memory of its own, losses, lazy logits, engines, evaluation and checkpoints.
"""

import copy
import dataclasses
import logging
from pathlib import Path

import pytest
import torch

import distill.lazy_forward
import mpu
from data_utils.batch import Batch
from distill.context import TrainState
from distill.engine.evaluate import evaluate
from distill.engine.wrap import wrap
from distill.step import DistillStep
from tasks.text import ContinuedText
from tests.distill.engine.small import deepspeed_json, runtime
from tests.distill.runs import Local, grads_of, toy_run, toy_student, toy_teachers
from tests.model.dense_xl import dense_logits
from tests.ranks import run_ranks
from tests.toy import TEXT, VOCAB

ROWS, LENGTH, STEPS, RATE = 4, 5, 6, 1e-3
KD = ["--student_model=kd", "--distill_pt_soft", "--distill_pt_hard", "--distill_temperature=3"]
RUNS = {
    "plain": [],
    "kd": KD,
    "glmd": ["--student_model=glmd", "--distill_temperature=5", "--logitsdistil_top_n=9"],
    "tinybert": ["--student_model=tinybert", "--tinybert_wo_att"],
    "two teachers": [*KD, "--mt_num_layers=4:3", "--mt_hidden_size=24:16"],
    "repeated": [*KD, "--forward_repeat_num=1"],
}


def run_of(name, *flags, memory=STEPS * LENGTH):
    run = toy_run(*RUNS[name], "--transformer-xl", f"--mem-length={memory}", *flags)
    assert run.remembers == (memory > 0)
    return run


def positions():
    """[rows, 30]: the first row is one document, the others have a few."""
    starts = torch.zeros(ROWS, STEPS * LENGTH, dtype=torch.long)
    for row, places in enumerate(((), (7,), (5, 16), (2, 9, 20))):
        for place in places:
            starts[row, place:] = place
    return torch.arange(STEPS * LENGTH) - starts + 1


def text(first, last, rows=slice(None)):
    """A batch of tokens first..last - 1 of these rows; the next ones are the labels."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(TEXT, VOCAB, (ROWS, STEPS * LENGTH + 1), generator=generator)[rows]
    return Batch(
        tokens=ids[:, first:last],
        position_ids=positions()[rows, first:last],
        attention_mask=torch.zeros(len(ids), dtype=torch.long),
        labels=ids[:, first + 1 : last + 1],
        loss_mask=torch.ones(len(ids), last - first),
        sample_ids=torch.arange(len(ids)) + 100 * first,
    )


def chunk(number, rows=slice(None)):
    return text(number * LENGTH, (number + 1) * LENGTH, rows)


def step_of(run, engine=Local):
    task = ContinuedText(run.model.mem_length)
    student = engine(toy_student(run, task))
    return DistillStep(task, student, toy_teachers(run, task), run, TrainState())


def gradient(step, batches):
    """Loss of an optimizer step of these micro-batches, added up."""
    counts, total = step.count(batches), 0.0
    for number, batch in enumerate(batches):
        mpu.seed_step(1, step.state.iteration, number, 0)
        loss = step(batch, counts, number).loss
        loss.backward()
        total += float(loss.detach())
    step.state.iteration += 1
    return total


@pytest.mark.parametrize(
    ("name", "lazy"), [*((name, False) for name in RUNS), ("kd", True), ("glmd", True)]
)
def test_chunks_have_the_loss_of_the_whole_text(name, lazy, monkeypatch):
    monkeypatch.setattr(distill.lazy_forward, "FEW", 0 if lazy else 1 << 40)
    whole = step_of(run_of(name, memory=0))
    expected = gradient(whole, [text(0, STEPS * LENGTH)])
    step, halves = step_of(run_of(name)), step_of(run_of(name, "--gradient-accumulation-steps=2"))
    losses, cut = [], []
    for number in range(STEPS):
        losses.append(gradient(step, [chunk(number)]))
        parts = [chunk(number, slice(0, 2)), chunk(number, slice(2, 4))]
        cut.append(gradient(halves, parts) / 2)
    assert sum(losses) / STEPS == pytest.approx(expected, rel=2e-6)
    assert cut == pytest.approx(losses, rel=2e-6)
    forgetful = step_of(run_of(name, memory=0))
    assert gradient(forgetful, [chunk(1)]) != pytest.approx(losses[1], rel=1e-4)


def test_each_teacher_remembers_its_own_states():
    step = step_of(run_of("two teachers"))
    gradient(step, [chunk(0)])
    widths = {name: [x.size(-1) for x in memory.slots[0].states] for name, memory in memories(step)}
    assert widths == {"student": [16] * 3, "teacher_0": [24] * 5, "teacher_1": [16] * 4}


def memories(step):
    return step.memories._of.items()


def on_layout(rank, world_size, p, name, stage, recompute):
    """Losses over all ranks and gradient norms of a few steps."""
    if world_size > 1:
        mpu.initialize_model_parallel(p)
    run = run_of(name, "--weight-decay=0.1", memory=8)
    model = dataclasses.replace(run.model, checkpoint_activations=recompute)
    run = dataclasses.replace(run, model=model)
    if stage is not None:
        parallel = dataclasses.replace(run.parallel, deepspeed=True)
        json = deepspeed_json(stage, 1, False, run.train.clip_grad)
        run = dataclasses.replace(run, parallel=parallel, deepspeed=json)
    step = step_of(run, lambda module: wrap(module, run, runtime(mpu.get_data_parallel_rank(), 1)))
    step.student.module.train()
    size = ROWS // mpu.get_data_parallel_world_size()
    own = slice(mpu.get_data_parallel_rank() * size, (mpu.get_data_parallel_rank() + 1) * size)
    found = []
    for number in range(4):
        batch = chunk(number, own)
        counts = step.count([batch])
        with step.student.micro_step(last=True):
            loss = step(batch, counts).loss
            step.student.backward(loss)
        norm = float(step.student.step(RATE).grad_norm)
        step.state.iteration += 1
        found.append((float(mpu.mean_over_data_parallel(loss.detach())), norm))
    return found


@pytest.mark.parametrize(
    ("p", "dp", "stage"),
    [
        (2, 1, None),
        pytest.param(1, 2, 3, marks=pytest.mark.slow),
        pytest.param(4, 1, None, marks=pytest.mark.slow),
        pytest.param(2, 2, 2, marks=pytest.mark.slow),
    ],
)
def test_every_layout_trains_alike(p, dp, stage):
    expected = run_ranks(1, on_layout, 1, "kd", None, False)[0]
    preload = "torch" if stage is None else "deepspeed"
    for actual in run_ranks(p * dp, on_layout, p, "kd", stage, True, preload=preload):
        for found, wanted in zip(actual, expected, strict=True):
            assert found == pytest.approx(wanted, rel=1e-4)


class Trained:
    """A run with dropout and two micro-batches a step."""

    def __init__(self, run, saved=None, folder=None):
        self.step = step_of(run)
        self.module = self.step.student.module.train()
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=0.01)
        if saved is not None:
            self.module.load_state_dict(saved["module"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.step.state.iteration = saved["iteration"]
            self.step.memories.load(folder, torch.device("cpu"))

    def train(self, until):
        found = []
        while (number := self.step.state.iteration) < until:
            self.optimizer.zero_grad()
            parts = [chunk(number, slice(0, 2)), chunk(number, slice(2, 4))]
            found.append(gradient(self.step, parts))
            self.optimizer.step()
        return found

    def save(self, folder):
        self.step.memories.save(folder)
        parts = {"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
        return copy.deepcopy(parts | {"iteration": self.step.state.iteration})


DROPOUT = ["--attention-dropout=0.1", "--hidden-dropout=0.1", "--gradient-accumulation-steps=2"]


def test_resuming_is_invisible(tmp_path: Path):
    run = run_of("two teachers", *DROPOUT, memory=8)
    whole = Trained(run)
    expected = whole.train(STEPS)
    first = Trained(run)
    losses = first.train(STEPS // 2)
    second = Trained(run, first.save(tmp_path), tmp_path)
    (tmp_path / "text_memory_rank_00.pt").unlink()
    assert losses + second.train(STEPS) == expected
    weights = whole.module.state_dict()
    assert all(torch.equal(x, weights[key]) for key, x in second.module.state_dict().items())


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--batch-size=3"], "batch_size was 4, is 3"),
        (["--seq-length=6"], "seq_length was 512, is 6"),
        (["--teacher_hidden_size=16"], "teachers was"),
        (["--mem-length=9"], "mem_length was 8, is 9"),
        ([], "there is no text_memory_rank_00.pt"),
    ],
)
def test_what_cannot_be_continued_begins_empty_and_is_told(flags, why, tmp_path, caplog):
    step = step_of(run_of("kd", memory=8))
    gradient(step, [chunk(0)])
    if flags:
        step.memories.save(tmp_path)
    other = step_of(run_of("kd", *flags, memory=8))
    with caplog.at_level(logging.WARNING):
        other.memories.load(tmp_path, torch.device("cpu"))
    assert why in caplog.text
    assert "begin with an empty memory" in caplog.text
    assert all(not memory.slots for _, memory in memories(other))


def test_an_evaluation_has_a_memory_of_its_own():
    step, undisturbed = (step_of(run_of("kd")) for _ in range(2))
    for each in (step, undisturbed):
        gradient(each, [chunk(0)])
    steps = step.memories.over([[chunk(number)] for number in range(STEPS)])
    found = evaluate(step.student, step.task, steps, split="val").metrics
    glm, first = step.method.origin_model, torch.arange(STEPS * LENGTH) - positions() + 1
    whole, losses = text(0, STEPS * LENGTH), []
    for row in range(ROWS):
        logits = dense_logits(
            step.run.model, dict(glm.named_parameters()), whole.tokens[row], first[row]
        )
        losses.append(torch.nn.functional.cross_entropy(logits, whole.labels[row]))
    assert found["loss"] == pytest.approx(float(sum(losses).detach() / ROWS), rel=1e-5)
    assert gradient(step, [chunk(1)]) == gradient(undisturbed, [chunk(1)])
    same = (grads_of(each.student.module) for each in (step, undisturbed))
    assert all(torch.equal(a, b) for a, b in zip(*(g.values() for g in same), strict=True))
