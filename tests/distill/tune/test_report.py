"""The report of a pretended sweep, its numbers computed again from the files of the runs."""

import csv
import json
import re
import shutil
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

import pytest

from config import ConfigError
from distill.tune.report_run import read_options, report
from tests.distill.tune.sweeps import FILE, make, run_here

GRID = ("flags: {warmup: 0.2}", "flags: {warmup: {values: [0.1, 0.2, 0.3, 0.4]}}")


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    make(folder, FILE, GRID, ("start: one}\n  kd", "start: one, flags: {epochs: 3}}\n  kd"))
    assert run_here(folder)
    report([f"--report={folder / 'out'}"])
    return folder / "out"


def tables(text: str) -> dict[str, list[list[str]]]:
    """Title -> rows of the first table below it."""
    found = {}
    for part in text.split("\n## ")[1:]:
        lines = [line for line in part.splitlines() if line.startswith("|")]
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
        found[part.splitlines()[0]] = rows[:1] + rows[2:]
    return found


def summaries(study: Path) -> dict[tuple, dict]:
    """(method, task, seed, settings) of the last stages -> what the run told at its end."""
    with (study / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["stage"] == "two"]
    return {
        (row["method"], row["task"], row["seed"], row["settings"]): json.loads(
            (study / "runs" / row["folder"] / "summary.json").read_text()
        )
        for row in rows
    }


def test_settings_are_chosen_on_validation_and_scores_are_of_test(study):
    grouped = defaultdict(list)
    for (method, task, _, settings), told in summaries(study).items():
        grouped[method, task, settings].append(told)
    expected = {}
    for method, task in {key[:2] for key in grouped}:
        choices = [runs for key, runs in grouped.items() if key[:2] == (method, task)]
        assert len(choices) == (4 if method == "kd" else 1)
        best = max(choices, key=lambda runs: mean(r["val"]["accuracy"] for r in runs))
        tests = [r["test"]["accuracy"] for r in best]
        expected[method, task] = f"{mean(tests):.1f} +- {stdev(tests):.1f}"
    head, *rows = tables((study / "report/report.md").read_text())["Scores"]
    assert head == ["method", "a (accuracy)", "b (accuracy)", "mean"]
    actual = {(row[0], task): row[i] for row in rows for i, task in ((1, "a"), (2, "b"))}
    assert actual == expected


def test_ranks_and_differences_follow_from_the_scores(study):
    found = tables((study / "report/report.md").read_text())
    scores = {row[0]: [float(cell.split()[0]) for cell in row[1:3]] for row in found["Scores"][1:]}
    for place in (0, 1):
        first = max(scores, key=lambda method: scores[method][place])
        ranks = {row[0]: row[1 + place] for row in found["Ranks"][1:]}
        assert ranks[first] == "1"
    told = summaries(study)
    for name, points, seeds, interval, p, holm, drawn in found["Against plain"][1:]:
        method, task = name.split(", ")
        expected = scores[method]["ab".index(task)] - scores["plain"]["ab".index(task)]
        assert float(points) == pytest.approx(expected, abs=0.11)
        each = [float(text) for text in seeds.split(", ")]
        assert mean(each) == pytest.approx(float(points), abs=0.11)
        settings = {key[3] for key in told if key[:2] == (method, task)}
        pairs = [
            [
                told[method, task, s, own]["test"]["accuracy"]
                - told["plain", task, s, "{}"]["test"]["accuracy"]
                for s in "123"
            ]
            for own in settings
        ]
        assert min(max(abs(a - b) for a, b in zip(each, x, strict=True)) for x in pairs) < 0.051
        low, high = map(float, interval.split(" .. "))
        assert low <= float(points) <= high
        assert (low > 0 or high < 0) == (float(p) < 0.05)
        assert float(holm) >= float(p)
        assert drawn == "50 samples, 3 seeds"


def test_models_that_methods_share_are_scored_too(study):
    for task in "ab":
        (folder,) = (study / "runs").glob(f"{task}-teacher-s1-*")
        expected = json.loads((folder / "summary.json").read_text())["test"]["accuracy"]
        text = (study / "report/report.md").read_text()
        assert f"| {task}-teacher-s1 | {expected:.1f} accuracy |" in text


def test_the_page_needs_no_other_file_and_the_plots_are_there(study):
    page = (study / "report/report.html").read_text()
    images = re.findall(r'src="([^"]{22})', page)
    assert set(images) == {"data:image/png;base64,"}
    names = {path.name for path in (study / "report").glob("*.png")}
    expected = {"scores.png", "curves-a.png", "curves-b.png", "size.png", "speed.png", "memory.png"}
    assert names == expected | {"time.png", "importance.png"}
    assert len(images) == len(names)
    assert "http" not in page
    linked = re.findall(r"!\[.*?\]\((.*?)\)", (study / "report/report.md").read_text())
    assert set(linked) == names


def test_the_table_of_runs_has_one_line_a_run(study):
    with (study / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1 + 2 + 2 * 3 * (2 + 1 + 4)
    assert {row["state"] for row in rows} == {"done"}
    teacher = next(row for row in rows if row["name"] == "a-teacher-s1")
    assert (teacher["method"], teacher["settings"]) == ("", "")
    assert json.loads(rows[-1]["settings"]) == {"two.warmup": "0.4"}
    assert all(len(row["code"]) == 16 for row in rows)


def test_a_study_that_was_moved_is_reported_as_before(study, tmp_path):
    shutil.copytree(study, tmp_path / "moved")
    report([f"--report={tmp_path / 'moved'}", f"--out={tmp_path / 'new'}"])
    old, new = (tables((f / "report.md").read_text()) for f in (study / "report", tmp_path / "new"))
    assert new["Scores"] == old["Scores"]


def test_what_is_missing_is_told(study, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(study, copy)
    text = (copy / "sweep.yaml").read_text()
    (copy / "sweep.yaml").write_text(text.replace("seeds: [1, 2, 3]", "seeds: [1, 2, 3, 4]"))
    with pytest.raises(ConfigError, match="no results yet: plain-a-one-s4: waiting"):
        report([f"--report={copy}"])
    (copy / "study.db").unlink()
    with pytest.raises(ConfigError, match="no study.db"):
        report([f"--report={copy}"])
    with pytest.raises(ConfigError, match="no such study"):
        report([f"--report={tmp_path}/none"])
    with pytest.raises(ConfigError, match="--wrong"):
        read_options(["--report=x", "--wrong"])
