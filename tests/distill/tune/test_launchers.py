"""GPU groups: what each run sees and how it is started, with programs in place of the launchers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill.tune.devices import groups_of
from distill.tune.sweep import read_options, work
from distill.tune.sweep_file import read_sweep
from tests.distill.tune.sweeps import FILE, make

#: Stands for python and for deepspeed: notes what it was told, then runs the program once.
FAKE = """#!{python}
import json, os, sys
words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
program = next(i for i, word in enumerate(words) if word.startswith("distill/"))
with open("launched", "a") as file:
    file.write(json.dumps([os.environ["CUDA_VISIBLE_DEVICES"], words[:program], words[program:]]) + "\\n")
os.execv({python!r}, [{python!r}, *words[program:]])
"""


@pytest.fixture
def launched(tmp_path, monkeypatch) -> list[list]:
    """All starts of a sweep on two groups of two GPUs; one of its two stages is DeepSpeed's."""
    text = FILE.replace("[1, 2, 3]", "[1]").replace("{warmup: 0.2}", "{deepspeed: true}")
    make(tmp_path, text)
    for name in ("python", "deepspeed"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(FAKE.format(python=sys.executable))
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PRETEND_SECONDS", "0.3")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    groups = groups_of("0,1;2,3", 1, {"CUDA_VISIBLE_DEVICES": "0,1,2,3"})
    assert work(read_sweep(Path("sweep.yaml")), read_options(["--sweep=sweep.yaml"]), groups)
    return [json.loads(line) for line in Path("launched").read_text().splitlines()]


def test_each_group_sees_its_gpus_and_starts_a_process_on_each(launched):
    assert {seen for seen, *_ in launched} == {"0,1", "2,3"}
    assert {launcher[0] for _, launcher, _ in launched} == {"python", "deepspeed"}
    for seen, launcher, program in launched:
        if "--deepspeed" in program:
            name, include, port = launcher
            assert (name, include) == ("deepspeed", f"--include=localhost:{seen}")
            assert port.startswith("--master_port=")
        else:
            expected = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
            assert launcher == ["python", *expected]


@pytest.mark.slow
def test_deepspeeds_launcher_starts_on_the_named_gpus(tmp_path):
    # The real launcher up to the command of its node; no GPU is needed to name one.
    code = """
import sys
from deepspeed.launcher import runner
found = runner.parse_inclusion_exclusion({"localhost": 4}, sys.argv[1], "")
print({host: list(slots) for host, slots in found.items()})
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "localhost:2,3"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert "{'localhost': [2, 3]}" in done.stdout, done.stderr
