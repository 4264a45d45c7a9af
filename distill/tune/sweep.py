"""Start a sweep: read and check its file, open its study, run what is left; or print the commands.

Everything that is wrong is told at once, before anything starts.
"""

import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from config import ArgGroup, ConfigError, flag
from config.parser import Parser
from distill.engine import files
from distill.tune.code_version import code_version, commit
from distill.tune.devices import Group, groups_of
from distill.tune.graph import build, command
from distill.tune.grid import assignments, samples, settings
from distill.tune.results import results_csv
from distill.tune.store import Store
from distill.tune.study import Studies
from distill.tune.sweep_check import check_sweep
from distill.tune.sweep_file import SweepSpec, read_what_can
from distill.tune.trial_store import TrialStore
from distill.tune.trials import Choices
from distill.tune.view import make_view
from distill.tune.worker import Worker

log = logging.getLogger(__name__)

SWEEP, DATABASE, TABLE = "sweep.yaml", "study.db", "results.csv"


@dataclass(frozen=True, kw_only=True)
class SweepArgs(ArgGroup):
    """Flags of auto_tune beside a sweep's file."""

    title = "sweeps"
    sweep: str | None = flag(None, "file of the sweep; docs/sweeps.md has its format")
    gpus: str | None = flag(None, "GPUs of each worker, as 0,1;2,3; default: each visible one")
    slots: int = flag(1, "runs at the same time where there is no GPU")
    storage: str | None = flag(None, "SQL URL of the study; default: SQLite in the sweep's folder")
    test: bool = flag(False, "print the commands and run nothing")
    any_code: bool = flag(False, "go on with a study that other code has begun")
    retry_failed: bool = flag(False, "run again what has failed for good")
    slurm: str | None = flag(None, "workers as SLURM jobs: jobs=4,partition=gpu,gpus_per_node=1")


def read_options(argv: Sequence[str]) -> SweepArgs:
    """The flags. ConfigError: unknown ones, wrong values."""
    parser = Parser(prog="distill/auto_tune.py", allow_abbrev=False)
    parser.problems = []
    SweepArgs.add_to(parser)
    known, unknown = parser.parse_known_args(list(argv))
    options = SweepArgs.take(known)
    problems = [*parser.problems, *(f"{word}: is no flag of a sweep" for word in unknown)]
    if options.slots < 1:
        problems.append(f"--slots={options.slots}: must be at least 1")
    if problems:
        raise ConfigError(problems)
    return options


def run_sweep(argv: Sequence[str]) -> None:
    """All of a sweep, or what is left of it. SystemExit(1) if a run failed for good."""
    options = read_options(argv)
    problems: list[str] = []
    groups = _collected(problems, lambda: groups_of(options.gpus, options.slots, os.environ)) or [
        Group("cpu 0")
    ]
    sweep = _read(problems, Path(options.sweep or ""))
    if sweep is not None and sweep.seeds and sweep.tasks and sweep.methods:
        problems += check_sweep(sweep, groups[0].processes)
        problems += study_problems(sweep, options, groups[0].processes)
    if problems or sweep is None:
        raise ConfigError(dict.fromkeys(problems))
    if options.test:
        sys.stdout.writelines(f"{line}\n" for line in printed(sweep, groups[0].processes))
        return
    if options.slurm is not None:
        from distill.tune.slurm import submit

        submit(options.slurm, argv, sweep.out)
        return
    if not work(sweep, options, groups):
        sys.exit(1)


def work(sweep: SweepSpec, options: SweepArgs, groups: Sequence[Group]) -> bool:
    """Take part in the sweep until nothing is left; whether nothing failed."""
    sweep.out.mkdir(parents=True, exist_ok=True)
    files.write_bytes(sweep.out / SWEEP, Path(sweep.path).read_bytes())
    store = open_store(sweep, options.storage)
    store.fact("processes", str(groups[0].processes))
    store.fact("code", code_version())
    store.fact("commit", commit())
    if options.any_code:
        store.set_fact("code", code_version())
    if options.retry_failed:
        log.info("%d failed runs are run again", store.retry())
    choices = choices_of(sweep, store, groups[0].processes)
    before = signal.signal(signal.SIGTERM, _end)
    try:
        worker = Worker(choices, store, groups, sweep.out, make_view())
        went_well = worker.run()
        files.write_text(sweep.out / TABLE, results_csv(worker.graph, store.rows()))
        return went_well
    finally:
        signal.signal(signal.SIGTERM, before)
        choices.studies.close()
        store.close()


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def open_store(sweep: SweepSpec, storage: str | None) -> Store:
    """The study's database. ConfigError: it cannot be opened, or lacks a driver."""
    from sqlalchemy.exc import SQLAlchemyError

    url = storage or sweep.storage or f"sqlite:///{sweep.out / DATABASE}"
    try:
        return Store(url, sweep.study)
    except ImportError as error:
        raise ConfigError(f"{_storage_line(sweep, storage)}: pip install {error.name}") from error
    except SQLAlchemyError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{_storage_line(sweep, storage)}: cannot be opened: {reason}") from error


def _storage_line(sweep: SweepSpec, storage: str | None) -> str:
    if storage is not None:
        return f"--storage={storage}"
    return sweep.problem(sweep.lines.get("storage", 1), f"storage: {sweep.storage or sweep.out}")


def choices_of(sweep: SweepSpec, store: Store, processes: int) -> Choices:
    """The sweep's trials in this database."""
    studies = Studies(store.url, sweep.study, sweep.metric, sweep.sampler_seed)
    return Choices(sweep, TrialStore(store), studies, processes)


def _read(problems: list[str], path: Path) -> SweepSpec | None:
    try:
        sweep, found = read_what_can(path)
    except ConfigError as error:
        problems += error.problems
        return None
    problems += found
    return sweep


def _collected(problems: list[str], make: object) -> object:
    try:
        return make()  # type: ignore[operator]
    except ConfigError as error:
        problems += error.problems
        return None


def study_problems(sweep: SweepSpec, options: SweepArgs, processes: int) -> Iterator[str]:
    """A study that was begun otherwise than it would go on."""
    storage = options.storage or sweep.storage
    if storage is None and not (sweep.out / DATABASE).exists():
        return
    try:
        store = open_store(sweep, options.storage)
    except ConfigError as error:
        yield from error.problems
        return
    facts = store.facts_so_far()
    store.close()
    code = facts.get("code", code_version())
    if code != code_version() and not options.any_code:
        yield sweep.problem(
            1,
            f"study {sweep.study} was begun with other code ({code}, commit "
            f"{facts.get('commit') or 'unknown'}; this is {code_version()}): choose another "
            "study and out, or --any_code to mix them",
        )
    begun = facts.get("processes", str(processes))
    if begun != str(processes):
        yield sweep.problem(
            1, f"study {sweep.study} was begun with {begun} processes a run, not {processes}"
        )


def printed(sweep: SweepSpec, processes: int) -> Iterator[str]:
    """The commands of a sweep, each after those that it needs. Of TPE's: one of each method."""
    trials = {}
    for method in sweep.methods.values():
        asked = sweep.sampler == "tpe" and settings(method)
        rows = samples(settings(method))[:1] if asked else assignments(sweep, method)
        trials |= {(method.name, task): dict(enumerate(rows)) for task in sweep.tasks}
    graph = build(sweep, trials, processes)
    for node in graph.nodes.values():
        yield command(graph, node, sweep.out, {}).text
