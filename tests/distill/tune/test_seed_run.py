"""What --test prints is what a run starts; failures are bounded; the tune file has the scores."""

import itertools
import json
import os
import shlex
import sys
from pathlib import Path

import pytest

from config import ConfigError
from distill import auto_tune
from distill.tune import seed_plan
from tests.distill.tune.seed import START
from tests.house import ROOT

#: A program in place of `deepspeed`: notes its argv, writes scores as the seed's programs do.
FAKE = """#!{python}
import json, os, sys
flags = dict(word.partition("=")[::2] for word in sys.argv[1:] if word.startswith("--"))
with open("{calls}", "a") as file:
    names = ("NCCL_DEBUG", "NCCL_IB_DISABLE", "NCCL_NET_GDR_LEVEL")
    file.write(json.dumps([[f"{{n}}={{os.environ[n]}}" for n in names], sys.argv[1:]]) + "\\n")
if flags["--task"] == "RTE":
    print("out of memory")
    sys.exit(3)
scores = {{"accuracy": {{"score_dict": {{"accuracy": 50.0 + len(flags)}}}}}}
args = {{"task": flags["--task"], "epochs": 1, "save": flags["--save"]}}
with open(flags["--custom_tmp_result"], "w") as file:
    json.dump({{"args": args, "max_score_dict": scores, "epoch": -1}}, file)
"""


@pytest.fixture
def calls(tmp_path, monkeypatch) -> Path:
    """A world in which `deepspeed` is ours; clock and ports begin anew with each command line."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "tmp").mkdir()
    fake = tmp_path / "bin" / "deepspeed"
    fake.write_text(FAKE.format(python=sys.executable, calls=tmp_path / "calls"))
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "config").symlink_to(ROOT / "config")
    monkeypatch.chdir(tmp_path)
    clock = seed_plan.Clock
    monkeypatch.setattr(seed_plan, "Clock", lambda: clock(lambda: START))
    of_jobs = seed_plan.jobs_of
    monkeypatch.setattr(
        seed_plan, "jobs_of", lambda g, c: of_jobs(g, c, itertools.count(20000).__next__)
    )
    return tmp_path / "calls"


def command_line(root: Path, tasks: str, *more: str) -> list[str]:
    return [
        *(f"--data_root={root}", f"--tasks={tasks}", "--gpus=0,1", "--student_model=kd"),
        *("--distill_ft_soft", "--task_t_load=base", "--again_1__lr=3e-5", "--model_path=m"),
        *("--ds_gradient_accumulation_steps=2", *more),
    ]


def run(words: list[str]) -> int:
    try:
        auto_tune.auto_tune(words)
    except SystemExit as leaving:
        return leaving.code
    return 0


def test_a_run_starts_what_test_prints_and_keeps_the_scores(calls, capsys, tmp_path):
    words = command_line(tmp_path, "copa,cb")
    run([*words, "--test"])
    printed = capsys.readouterr().out.splitlines()
    assert not calls.exists()
    assert not (tmp_path / "tmp_deepspeed_config").exists()
    assert run(words) == 0
    started = [json.loads(line) for line in calls.read_text().splitlines()]
    assert [
        f"{' '.join(env)} {shlex.join(['deepspeed', *argv])}" for env, argv in started
    ] == printed
    assert len(printed) == 4
    (patched,) = {Path(w.partition("=")[2]) for _, argv in started[:1] for w in argv
                  if w.startswith("--deepspeed_config=")}  # fmt: skip
    assert json.loads(patched.read_text())["gradient_accumulation_steps"] == 2
    (file,) = (tmp_path / "tmp").glob("tune_*.json")
    records = json.loads(file.read_text())
    assert [r["*cmd"] for r in records] == printed
    run([f"--show_tune={file}"])
    shown = capsys.readouterr().out
    assert [line.split()[:2] for line in shown.splitlines()[1:5]] == [
        ["COPA", "0"],
        ["COPA", "1"],
        ["CB", "0"],
        ["CB", "1"],
    ]


def test_a_failure_ends_its_task_only_after_so_many_retries(calls, tmp_path, caplog):
    assert run(command_line(tmp_path, "rte,copa", "--retries=2")) == 1
    tasks = [
        word for line in calls.read_text().splitlines() for word in json.loads(line)[1]
        if word.startswith("--task=")
    ]  # fmt: skip
    assert tasks == ["--task=RTE"] * 3 + ["--task=COPA"] * 2
    assert "exit status 3" in caplog.text
    assert "out of memory" in caplog.text


def test_what_a_program_would_refuse_is_told_before_any_starts(calls, tmp_path):
    words = command_line(
        tmp_path, "copa,cb", "--distill_temperature=0", "--again_1__no-such-flag=1"
    )
    with pytest.raises(ConfigError) as caught:
        auto_tune.auto_tune(words)
    assert {line.split(":")[0] for line in caught.value.problems} == {
        "--no-such-flag",
        "--distill_temperature=0.0",
    }
    assert not calls.exists()
