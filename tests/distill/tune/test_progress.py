"""What a running program's files say, while they grow; and what a view makes of it."""

import io
import json
import logging
from types import SimpleNamespace

import pytest

from distill.tune import view
from distill.tune.devices import Group
from distill.tune.graph import Graph
from distill.tune.progress import Progress, is_resumable, result_of


@pytest.fixture
def progress(tmp_path) -> Progress:
    (tmp_path / "log").write_text(
        "x\n12:00:00 iteration 20/450 | loss 0.5 | lr 1e-3 | 10.0 ms/step | left 0:00:43\n"
    )
    return Progress(tmp_path, tmp_path / "log", None)


def write(folder, *rows: dict, end: str = "\n") -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("\n".join(json.dumps(row) for row in rows) + end)


def test_lines_are_read_once_and_only_when_they_are_complete(progress, tmp_path):
    progress.read()
    assert (progress.step, progress.loss, progress.curve) == (0, None, [])
    write(tmp_path, {"iteration": 10, "Train/train_loss": 0.7})
    write(tmp_path, {"iteration": 20, "Train/valid_accuracy": 61.0}, end="")
    progress.read()
    assert (progress.step, progress.loss, progress.curve) == (10, 0.7, [])
    assert (progress.total, progress.left) == (450, "0:00:43")
    write(tmp_path, end="\n")
    write(tmp_path, {"iteration": 30, "Train/valid_accuracy": None, "Train/train_loss": None})
    progress.read()
    progress.read()
    assert (progress.step, progress.curve) == (30, [61.0])


def test_a_run_that_begins_anew_is_read_anew(progress, tmp_path):
    write(tmp_path, *({"iteration": i, "Train/valid_accuracy": float(i)} for i in (1, 2)))
    progress.read()
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 1, "Train/valid_accuracy": 9.0}\n')
    progress.read()
    assert progress.curve == [9.0]


def test_results_and_checkpoints_of_a_folder(tmp_path):
    assert result_of(tmp_path / "none") is None
    (tmp_path / "summary.json").write_text("{")
    assert result_of(tmp_path) is None
    (tmp_path / "summary.json").write_text('{"val": {}}')
    assert result_of(tmp_path) == {"val": {}}
    assert not is_resumable(tmp_path, {})
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("10")
    assert is_resumable(tmp_path, {})
    assert not is_resumable(tmp_path, {"--no-save-optim": None})


@pytest.fixture
def running(progress, tmp_path) -> SimpleNamespace:
    write(tmp_path, {"iteration": 20, "Train/train_loss": 0.5, "Train/valid_accuracy": 61.25})
    progress.read()
    node = SimpleNamespace(task="a", method=None, stage="teacher", seed=3)
    return SimpleNamespace(node=node, progress=progress, group=Group("gpu 0,1", ("0", "1")))


STATES = {"x": "done", "y": "running", "z": "failed"}
GRAPH = Graph(nodes=dict.fromkeys(STATES))


def test_a_row_has_all_columns(running):
    expected = ["a", "(shared)", "teacher", "3", "20/450", "0.5000", "61.25", "0:00:43", "gpu 0,1"]
    assert view.cells(running) == expected
    assert len(expected) == len(view.COLUMNS)
    assert view.counts(GRAPH, STATES) == "1 of 3 runs done, 1 running, 1 failed"


def test_lines_are_told_when_something_changes(caplog, running):
    caplog.set_level(logging.INFO)
    lines = view.Lines()
    for _ in range(3):
        lines.show(GRAPH, STATES, [running])
    lines.show(GRAPH, STATES | {"y": "done"}, [])
    lines.note("hello")
    assert caplog.messages == [
        "1 of 3 runs done, 1 running, 1 failed",
        "2 of 3 runs done, 1 failed",
        "hello",
    ]


def test_a_terminal_shows_a_table(monkeypatch, running):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", screen := Terminal())
    table = view.make_view()
    table.show(GRAPH, STATES, [running])
    table.note("plain-a-one-s1 [started]")
    table.close()
    shown = screen.getvalue()
    assert all(
        text in shown for text in ("1 of 3 runs done", "20/450", "61.25", "gpu 0,1", "time left")
    )
    assert "plain-a-one-s1 [started]" in shown
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert isinstance(view.make_view(), view.Lines)
