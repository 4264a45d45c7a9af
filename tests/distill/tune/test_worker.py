"""Workers: killed at any moment and started again, the table is the same and nothing is repeated."""

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from distill.tune import worker
from distill.tune.process import start_time
from distill.tune.report_run import rows_of, sweep_of
from distill.tune.store import DONE, FAILED, PRUNED, Store
from distill.tune.sweep import choices_of
from tests.distill.tune.sweeps import FILE, make, run_here, start

RUNS = 1 + 2 + 2 * 2 * 3 * 2


def wait(process, folder: Path, code: int = 0) -> None:
    assert process.wait(240) == code, (folder / "log").read_text()


def calls(folder: Path, what: str) -> list[str]:
    rows = [json.loads(line) for line in (folder / "calls").read_text().splitlines()]
    return [name for kind, name, _ in rows if kind == what]


def rows(folder: Path) -> dict:
    spec = sweep_of(folder / "out")
    store = Store(f"sqlite:///{folder}/out/study.db", spec.study)
    return {row.name: row for row in rows_of(choices_of(spec, store, 1).graph(), store).values()}


def table(folder: Path) -> str:
    """results.csv without what depends on time."""
    lines = (folder / "out" / "results.csv").read_text().splitlines()
    head = lines[0].split(",")
    keep = [head.index(name) for name in ("name", "state", "test/accuracy", "val/accuracy", "key")]
    return "\n".join(",".join(line.split(",")[i] for i in keep) for line in lines)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The sweep, not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    make(folder)
    assert run_here(folder)
    return folder


def test_every_run_is_run_once(whole):
    assert sorted(calls(whole, "begin")) == sorted(calls(whole, "end"))
    assert set(Counter(calls(whole, "begin")).values()) == {1}
    found = rows(whole)
    assert len(found) == len(calls(whole, "end")) == RUNS
    assert {row.state for row in found.values()} == {DONE}


def test_a_finished_sweep_runs_nothing_again(whole):
    before = calls(whole, "begin")
    assert run_here(whole)
    assert calls(whole, "begin") == before
    (whole / "out" / "study.db").rename(whole / "old.db")
    assert run_here(whole)  # without its database: the runs' own files say that they ended
    assert calls(whole, "begin") == before
    (whole / "old.db").replace(whole / "out" / "study.db")


@pytest.mark.slow
def test_two_workers_share_the_runs_and_repeat_none(tmp_path, whole):
    make(tmp_path)
    for each in [start(tmp_path, "--slots=2", seconds=0.5) for _ in range(2)]:
        wait(each, tmp_path)
    assert set(Counter(calls(tmp_path, "begin")).values()) == {1}
    assert len({row.worker for row in rows(tmp_path).values()}) == 2
    assert table(tmp_path) == table(whole)


@pytest.mark.slow
def test_after_kills_it_goes_on_to_the_same_table(whole, tmp_path):
    make(tmp_path)
    for number in (3, 9, 17):
        started = start(tmp_path, "--slots=2", seconds=0.3)
        begin = time.monotonic()
        while not (tmp_path / "calls").exists() or len(calls(tmp_path, "begin")) < number:
            assert started.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() - begin < 60
            time.sleep(0.02)
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()
    wait(start(tmp_path, "--slots=2"), tmp_path)
    assert set(Counter(calls(tmp_path, "end")).values()) == {1}
    assert table(tmp_path) == table(whole)
    assert sum(row.interrupted for row in rows(tmp_path).values()) >= 3


@pytest.mark.slow
def test_a_program_that_outlived_its_worker_is_ended_first(tmp_path):
    make(tmp_path)
    started = start(tmp_path, seconds=60)
    while not (found := [r for r in _known(tmp_path) if r.pid]):
        time.sleep(0.1)
    os.kill(started.pid, signal.SIGKILL)  # not its group
    started.wait()
    row = found[0]
    assert start_time(row.pid) == row.pid_start
    wait(start(tmp_path, "--slots=2"), tmp_path)
    assert start_time(row.pid) != row.pid_start
    assert set(Counter(calls(tmp_path, "end")).values()) == {1}


def _known(folder: Path) -> list:
    if not (folder / "out" / "study.db").exists():
        return []
    return list(Store(f"sqlite:///{folder}/out/study.db", "pretended").rows().values())


def test_failures_are_bounded_and_keep_their_reason(tmp_path):
    text = FILE.replace("flags: {warmup: 0.2}", "flags: {log-interval: 13}")
    text = text.replace(
        "start: one}\n      kd",
        "start: one, flags: {log-interval: 13, save-interval: 2}}\n      kd",
    )
    make(
        tmp_path,
        text.replace("seeds: [1, 2, 3]", "seeds: [1]").replace(
            "      b: {task: RTE, data-dir: data}\n", ""
        ),
    )
    assert not run_here(tmp_path)
    found = rows(tmp_path)
    assert {name: row.state for name, row in found.items() if row.state != DONE} == {
        "plain-a-two-s1": FAILED,
        "kd-a-two-s1": FAILED,
    }
    assert found["kd-a-two-s1"].failures == 2  # one retry
    assert found["plain-a-two-s1"].failures == 1  # a program that refuses its input is not retried
    assert "exit status 3" in found["kd-a-two-s1"].reason
    assert found["kd-a-two-s1"].reason.endswith("the reason")
    assert not run_here(tmp_path)
    assert len(calls(tmp_path, "begin")) == 4 + 2 + 1
    assert not run_here(tmp_path, "--retry_failed")
    assert len(calls(tmp_path, "begin")) == 7 + 3


def test_what_needs_a_failed_run_is_given_up(tmp_path):
    text = FILE.replace("flags: {epochs: 2}", "flags: {log-interval: 13, save-interval: 2}")
    make(tmp_path, text.replace("seeds: [1, 2, 3]", "seeds: [1]"))
    assert not run_here(tmp_path)
    found = rows(tmp_path)
    assert found["kd-b-two-s1"].reason == "needs kd-b-one-s1, which was failed"
    assert found["plain-b-two-s1"].state == DONE


TPE = ("flags: {warmup: 0.2}", "flags: {lr: {low: 1e-3, high: 1e-2}}")


def test_tpe_proposes_and_is_told(tmp_path):
    text = FILE.replace(*TPE).replace(
        "seeds: [1, 2, 3]", "seeds: [1, 2]\n    sampler: {name: tpe, trials: 3}"
    )
    make(tmp_path, text)
    assert run_here(tmp_path)
    store = Store(f"sqlite:///{tmp_path}/out/study.db", "pretended")
    studies = choices_of(sweep_of(tmp_path / "out"), store, 1).studies
    for task in "ab":
        trials = studies.study("kd", task).trials
        assert [trial.state.name for trial in trials] == ["COMPLETE"] * 3
        for trial in trials:  # the last of the pretended scores
            assert trial.value == pytest.approx(49 + 1000 * trial.params["two.lr"] + 0.2, abs=0.01)
    assert len([n for n in rows(tmp_path) if n.startswith("kd-a-two-s1")]) == 1
    assert len(calls(tmp_path, "end")) == 1 + 2 + 2 * 2 * (2 + 1 + 3)


def test_runs_that_lag_behind_are_pruned(tmp_path, monkeypatch):
    values = "{values: [9e-3, 8e-3, 7e-3, 1e-3]}"
    text = FILE.replace("flags: {warmup: 0.2}", f"flags: {{lr: {values}}}")
    text = text.replace("seeds: [1, 2, 3]", "seeds: [1]\n    pruning: {startup: 3}")
    make(tmp_path, text.replace("      b: {task: RTE, data-dir: data}\n", ""))
    monkeypatch.setenv("PRETEND_SLOW", "1e-3")
    monkeypatch.setattr(worker, "TICK", 0.1)
    assert run_here(tmp_path, slots=1)  # in their order: the worst comes last
    spec = sweep_of(tmp_path / "out")
    store = Store(f"sqlite:///{tmp_path}/out/study.db", spec.study)
    leaves = [x for x in choices_of(spec, store, 1).graph().leaves if x.method == "kd"]
    states = {x.settings["two.lr"]: store.rows()[x.stages[-1]].state for x in leaves}
    assert states == {"9e-3": DONE, "8e-3": DONE, "7e-3": DONE, "1e-3": PRUNED}
