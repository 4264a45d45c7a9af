"""The loop: what happens when, exact resuming with teachers, and runs that only skip."""

import dataclasses
import json

import pytest
import torch

import mpu
from config import CheckpointArgs
from distill.context import TrainState
from distill.engine.build import build_module
from distill.engine.checkpoint import Checkpoints
from distill.engine.launch import TrainingError
from distill.engine.lr_schedule import LRSchedule
from distill.engine.summary import LOSS, Summary
from distill.engine.trainer import BadSteps, Plan, Trainer
from distill.engine.wrap import StepResult, wrap
from distill.step import DistillStep
from distill.teacher import build_teachers
from tests.distill.engine import small
from tests.distill.runs import lm_task, toy_run
from tests.toy import toy_lm_batch

KD = ("--student_model=kd", "--distill_pt_soft", "--distill_pt_hard", "--distill_temperature=4")
DROPOUT = ("--attention-dropout=0.2", "--hidden-dropout=0.2")
TOTAL = 10


@pytest.fixture(autouse=True)
def one_process():
    yield
    mpu.destroy_model_parallel()


def make_trainer(folder, *flags, start=0, total=TOTAL, load=None, batches=None, **plan):
    """As the pretraining program builds it, over toy batches."""
    run = toy_run("--lr=0.01", "--custom_no_summary_writer", *flags)
    saving = CheckpointArgs(save=str(folder.parent), load=load)
    run = dataclasses.replace(run, checkpoint=saving)
    runtime, task = small.runtime(run_dir=folder), lm_task()
    mpu.initialize_model_parallel(1)
    folder.mkdir(exist_ok=True)
    engine = wrap(build_module(run, task), run, runtime)
    checkpoints = Checkpoints(run, runtime, "abc")
    state = TrainState()
    if load is not None:
        state.load_state_dict(checkpoints.resume(engine, load))
    repeat = run.train.gradient_accumulation_steps
    accumulated = [
        [toy_lm_batch(seed=i * repeat + k) for k in range(repeat)] for i in range(start, total)
    ]
    plan = Plan(**({"total": total, "log_every": 1} | plan))
    step = DistillStep(task, engine, build_teachers(run, task, "cpu"), run, state)
    parts = (engine, step, batches or accumulated, plan, state, run, runtime)
    calls = []

    def evaluate():
        calls.append(state.iteration)
        return {"loss": 1.0}

    trainer = Trainer(
        *parts,
        checkpoints=checkpoints,
        summary=Summary(run, runtime, start=state.iteration),
        evaluate=evaluate,
    )
    return trainer, calls


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder):
    return [row[LOSS] for row in metrics(folder) if LOSS in row]


def test_it_learns_and_tells(tmp_path):
    batch = [toy_lm_batch(8)]
    trainer, _ = make_trainer(tmp_path / "run", batches=[batch] * 30, total=30)
    trainer.fit()
    rows = metrics(tmp_path / "run")
    assert rows[-1][LOSS] < 0.6 * rows[0][LOSS]
    schedule = LRSchedule.build(trainer.run.optim, 30)
    assert [row["Train/lr"] for row in rows] == pytest.approx([schedule(k) for k in range(30)])
    state = trainer.state
    tokens = int((batch[0].position_ids[:, 0] > 0).sum()) + 8
    assert (state.iteration, state.samples, state.tokens) == (30, 240, 30 * tokens)
    assert state.seconds > 0


def test_it_stops_when_the_plan_is_done(tmp_path):
    def endless():
        seed = 0
        while True:
            yield [toy_lm_batch(seed=seed)]
            seed += 1

    trainer, _ = make_trainer(tmp_path / "run", batches=endless(), total=3)
    trainer.fit()
    assert trainer.state.iteration == 3
    trainer.fit()
    assert trainer.state.iteration == 3


def test_weights_that_will_be_lost_are_told_once(tmp_path, caplog):
    trainer, _ = make_trainer(tmp_path / "run", total=1)
    trainer.fit()
    assert "--save" not in caplog.text
    trainer, _ = make_trainer(tmp_path / "run", total=1)
    trainer.checkpoints = Checkpoints(trainer.run, small.runtime(), "abc")
    trainer.fit()
    trainer.fit()
    assert caplog.text.count("--save: missing") == 1


def test_moments(tmp_path):
    trainer, evaluated = make_trainer(
        tmp_path / "run", eval_every=4, save_every=(5, 3), steps_per_epoch=4
    )
    trainer.fit()
    assert evaluated == [4, 8]
    saved = sorted(int(p.parent.name) for p in (tmp_path / "run").glob("*/config.json"))
    assert saved == [3, 5, 6, 9, 10]
    assert trainer.state.epoch == 2
    assert (tmp_path / "run" / "latest_checkpointed_iteration.txt").read_text() == "10"
    scores = [r for r in metrics(tmp_path / "run") if "Train/valid_loss" in r]
    assert [r["iteration"] for r in scores] == [4, 8]


def test_an_evaluation_at_the_end_comes_before_the_checkpoint(tmp_path):
    plan = {"eval_every": 4, "save_every": (5,), "eval_at_end": True}
    trainer, evaluated = make_trainer(tmp_path / "run", **plan)
    before = []
    save = trainer.checkpoints.save
    trainer.checkpoints.save = lambda *a: (before.append(list(evaluated)), save(*a))
    trainer.fit()
    assert evaluated == [4, 8, 10]
    assert before == [[4], [4, 8, 10]]


def test_hours_between_checkpoints(tmp_path, monkeypatch):
    trainer, _ = make_trainer(tmp_path / "run", save_hours=1.0, save_at_end=False)
    now = [0.0]

    def clock():
        now[0] += 900.0  # seconds; asked once a step, and once more by a save
        return now[0]

    monkeypatch.setattr("distill.engine.trainer.time.monotonic", clock)
    trainer._saved_at = 0.0
    trainer.fit()
    assert sorted(int(p.parent.name) for p in (tmp_path / "run").glob("*/config.json")) == [4, 8]


@pytest.mark.parametrize("method", [(), KD, ("--student_model=logitsdistil",)])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_ten_steps_are_five_and_five(tmp_path, method, accumulation):
    """Bit for bit, with dropout; losses and terms of every step too."""
    flags = (*method, *DROPOUT, f"--gradient-accumulation-steps={accumulation}")
    whole, _ = make_trainer(tmp_path / "whole", *flags)
    whole.fit()
    half, _ = make_trainer(tmp_path / "half", *flags, save_every=(5,))
    half.plan = dataclasses.replace(half.plan, total=5)
    half.fit()
    torch.manual_seed(0)
    rest, _ = make_trainer(tmp_path / "half", *flags, start=5, load=str(tmp_path / "half"))
    assert rest.state.iteration == 5
    rest.fit()
    assert small.same(small.snapshot(whole.engine), small.snapshot(rest.engine))
    no_clock = ("Train/elapsed_time", "Train/tokens_per_second")
    expected, actual = (
        [{k: v for k, v in row.items() if k not in no_clock} for row in metrics(tmp_path / name)]
        for name in ("whole", "half")
    )
    assert actual == expected
    assert len({row[LOSS] for row in actual}) == TOTAL


def test_a_resumed_run_switches_to_a_linear_schedule_once(tmp_path):
    flags, folder = ("--lr-decay-style=constant", "--warmup=0.2"), tmp_path / "run"
    make_trainer(folder, *flags, total=5)[0].fit()
    switched, _ = make_trainer(folder, *flags, "--switch-linear", start=5, load=str(folder))
    # 2 of 10 steps warm up, then a line over the 5 steps left, to a tenth of the peak.
    expected = [0, 0.005, 0.01, 0.01 * (1 - 0.9 / 5), 0.01 * (1 - 0.9 * 2 / 5)]
    assert [switched.schedule(k) for k in range(5, 10)] == pytest.approx(expected)
    switched.fit()
    again, _ = make_trainer(folder, *flags, start=10, total=TOTAL, load=str(folder))
    assert [again.schedule(k) for k in range(5, 10)] == pytest.approx(expected)
    late, _ = make_trainer(folder, *flags, "--switch-linear", start=10, load=str(folder))
    assert [late.schedule(k) for k in range(5, 10)] == pytest.approx(expected)


def test_terms_have_the_seeds_names(tmp_path):
    trainer, _ = make_trainer(tmp_path / "run", *KD, total=1)
    trainer.fit()
    (row,) = metrics(tmp_path / "run")
    assert {"Train/lr", LOSS, "pre_loss/pt_soft_t0", "pre_loss/pt_hard_t0"} <= row.keys()
    assert row[LOSS] == pytest.approx(row["pre_loss/pt_soft_t0"] + row["pre_loss/pt_hard_t0"])


# Skipped updates ----------------------------------------------------------------------------------


def poisoned(batch):
    """A batch whose loss is NaN."""
    return dataclasses.replace(batch, loss_mask=batch.loss_mask * torch.nan)


def test_a_run_that_ends_with_a_skipped_update_says_so(tmp_path, caplog):
    batches = [[toy_lm_batch(seed=i)] for i in range(3)]
    batches[2] = [poisoned(batches[2][0])]
    make_trainer(tmp_path / "run", batches=batches, total=3)[0].fit()
    assert caplog.text.count("the run ends with its last 1 update(s) skipped") == 1


def test_a_bad_batch_is_skipped_and_counted(tmp_path):
    batches = [[toy_lm_batch(seed=i)] for i in range(6)]
    batches[2] = [poisoned(batches[2][0])]
    trainer, _ = make_trainer(tmp_path / "run", batches=batches, total=6)
    trainer.fit()
    assert (trainer.state.skipped_steps, trainer.state.bad_steps) == (1, 0)
    assert all(p.isfinite().all() for p in trainer.engine.module.parameters())
    assert losses(tmp_path / "run")[2] is None


def test_too_many_in_a_row_end_the_run(tmp_path):
    batches = [[poisoned(toy_lm_batch(seed=i))] for i in range(20)]
    trainer, _ = make_trainer(tmp_path / "run", "--max-bad-steps=4", batches=batches, total=20)
    before = {k: v.clone() for k, v in trainer.engine.module.state_dict().items()}
    with pytest.raises(TrainingError, match="--max-bad-steps=4: 4 updates in a row"):
        trainer.fit()
    assert trainer.state.iteration == 3  # the fourth was not completed
    assert all(torch.equal(v, before[k]) for k, v in trainer.engine.module.state_dict().items())


def results(applied, scales=None):
    scales = scales or [1.0] * len(applied)
    return [
        StepResult(torch.tensor(ok), torch.tensor(0.0), torch.tensor(scale))
        for ok, scale in zip(applied, scales, strict=True)
    ]


def count(applied, scales=None, limit=3, device="cpu", every=None):
    """(steps done, skipped, in a row) until the end or the error."""
    state = TrainState()
    bad = BadSteps(state, torch.device(device), limit)
    bad._every = every or bad._every
    try:
        for result in results(applied, scales):
            bad.add(result)
            state.iteration += 1
        bad.read()
    except TrainingError:
        return "ended", state.iteration
    return state.skipped_steps, state.bad_steps


def test_only_a_row_counts():
    assert count([False, False, True, False, False]) == (4, 2)
    assert count([True, False, False, False, True]) == ("ended", 3)


def test_a_row_between_two_looks_is_found():
    """On a GPU the host looks only now and then."""
    assert count([False, False, False, True, True, True], every=6) == ("ended", 6)


def test_the_search_for_a_loss_scale_is_no_bad_row():
    falling = [2.0**k for k in range(16, 8, -1)]
    assert count([False] * 8, falling)[0] == 8
    assert count([False] * 8, [1024.0] * 8) == ("ended", 2)  # a fixed scale
    assert count([False] * 8, [4.0, 2.0, 1.0, 0.5, 0.25, 0.1, 0.1, 0.1])[0] == "ended"
