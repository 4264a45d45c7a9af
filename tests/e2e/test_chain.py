"""The chain with real programs: TAKD stopped by a signal, DGKD by a stage that fails; both go on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from distill import finetune as program
from scripts import chain
from tests.e2e import world as w

pytestmark = pytest.mark.e2e

SIZES = ["3x16x2", "2x16x2", "1x16x2"]
NAMES = ["1-2x16", "2-1x16"]
KD = ["--student_model=kd", "--distill_ft_soft", "--distill_temperature=10"]
DGKD = [*KD, "--distill_hard_rate=0.5", "--avgmt_sum_loss", "--avgmt_teacher_survival_p=0.9"]
PATIENCE = 120  # seconds


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The small world with a fine-tuned teacher of three layers, and a model of one layer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in w.LAUNCHER_VARIABLES:
            patch.delenv(name, raising=False)
        folder = w.make_world(tmp_path_factory.mktemp("world"))
        for name, layers in (("teacher", 3), ("small", 1)):
            program.main([*w.finetuning(folder, layers), f"--experiment-name={name}"])
        yield folder


def words(world, name, *options, flags):
    """The chain's command line, after the script."""
    own = ("--num-layers", "--hidden-size", "--num-attention-heads", "--save")
    common = [f for f in w.finetuning(world) if f.partition("=")[0] not in own]
    options = ["--models", *SIZES, f"--teacher={world}/runs/teacher", *options]
    return [*options, f"--save={world}/{name}", "--", *common, *flags]


def start(arguments):
    """The chain as a process of its own."""
    inherited = {k: v for k, v in os.environ.items() if k not in w.LAUNCHER_VARIABLES}
    return subprocess.Popen(
        [sys.executable, "-m", "scripts.chain", *arguments], cwd=w.ROOT,
        env=inherited | w.ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def summaries(folder):
    """Stage -> when it ended, of those that have."""
    found = {name: folder / name / "summary.json" for name in NAMES}
    return {name: file.stat().st_mtime_ns for name, file in found.items() if file.is_file()}


def steps(folder, name):
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_takd_is_stopped_and_goes_on(world):
    arguments = words(world, "takd", "--truncate", flags=KD)
    folder, first = world / "takd", NAMES[0]
    process = start(arguments)
    begin = time.monotonic()
    while first not in summaries(folder):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() - begin < PATIENCE
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 128 + signal.SIGTERM
    ended = summaries(folder)
    assert list(ended) == [first], "the second stage was to be stopped"

    process = start(arguments)
    told, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, told
    assert f"[1/2] {first}: done before" in told
    again = summaries(folder)
    assert (list(again), again[first]) == (NAMES, ended[first])
    assert steps(folder, NAMES[1])
    log = (folder / "logs" / f"{NAMES[1]}.log").read_text()
    assert log.startswith("python distill/finetune.py --save=")
    assert "done: 10 iterations" in log


def test_a_chain_that_is_done_starts_nothing(world, capsys, monkeypatch):
    arguments = words(world, "takd", "--truncate", flags=KD)
    assert list(summaries(world / "takd")) == NAMES, "by the test before"
    monkeypatch.setattr(chain, "start", None)
    assert chain.main(arguments) == 0
    assert capsys.readouterr().out.count("done before") == 2


def test_dgkd_stops_where_a_stage_fails_and_goes_on(world, capsys):
    missing = world / "prepared"
    arguments = words(world, "dgkd", "--dense", "--start", "-", str(missing), flags=DGKD)
    folder = world / "dgkd"
    assert chain.main(arguments) == 1
    told = capsys.readouterr()
    assert f"{NAMES[1]}: exit status" in told.err
    assert str(missing) in told.err, "the end of the log"
    ended = summaries(folder)
    assert list(ended) == NAMES[:1]

    shutil.copytree(world / "runs" / "small", missing)
    assert chain.main(arguments) == 0
    assert f"{NAMES[0]}: done before" in capsys.readouterr().out
    again = summaries(folder)
    assert (list(again), again[NAMES[0]]) == (NAMES, ended[NAMES[0]])
    told = json.loads((folder / NAMES[1] / "summary.json").read_text())["command"]
    assert f"--mt_load_pretrained={world}/runs/teacher:{folder}/{NAMES[0]}" in told
    names = {name for row in steps(folder, NAMES[1]) for name in row}
    assert {"teacher_loss/teacher_0_t0", "teacher_loss/teacher_1_t1"} <= names
    assert "multi_teacher_model/hard_loss" in names
