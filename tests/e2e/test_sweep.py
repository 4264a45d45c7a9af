"""A sweep of real models, small ones: killed with all its processes and continued."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill.tune.report_run import report
from tests.e2e.world import ENVIRONMENT, ROOT, make_world

pytestmark = pytest.mark.slow

FILE = """
study: tiny
out: out
seeds: [1]
baseline: plain
flags: {tokenizer-path: vocab.txt, seq-length: 48, batch-size: 4, lr: 1e-3, no-save-optim: true}
programs:
  pretrain: {train-data: corpus.txt, bert-prob: 1, train-iters: 2, num-layers: 2, hidden-size: 16,
    num-attention-heads: 2, max-position-embeddings: 64, num-workers: 0, cache-dir: cache}
  finetune: {cloze-eval: true, epochs: 1}
tasks:
  copa: {task: COPA, data-dir: COPA}
models:
  pretrained: {program: pretrain}
  teacher: {start: pretrained, flags: {epochs: 2}}
methods:
  plain:
    stages: [{name: only, start: pretrained}]
  kd:
    stages:
      - {name: only, start: pretrained, teacher: teacher, flags: {student_model: kd, distill_ft_soft: true}}
"""


def start(folder: Path) -> subprocess.Popen:
    words = [sys.executable, str(ROOT / "distill/auto_tune.py"), "--sweep=sweep.yaml", "--slots=2"]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            words,
            cwd=folder,
            env=os.environ | ENVIRONMENT,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def table(folder: Path) -> list[tuple[str, ...]]:
    names = ("name", "state", "val/accuracy", "test/accuracy", "iterations", "parameters", "key")
    with (folder / "out/results.csv").open() as file:
        return [tuple(row[name] for name in names) for row in csv.DictReader(file)]


def ended(folder: Path) -> dict[Path, int]:
    """What has ended, and when."""
    return {file: file.stat().st_mtime_ns for file in (folder / "out/runs").glob("*/summary.json")}


def test_a_sweep_killed_and_continued_has_the_table_of_one_that_was_not(tmp_path):
    make_world(tmp_path / "a")
    (tmp_path / "a" / "sweep.yaml").write_text(FILE)
    (tmp_path / "a" / "distill").symlink_to(ROOT / "distill")
    shutil.copytree(tmp_path / "a", tmp_path / "b", symlinks=True)
    whole = start(tmp_path / "a")
    assert whole.wait(300) == 0, (tmp_path / "a" / "log").read_text()
    killed = start(tmp_path / "b")
    begin = time.monotonic()
    while not ended(tmp_path / "b"):
        assert killed.poll() is None, (tmp_path / "b" / "log").read_text()
        assert time.monotonic() - begin < 200
        time.sleep(0.1)
    time.sleep(1.0)  # into what comes next
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    before = ended(tmp_path / "b")
    assert len(before) < 4
    assert start(tmp_path / "b").wait(300) == 0, (tmp_path / "b" / "log").read_text()
    assert table(tmp_path / "b") == table(tmp_path / "a")
    after = ended(tmp_path / "b")
    assert len(after) == 4
    assert {file: after[file] for file in before} == before
    report([f"--report={tmp_path / 'b' / 'out'}"])
    text = (tmp_path / "b/out/report/report.md").read_text()
    assert re.search(
        r"\| kd, copa \|.*\| 6 samples, 1 seed \|", text
    )  # predictions explain the scores
