"""The quick start's plan and runner with commands of our own; its smoke run as a whole."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts.quickstart import Runner, StepError, step_keys, tail
from scripts.quickstart_plan import FULL, SMOKE, Plan, Step
from scripts.quickstart_report import majority, spread
from tests.house import ROOT


def note(out: Path, name: str, *needs: str, code: str = "") -> Step:
    """A step that appends its name to a file."""
    line = f"open({str(out / 'order')!r}, 'a').write({name + chr(10)!r}); {code}"
    return Step(name, name, ("-c", line), needs)


def run(out: Path, *steps: Step) -> list[str]:
    Runner(SimpleNamespace(out=out, steps=list(steps)), jobs=2).run()
    return (out / "order").read_text().split()


def test_steps_run_after_those_they_need_and_once(tmp_path):
    steps = [note(tmp_path, "a"), note(tmp_path, "b", "a"), note(tmp_path, "c", "b")]
    assert run(tmp_path, *steps) == ["a", "b", "c"]
    assert run(tmp_path, *steps) == ["a", "b", "c"]


def test_a_changed_command_runs_again_with_all_that_follows(tmp_path):
    a, b, c = note(tmp_path, "a"), note(tmp_path, "b", "a"), note(tmp_path, "c")
    run(tmp_path, a, c, b)
    changed = note(tmp_path, "a", code="pass")
    assert run(tmp_path, changed, b, c)[3:] == ["a", "b"]


def test_a_failure_names_the_log_and_leaves_no_mark(tmp_path):
    bad = note(tmp_path, "bad", code="import sys; print('the reason'); sys.exit(3)")
    with pytest.raises(StepError, match=r"(?s)exit status 3.*bad\.log.*the reason"):
        run(tmp_path, bad, note(tmp_path, "after", "bad"))
    assert not (tmp_path / "done" / "bad.json").exists()
    assert (tmp_path / "order").read_text().split() == ["bad"]


def test_a_key_depends_on_everything_before():
    steps = [Step("a", "", ("x",)), Step("b", "", ("y",), ("a",)), Step("c", "", ("y",))]
    first = step_keys(steps)
    second = step_keys([Step("a", "", ("z",)), *steps[1:]])
    assert [first[n] == second[n] for n in "abc"] == [False, False, True]


@pytest.mark.parametrize("sizes", [FULL, SMOKE])
def test_the_plan_is_complete(sizes):
    plan = Plan(sizes, Path("out"))
    names = [step.name for step in plan.steps]
    assert len(set(names)) == len(names)
    for step in plan.steps:
        assert set(step.needs) <= set(names[: names.index(step.name)]), (
            "a step before what it needs"
        )
        reads = [word for word in step.command if "load_pretrained=" in word.replace("-", "_")]
        for word in reads:
            assert Path(word.split("=")[1]).name in step.needs or step.name.startswith("glmd-2")
    assert [len(row.runs) for row in plan.rows[1:]] == [len(sizes.seeds)] * 4


def test_student_and_teacher_differ_in_depth_only_and_students_train_equally_long():
    plan = Plan(FULL, Path("out"))
    commands = {step.name: set(step.command) for step in plan.steps}
    alone, taught = commands["plain"], commands["distilled"]
    assert {w.split("=")[0] for w in alone ^ taught} == {
        "--experiment-name", "--student_model", "--distill_temperature", "--logitsdistil_mask_pad",
        "--teacher_load_pretrained",
    }  # fmt: skip
    assert {w.split("=")[0] for w in commands["teacher"] ^ alone} == {
        "--experiment-name", "--num-layers", "--train-iters", "--eval-interval", "--save-interval",
    }  # fmt: skip
    assert FULL.student_layers * 2 == FULL.teacher_layers


def test_nothing_of_validation_or_test_is_trained_on():
    for step in Plan(FULL, Path("out")).steps:
        assert not any(
            name in word for word in step.command for name in ("val.jsonl", "test.jsonl")
        )


def test_small_helpers(tmp_path):
    log = tmp_path / "log"
    log.write_text("one\n10%\r50%\rdone\n")
    assert tail(log) == "one\ndone"
    assert (spread([1.0, 2.0, 3.0]), spread([7.0])) == ("2.0 +- 1.0", "7.0")
    rows = [json.loads(r) for r in (ROOT / "data/demo/SST-2/test.jsonl").read_text().splitlines()]
    expected = 100 * sum(row["label"] == 0 for row in rows) / len(rows)  # 0 is commoner in training
    assert majority("test") == expected


@pytest.mark.slow
@pytest.mark.e2e
def test_the_smoke_run_reports_every_model(tmp_path):
    command = [sys.executable, "-m", "scripts.quickstart", "--smoke", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert [len(model["test"]) for model in report["models"]] == [1] * 5
    teacher, *students = report["models"]
    assert all(student["parameters"] < teacher["parameters"] for student in students)
    assert all(model["bytes_on_disk"] > 4 * model["parameters"] for model in report["models"])
    assert all("distill/finetune.py" in model["commands"][-1] for model in report["models"])
    assert (tmp_path / "report.png").stat().st_size > 10_000
    text = (tmp_path / "report.md").read_text()
    assert all(model["model"] in text for model in report["models"])
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert again.stdout.count("done before") == len(report["seconds_of_steps"])
