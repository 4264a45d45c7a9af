"""A sweep of programs that only pretend: the worker's part is real, no model is trained."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from distill.tune.devices import Group
from distill.tune.sweep import read_options, work
from distill.tune.sweep_file import SweepSpec, read_sweep
from tests.house import ROOT

#: In place of distill/finetune.py and pretrain.py: notes that it ran, writes what they write.
PROGRAM = """
import hashlib, json, os, sys, time
flags = dict(word[2:].partition("=")[::2] for word in sys.argv[1:])
folder = os.path.join(flags["save"], flags["experiment-name"])
def note(what):
    with open("calls", "a") as file:
        file.write(json.dumps([what, flags["experiment-name"], sorted(flags)]) + "\\n")
note("begin")
for name in ("load-pretrained", "teacher_load_pretrained"):
    if name in flags and not os.path.exists(os.path.join(flags[name], "summary.json")):
        sys.exit(f"{name}: {flags[name]} is not there")
os.makedirs(folder, exist_ok=True)
own = {k: v for k, v in flags.items() if k not in ("save", "overwrite", "load")}
seed = int(hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:8], 16)
curve = [40.0 + (seed >> i) % 100 / 10 + i for i in range(3)]
if "lr" in flags:
    curve = [50 + float(flags["lr"]) * 1000 - 1 + i / 10 for i in range(3)]
open(os.path.join(folder, "metrics.jsonl"), "w").close()
seconds = float(os.environ.get("PRETEND_SECONDS", 0.03))
if flags.get("lr") == os.environ.get("PRETEND_SLOW", "none"):
    seconds = 3.0
for step, value in enumerate(curve, 1):
    time.sleep(seconds / 3)
    with open(os.path.join(folder, "metrics.jsonl"), "a") as file:
        file.write(json.dumps({"iteration": step * 10, "Train/train_loss": 1 / step}) + "\\n")
        file.write(json.dumps({"iteration": step * 10, "Train/valid_accuracy": value}) + "\\n")
    print(f"12:00:00 iteration {step * 10}/30 | loss 0.5 | 1.0 ms/step | left 0:00:0{3 - step}")
if flags.get("log-interval") == "13":
    print("the reason")
    sys.exit(int(flags.get("save-interval", 3)))
rows = [{"epoch": i, "iteration": 10 * i, "metrics": {"accuracy": v}} for i, v in enumerate(curve, 1)]
with open(os.path.join(folder, "results.json"), "w") as file:
    json.dump({"metric": "accuracy", "history": rows}, file)
right = [{"id": i, "prediction": int((seed >> i % 20) % 3 > 0), "label": 1} for i in range(50)]
with open(os.path.join(folder, "predictions-test.jsonl"), "w") as file:
    file.writelines(json.dumps(row) + "\\n" for row in right)
test = 100.0 * sum(row["prediction"] for row in right) / len(right)
summary = {"metric": "accuracy", "val": {"accuracy": max(curve)}, "test": {"accuracy": test},
           "parameters": 1000 + seed % 7, "train_seconds": 1.5, "iterations": 30,
           "peak_memory_bytes": 5000000, "test_samples_per_second": 100.0}
with open(os.path.join(folder, "summary.json.tmp"), "w") as file:
    json.dump(summary, file)
os.replace(os.path.join(folder, "summary.json.tmp"), os.path.join(folder, "summary.json"))
note("end")
"""
FILE = """
    study: pretended
    out: out
    seeds: [1, 2, 3]
    baseline: plain
    metric: accuracy
    tasks:
      a: {task: COPA, data-dir: data}
      b: {task: RTE, data-dir: data}
    programs:
      finetune: {cloze-eval: true, epochs: 1}
      pretrain: {train-data: data, train-iters: 1}
    models:
      pretrained: {program: pretrain}
      teacher: {start: pretrained, flags: {epochs: 2}}
    methods:
      plain:
        stages:
          - {name: one, start: pretrained}
          - {name: two, start: one}
      kd:
        stages:
          - {name: one, start: pretrained, teacher: teacher, flags: {student_model: kd, distill_ft_soft: true}}
          - {name: two, start: one, flags: {warmup: 0.2}}
"""


def make(folder: Path, text: str = FILE, *changes: tuple[str, str]) -> Path:
    """A world with the programs and the sweep's file; returns the file."""
    (folder / "distill").mkdir(parents=True, exist_ok=True)
    (folder / "data").mkdir(exist_ok=True)
    for name in ("finetune", "pretrain"):
        (folder / "distill" / f"{name}.py").write_text(PROGRAM)
    text = textwrap.dedent(text)
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    (folder / "sweep.yaml").write_text(text)
    return folder / "sweep.yaml"


def sweep(folder: Path, *changes: tuple[str, str]) -> SweepSpec:
    """The file as it is read."""
    return read_sweep(make(folder, FILE, *changes))


def run_here(folder: Path, *more: str, slots: int = 2) -> bool:
    """The sweep in this process, its programs apart; whether nothing failed."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        options = read_options(["--sweep=sweep.yaml", *more])
        groups = [Group(f"cpu {number}") for number in range(slots)]
        return work(read_sweep(Path("sweep.yaml")), options, groups)
    finally:
        os.chdir(before)


def start(folder: Path, *more: str, seconds: float = 0.03) -> subprocess.Popen:
    """auto_tune on that file, in a process group of its own."""
    words = [sys.executable, str(ROOT / "distill/auto_tune.py"), "--sweep", "sweep.yaml", *more]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            words,
            cwd=folder,
            env=os.environ | {"PRETEND_SECONDS": str(seconds), "CUDA_VISIBLE_DEVICES": ""},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
