"""Killing a sweep at random points: what the script says is what has happened."""

import json
from collections import Counter
from pathlib import Path

import pytest

from config import ConfigError
from scripts import kill_sweep
from tests.distill.tune.sweeps import FILE, make, run_here

ROW = {"name": "kd-a", "key": "1", "state": "done", "val/accuracy": "61.0", "seconds": "3"}


def test_tables_are_compared_to_the_last_digit_but_not_in_time():
    expected = {"1": ROW, "2": ROW | {"name": "kd-b"}}
    assert (
        list(
            kill_sweep.differences(expected, {k: r | {"seconds": "9"} for k, r in expected.items()})
        )
        == []
    )
    found = list(
        kill_sweep.differences(
            expected, {"1": ROW | {"val/accuracy": "61.00000000000001"}, "3": ROW}
        )
    )
    assert sorted(found) == [
        "kd-a (1): val/accuracy 61.0 became 61.00000000000001",
        "kd-a (3): only in the killed study",
        "kd-b (2): only in the reference study",
    ]


def test_a_run_that_is_repeated_is_seen(tmp_path):
    (tmp_path / "sweep.yaml").write_text("study: x\nout: elsewhere  # here\nseeds: [1]\n")
    killed = kill_sweep.Killed(tmp_path / "sweep.yaml", tmp_path / "k", ())
    assert killed.file.read_text() == f'study: x\nout: "{tmp_path}/k/study"  # here\nseeds: [1]\n'
    with pytest.raises(ConfigError, match="is not empty"):
        kill_sweep.copy_for(tmp_path / "sweep.yaml", tmp_path / "k")
    for name in ("one", "two"):
        for path in (f"runs/{name}/summary.json", f"logs/{name}.0.log"):
            file = tmp_path / "k/study" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}")
    (tmp_path / "k/study/runs/open").mkdir()
    before, killed.sessions = killed.marks(), 2
    killed.log(1).write_text("12:00:00 cpu 0: one started, log out/logs/one.0.log\n")
    killed.log(2).write_text("12:00:00 cpu 0: open started, log out/logs/open.0.log\n")
    assert before.keys() == {"one", "two"}
    assert list(kill_sweep.repeated(killed, [before])) == []
    killed.log(2).write_text("12:00:00 gpu 0,1: one started, log out/logs/one.0.log\n")
    (tmp_path / "k/study/logs/two.0.log").write_text("longer")
    assert list(kill_sweep.repeated(killed, [before])) == [
        "one: had ended before kill 1, session 2 began it",
        "two: had ended before kill 1, and was written again",
    ]


@pytest.mark.slow
def test_a_sweep_of_pretended_runs_survives(tmp_path, monkeypatch):
    # Both below `killed/study`: what a pretended run scores depends on the paths in its flags.
    text = FILE.replace("out: out", "out: killed/study").replace("[1, 2, 3]", "[1, 2]")
    for folder in (tmp_path, tmp_path / "whole"):
        make(folder, text)
    assert run_here(tmp_path / "whole")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PRETEND_SECONDS", "0.3")
    words = ["--sweep=sweep.yaml", "--reference=whole/killed/study", "--out=killed", "--slots=2"]
    code = kill_sweep.main([*words, "--kills=2", "--delay=0.5", "--json=found.json"])
    found = json.loads(Path("found.json").read_text())
    assert (found["problems"], code) == ([], 0)
    assert (found["runs"], found["runs_ended"], found["scores_compared"]) == (19, 19, 38)
    calls = [json.loads(line)[:2] for line in Path("calls").read_text().splitlines()]
    ends = Counter(name for kind, name in calls if kind == "end")
    assert (len(ends), set(ends.values())) == (19, {1})
    begun = sum(kind == "begin" for kind, _ in calls)
    assert begun <= found["runs_started"] <= begun + 2 * 2  # killed before they could note it
    assert 19 <= begun <= 19 + 2 * 2
