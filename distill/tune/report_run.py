"""`--report STUDY`, `--import-logs`: from a study's database or the seed's logs to a report."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from config import ArgGroup, ConfigError, flag
from config.parser import Parser
from distill.engine import files
from distill.tune.graph import Graph, build_what_can
from distill.tune.grid import settings
from distill.tune.import_logs import import_logs
from distill.tune.report import About, write_report
from distill.tune.results import Results, collect, results_csv
from distill.tune.store import Row, Store
from distill.tune.sweep import DATABASE, SWEEP, choices_of, open_store
from distill.tune.sweep_file import SweepSpec, read_sweep
from distill.tune.trials import Choices

log = logging.getLogger(__name__)

TRIALS = 4  # of a study, so that the importance of its settings says anything


@dataclass(frozen=True, kw_only=True)
class ReportArgs(ArgGroup):
    """Flags of auto_tune beside a report."""

    title = "reports"
    report: str | None = flag(None, "folder of a sweep, or its file")
    storage: str | None = flag(None, "SQL URL of the study; default: SQLite in the sweep's folder")
    import_logs: tuple[str, ...] = flag(
        (), "logs of the seed (ft_logs), or folders of them", name="--import-logs"
    )
    baseline: str | None = flag(None, "method that others are compared with, of imported logs")
    out: str | None = flag(None, "where the report goes; default: report in the sweep's folder")


def read_options(argv: Sequence[str]) -> ReportArgs:
    """The flags. ConfigError: unknown ones."""
    parser = Parser(prog="distill/auto_tune.py", allow_abbrev=False)
    parser.problems = []
    ReportArgs.add_to(parser)
    known, unknown = parser.parse_known_args(list(argv))
    problems = [*parser.problems, *(f"{word}: is no flag of a report" for word in unknown)]
    if problems:
        raise ConfigError(problems)
    return ReportArgs.take(known)


def report(argv: Sequence[str]) -> None:
    """Write a report and say where it is."""
    options = read_options(argv)
    if options.import_logs:
        results = import_logs([Path(path) for path in options.import_logs])
        baseline = options.baseline
        if baseline is not None and baseline not in results.methods:
            known = ", ".join(results.methods)
            raise ConfigError(f"--baseline={baseline}: is no log; there are {known}")
        about = About("imported logs", baseline, {}, {}, {})
        written = write_report(results, about, Path(options.out or "report"))
    else:
        written = report_study(options)
    log.info("%s", ", ".join(map(str, written)))


def report_study(options: ReportArgs) -> list[Path]:
    """The report of a sweep that has run, or runs at the moment."""
    sweep = sweep_of(Path(options.report or ""))
    if (options.storage or sweep.storage) is None and not (sweep.out / DATABASE).is_file():
        raise ConfigError(f"--report={options.report}: {sweep.out} has no {DATABASE}; run it first")
    store = open_store(sweep, options.storage)
    facts = store.facts_so_far()
    choices = choices_of(sweep, store, int(facts.get("processes", 1)))
    graph, _ = build_what_can(sweep, choices.known(), choices.processes)
    rows = rows_of(graph, store)
    results = collect(graph, rows, sweep.metric, sweep.out)
    commands = {row.name: row.command for row in rows.values() if row.command}
    codes = sorted({row.code for row in rows.values() if row.code})
    facts |= {"code of the runs": ", ".join(codes), "runs": str(len(graph.nodes))}
    about = About(sweep.study, sweep.baseline, facts, commands, importance(sweep, choices, results))
    folder = Path(options.out) if options.out else sweep.out / "report"
    written = write_report(results, about, folder)
    files.write_text(folder / "results.csv", results_csv(graph, rows))
    choices.studies.close()
    store.close()
    return [*written, folder / "results.csv"]


def sweep_of(path: Path) -> SweepSpec:
    """The sweep of a folder (wherever it was moved to), or of a file."""
    if path.is_dir():
        return replace(read_sweep(path / SWEEP), out=path)
    if not path.is_file():
        raise ConfigError(f"--report={path}: there is no such study; give its folder or its file")
    return read_sweep(path)


def rows_of(graph: Graph, store: Store) -> dict[str, Row]:
    """Every run of the graph as the database has it; waiting where it has not."""
    known = store.rows()
    return {
        key: known.get(key) or Row(key, n.name, n.method, n.task, n.stage, n.seed)
        for key, n in graph.nodes.items()
    }


def importance(
    sweep: SweepSpec, choices: Choices, results: Results
) -> Mapping[str, Mapping[str, float]]:
    """`METHOD, TASK` -> setting -> its share in the spread of scores, of studies with enough."""
    import optuna

    found = {}
    for (method, task), cell in results.cells.items():
        if cell.trials < TRIALS or not settings(sweep.methods[method]):
            continue
        study = choices.studies.study(method, task)
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        values = {trial.value for trial in study.get_trials(deepcopy=False)}
        if len(values - {None}) > 1:
            found[f"{method}, {task}"] = optuna.importance.get_param_importances(
                study, evaluator=evaluator
            )
    return found
