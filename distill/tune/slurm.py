"""Workers as SLURM jobs, through submitit: each takes part in the sweep until nothing is left."""

import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from config import ConfigError
from distill.tune.code_version import ROOT

log = logging.getLogger(__name__)


def submit(text: str, argv: Sequence[str], out: Path) -> None:
    """Submit the workers and wait for them. SystemExit(1) if one failed.

    ConfigError: submitit is missing, wrong options.

    text: `jobs=4,partition=gpu,gpus_per_node=2,timeout_min=600`; `jobs` and `cluster` (slurm, or
    local: processes of this machine) are ours, all else goes to submitit.
    """
    options = parse(text)
    try:
        import submitit
    except ImportError as error:
        raise ConfigError("--slurm: needs submitit; pip install submitit") from error
    number, cluster = int(options.pop("jobs", 1)), options.pop("cluster", "slurm")
    try:
        executor = submitit.AutoExecutor(folder=out / "slurm", cluster=str(cluster))
        executor.update_parameters(name=f"sweep-{out.name}", **options)
    except (RuntimeError, NameError, ValueError) as error:
        raise ConfigError(f"--slurm={text}: {error}") from error
    words = [sys.executable, str(ROOT / "distill" / "auto_tune.py"), *without_slurm(argv)]
    worker = submitit.helpers.CommandFunction(words, cwd=Path.cwd())
    jobs = [executor.submit(worker) for _ in range(number)]
    log.info("%d workers submitted: %s", number, ", ".join(job.job_id for job in jobs))
    log.info("%s; logs below %s", shlex.join(words), out / "slurm")
    failures = [error for job in jobs if (error := job.exception()) is not None]
    for error in failures:
        log.error("%s", error)
    if failures:
        sys.exit(1)


def parse(text: str) -> dict[str, str | int]:
    """`a=1,b=x` -> {"a": 1, "b": "x"}. ConfigError for another form."""
    found: dict[str, str | int] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not (name and equals and value):
            raise ConfigError(f"--slurm={text}: must be NAME=VALUE,... as jobs=4,partition=gpu")
        found[name] = int(value) if value.isdecimal() else value
    jobs = found.get("jobs", 1)
    if not isinstance(jobs, int) or jobs < 1:
        raise ConfigError(f"--slurm={text}: jobs must be a number from 1 on")
    return found


def without_slurm(argv: Sequence[str]) -> list[str]:
    """The command line of a worker: that of the sweep without --slurm."""
    kept, words = [], iter(argv)
    for word in words:
        if word == "--slurm":
            next(words, None)
        elif not word.startswith("--slurm="):
            kept.append(word)
    return kept
