"""Starting a sweep: every problem at once with its line; other code; SLURM's command lines."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from config import ConfigError
from distill.tune import slurm, sweep
from distill.tune.sweep_check import check_sweep
from distill.tune.sweep_file import read_sweep
from tests.distill.tune.sweeps import FILE, make
from tests.house import ROOT


@pytest.fixture
def here(tmp_path, monkeypatch):
    make(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


def problems(*words: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        sweep.run_sweep(["--sweep=sweep.yaml", *words])
    return list(caught.value.problems)


def test_everything_wrong_is_told_at_once_and_nothing_starts(here):
    make(
        here,
        FILE,
        ("a: {task: COPA, data-dir: data}", "a: {task: Nope, data-dir: nowhere}"),
        ("teacher: {start: pretrained", "teacher: {start: lost"),
        ("student_model: kd,", "student_model: kdd, distil_ft_soft: true,"),
        ("flags: {warmup: 0.2}", "flags: {warmup: {values: [0.1, 2]}}"),
        ("train-iters: 1}", "train-iters: many}"),
    )
    found = problems("--gpus=0")
    assert found[0] == "--gpus=0: there is no GPU 0; there are none"
    told = [(line.split(":")[1], line.split(": ")[1].split("=")[0]) for line in found[1:]]
    assert told == [
        ("15", "lost"),
        ("12", "--train-iters"),
        ("8", "--task"),
        ("8", "--data-dir"),
        ("23", "--distil_ft_soft"),
        ("23", "--student_model"),
        ("24", "--warmup"),
    ]
    assert not (here / "out").exists()


def test_mistakes_of_form_and_of_flags_are_told_together(here):
    make(here, FILE, ("baseline: plain", "baselin: plain"), ("metric: accuracy", "metric: f1"),
         ("flags: {warmup: 0.2}", "flags: {warmup: much}"))  # fmt: skip
    assert problems("--storage=postgres//x") == [
        "sweep.yaml:5: baselin: is no part of a sweep; did you mean baseline?",
        "sweep.yaml:6: metric: f1: task a has accuracy",
        "sweep.yaml:6: metric: f1: task b has accuracy",
        "sweep.yaml:24: --warmup=much: must be a number",
        "--storage=postgres//x: cannot be opened: Could not parse SQLAlchemy URL from given URL "
        "string",
    ]


def test_what_runs_is_known_to_runs_that_start_from_it(here):
    # 3 layers fit the checkpoint's config.json only if the parse sees that of the run before.
    make(
        here, FILE, ("train-iters: 1}", "train-iters: 1, num-attention-heads: 4, hidden-size: 64}")
    )
    assert check_sweep(read_sweep(here / "sweep.yaml"), 1) == []
    make(here, FILE, ("train-iters: 1}", "train-iters: 1, num-attention-heads: 4, hidden-size: 64}"),
         ("flags: {warmup: 0.2}", "flags: {num-attention-heads: 8}"))  # fmt: skip
    found = check_sweep(read_sweep(here / "sweep.yaml"), 1)
    assert {line.split(": ")[1] for line in found} == {"--num-attention-heads=8"}
    assert all("the checkpoint out/runs/" in line and "has 4" in line for line in found)


def test_a_study_of_other_code_or_processes_is_refused(here, monkeypatch):
    spec = read_sweep(here / "sweep.yaml")
    store = sweep.open_store(spec, None)
    store.fact("code", "other")
    store.fact("processes", "4")
    found = problems()
    assert "was begun with other code (other" in found[0]
    assert "was begun with 4 processes a run, not 1" in found[1]
    assert len(problems("--any_code")) == 1


def test_the_commands_are_printed(here, capsys):
    sweep.run_sweep(["--sweep=sweep.yaml", "--test"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 2 + 2 * 2 * 3 * 2
    assert lines[0].startswith("python distill/pretrain.py --save=out/runs")
    assert not (here / "out").exists()


def test_wrong_flags_are_told():
    with pytest.raises(ConfigError) as caught:
        sweep.read_options(["--sweep=x", "--slots=0", "--no-such"])
    assert len(caught.value.problems) == 2


def test_the_example_is_a_sweep(monkeypatch):
    monkeypatch.chdir(ROOT)
    spec = read_sweep(ROOT / "config/sweeps/example.yaml")
    assert (len(spec.methods), len(spec.tasks), len(spec.seeds)) == (5, 2, 3)
    assert {len(method.stages) for method in spec.methods.values()} == {2}
    missing = [line for line in check_sweep(spec, 1) if "no such checkpoint" not in line]
    assert [line for line in missing if "runs/quickstart" not in line] == []


def test_slurm_gets_a_worker_for_each_job(monkeypatch, tmp_path):
    made, failure = [], [None]

    class Executor:
        def __init__(self, folder, cluster):
            made.append((folder, cluster))

        def update_parameters(self, **options):
            if "wrong" in options:
                raise NameError("wrong is unknown")
            made.append(options)

        def submit(self, function):
            made.append(function)
            return SimpleNamespace(job_id="7", exception=lambda: failure[0])

    helpers = SimpleNamespace(CommandFunction=lambda words, cwd: (words, cwd))
    monkeypatch.setitem(
        sys.modules, "submitit", SimpleNamespace(AutoExecutor=Executor, helpers=helpers)
    )
    argv = ["--sweep=x", "--slurm", "jobs=2", "--slots=1"]
    slurm.submit("jobs=2,partition=gpu,gpus_per_node=1", argv, tmp_path / "s")
    words = [sys.executable, str(ROOT / "distill/auto_tune.py"), "--sweep=x", "--slots=1"]
    worker = (words, Path.cwd())
    assert made == [
        (tmp_path / "s" / "slurm", "slurm"),
        {"name": "sweep-s", "partition": "gpu", "gpus_per_node": 1},
        worker,
        worker,
    ]
    failure[0] = RuntimeError("out of time")
    with pytest.raises(SystemExit):
        slurm.submit("jobs=1", argv, tmp_path / "s")
    with pytest.raises(ConfigError, match="wrong is unknown"):
        slurm.submit("wrong=1", argv, tmp_path)
    for text in ("jobs", "jobs=0", "jobs=x", "=1"):
        with pytest.raises(ConfigError, match="--slurm="):
            slurm.parse(text)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match="pip install submitit"):
        slurm.submit("jobs=1", argv, tmp_path)


def test_the_program_ends_with_one_message_and_code_2(tmp_path):
    words = [sys.executable, str(ROOT / "distill/auto_tune.py"), f"--sweep={tmp_path}/none.yaml"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --sweep={tmp_path}/none.yaml: cannot be read")
