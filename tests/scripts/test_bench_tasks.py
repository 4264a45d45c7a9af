"""Which folders are tasks, what a run gets; and all tasks for 100 steps, alone and distilled.

GLM_TEST_TASKS names a folder or archive of tasks that takes the place of the examples made here.
"""

import json
import math
import os
from pathlib import Path

import pytest

from config import ConfigError
from distill import pretrain
from scripts.bench_tasks import RUNS, cut, find_folders, main, table
from tests.e2e import world as w
from tests.e2e.examples import write_task
from tests.house import ROOT

ARCHIVE = ["RTE", "BoolQ", "CB", "COPA", "WSC", "MultiRC", "ReCoRD", "WiC"]
SCORES = {
    "cb": {"accuracy", "f1-macro"},
    "multirc": {"f1a", "em", "acc"},
    "record": {"em", "f1"},
    "xsum": {"rouge-1", "rouge-2", "rouge-l", "bleu"},
    "customization": {"rouge-1", "rouge-2", "rouge-l", "bleu"},
}


def write_pairs(folder: Path, number: int = 6) -> None:
    """A summary is the first two words."""
    folder.mkdir(parents=True)
    rows = [[w.WORDS[(7 * i + k) % len(w.WORDS)] for k in range(6)] for i in range(number)]
    for split in ("train", "val", "test"):
        for ending, length in (("source", 6), ("target", 2)):
            text = "".join(" ".join(row[:length]) + "\n" for row in rows)
            (folder / f"{split}.{ending}").write_text(text)


def write_tasks(data: Path) -> None:
    """The folders that the development archive has, of a few lines each."""
    for name in ARCHIVE:
        write_task(data, name.lower()).rename(data / f"{name}.tmp").rename(data / name)
    (data / "SST-2").mkdir()
    for file in (ROOT / "data" / "demo" / "SST-2").glob("*.jsonl"):
        lines = file.read_text().splitlines(keepends=True)
        (data / "SST-2" / file.name).write_text("".join(lines[:8]))
    (data / "WSC273").mkdir()
    line = {"text": "Ann saw Eve as she left.", "pronoun": "she", "candidate": "Ann", "label": True}
    (data / "WSC273" / "test.jsonl").write_text(json.dumps(line) + "\n")
    for name in ("WebNLG", "XSum"):
        write_pairs(data / name)


def test_folders_are_found_by_their_names(tmp_path):
    write_tasks(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "train.jsonl").write_text("")
    found = find_folders(tmp_path)
    tasks = {x.path.name: x.task for x in found}
    named = {name: name.lower() for name in (*ARCHIVE, "SST-2", "XSum")}
    assert tasks == named | {"WebNLG": "customization", "WSC273": "wsc"}
    assert [x.path.name for x in found if not x.trains] == [found[-1].path.name] == ["WSC273"]
    assert {x.path.name for x in found if x.writes} == {"WebNLG", "XSum"}
    with pytest.raises(ConfigError, match="no folder in it is called like a task"):
        find_folders(tmp_path / "notes")


def test_what_is_evaluated_is_cut_and_what_trains_is_not(tmp_path):
    write_pairs(tmp_path / "data" / "XSum")
    place = cut(tmp_path / "data", tmp_path / "cut", 2) / "XSum"
    lines = {p.name: len(p.read_text().splitlines()) for p in place.iterdir()}
    expected = {"train": 6, "val": 2, "test": 2}
    assert lines == {f"{k}.{e}": n for k, n in expected.items() for e in ("source", "target")}


def test_a_table_tells_what_failed():
    row = {"folder": "RTE", "task": "rte"}
    rows = [row | {"run": "teacher", "test": {"accuracy": 50.04}}, row | {"run": "student"}]
    rows.append(row | {"run": "distilled", "exit_status": 2})
    assert table(rows).splitlines()[-1] == "| RTE | rte | accuracy | 50.0 | - | exit status 2 |"


def test_mistakes_end_with_exit_code_2(tmp_path, capsys):
    models = ["--teacher=a", "--student=b", f"--save={tmp_path / 'runs'}"]
    (tmp_path / "torn.tar").write_text("no archive")
    for data, message in (("none", "no such folder or archive"), ("torn.tar", "error: ")):
        assert main([f"--data={tmp_path / data}", *models]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.e2e
def test_all_tasks_run_alone_and_distilled(tmp_path, monkeypatch, capsys):
    for name in w.LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    world, given = w.make_world(tmp_path / "world"), os.environ.get("GLM_TEST_TASKS")
    data = Path(given) if given else tmp_path / "data"
    if not given:
        write_tasks(data)
    for name, layers in (("base", 2), ("small", 1)):
        flags = [*w.pretraining(world, layers), "--train-iters=1", f"--experiment-name={name}"]
        pretrain.main(flags)
    words = [f"--data={data}", f"--save={tmp_path / 'runs'}", "--seq-length=48", "--most=20"]
    words += [f"--{k}={world / 'runs' / v}" for k, v in (("teacher", "base"), ("student", "small"))]
    # The vocabulary has few words: verbalizers are spelled.
    more = ["--batch-size=2", "--lr=0.002", "--log-interval=1", "--skip-bad-lines", "--multi-token"]
    assert main([*words, "--steps=100", "--", *more]) == 0
    rows = json.loads((tmp_path / "runs" / "tasks.json").read_text())["runs"]
    assert {(x["folder"], x["run"]) for x in rows} >= {
        (name, run) for name in (*ARCHIVE, "SST-2", "WebNLG", "XSum") for run in RUNS
    }
    for row in rows:
        check_row(row, tmp_path / "runs" / f"{row['folder']}-{row['run']}", learns=not given)
    assert "exit status" not in capsys.readouterr().out


def check_row(row: dict, folder: Path, learns: bool) -> None:
    """All steps, all scores in percent, a loss that falls on lines seen again and again."""
    assert set(row["test"]) == SCORES.get(row["task"], {"accuracy"})
    assert all(0 <= x <= 100 for x in row["test"].values())
    trained = row["folder"] != "WSC273"
    assert row["iterations"] == 100 * trained
    if not trained:
        assert not (folder / "metrics.jsonl").exists()
        return
    logged = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    lines = [line for line in logged if "Train/train_loss" in line]
    losses = [line["Train/train_loss"] for line in lines]
    assert len(losses) == row["iterations"]
    assert all(map(math.isfinite, losses))
    if learns:
        assert sum(losses[-10:]) < sum(losses[:10]), row
    if row["run"] == "distilled":
        assert any("soft" in key for key in lines[0])
