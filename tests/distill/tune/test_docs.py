"""Every command of auto_tune that README.md and docs/sweeps.md show is one it takes."""

import re
import shlex

import pytest

from distill.tune import report_run, sweep
from distill.tune.seed_args import read
from distill.tune.seed_plan import Clock, jobs_of
from distill.tune.sweep_file import read_sweep
from tests.house import ROOT


def commands() -> list[list[str]]:
    found = []
    for name in ("README.md", "docs/sweeps.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
            lines = re.sub(r"\\\n\s*", " ", block).splitlines()
            found += [shlex.split(line)[2:] for line in lines if "distill/auto_tune.py" in line]
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_the_command_is_taken(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    names = {word.partition("=")[0] for word in words}
    if "--sweep" in names:
        assert read_sweep(ROOT / sweep.read_options(words).sweep).methods
    elif "--report" in names:
        assert report_run.read_options(words).report
    else:
        jobs = jobs_of(read(words), Clock())
        assert all(job.commands for job in jobs)


def test_every_use_is_shown():
    names = {word.partition("=")[0] for words in commands() for word in words}
    assert {"--sweep", "--report", "--again_1__distill_temperature", "--test"} <= names


def test_every_flag_is_documented():
    text = (ROOT / "docs/sweeps.md").read_text(encoding="utf-8")
    flags = [*sweep.SweepArgs.flags(), *report_run.ReportArgs.flags()]
    assert [flag for flag in flags if flag not in text] == []
