"""What is wrong with a sweep: choices, models, devices' share, and every command it may run."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from config import ConfigError
from config.saved import FILE, TRACKER
from distill.engine import files
from distill.tune.check import parsed
from distill.tune.command import Command
from distill.tune.graph import Graph, Node, build_what_can, command
from distill.tune.grid import samples, setting_problems, settings
from distill.tune.sweep_file import SweepSpec

ROUNDS = 5  # parses of one command: each without the flags that were wrong before


def check_sweep(sweep: SweepSpec, processes: int) -> list[str]:
    """Every problem, with its line. A command is parsed with each value of each setting once."""
    problems = [*setting_problems(sweep), *_metric_problems(sweep)]
    trials = {
        (method.name, task): dict(enumerate(samples(settings(method))))
        for method in sweep.methods.values()
        for task in sweep.tasks
    }
    graph, missing = build_what_can(sweep, trials, processes)
    problems += missing
    first = {key for leaf in graph.leaves if leaf.seed == sweep.seeds[0] for key in leaf.stages}
    needed = [n for key, n in graph.nodes.items() if key in first or n.method is None]
    with tempfile.TemporaryDirectory() as folder:
        for node in needed:
            problems += _node_problems(sweep, graph, node, Path(folder))
    return list(dict.fromkeys(problems))


def _metric_problems(sweep: SweepSpec) -> Iterator[str]:
    """A metric that a task has not: its runs would have no score."""
    from tasks import TASKS, task_name

    for name, flags in sweep.tasks.items():
        given = flags["--task"].value if "--task" in flags else None
        with contextlib.suppress(ConfigError):  # an unknown task is told with its command
            known = TASKS[task_name(given if isinstance(given, str) else None)].metric_names
            if sweep.metric is not None and sweep.metric not in known:
                line = sweep.lines.get("metric", 1)
                text = f"metric: {sweep.metric}: task {name} has {', '.join(known)}"
                yield sweep.problem(line, text)


def _node_problems(sweep: SweepSpec, graph: Graph, node: Node, out: Path) -> Iterator[str]:
    """Parse a run's command; leave what its checkpoint would say for those that start from it."""
    made = command(graph, node, out, {})
    found = dict.fromkeys(_task_problems(node))
    left_out: set[str] = set()  # flags that were wrong; that they are missing is our doing
    for _ in range(ROUNDS):
        try:
            run = parsed(made)
        except ConfigError as error:
            found |= dict.fromkeys(t for t in error.problems if _flag_of(t) not in left_out)
            wrong = {_flag_of(text) for text in error.problems} & set(made.flags)
            if not wrong:
                break
            left_out |= wrong
            made = _without(made, wrong)
        else:
            folder = out / "runs" / node.folder
            files.write_text(folder / FILE, run.to_json())
            files.write_text(folder / TRACKER, "best")
            break
    for text in found:
        line = node.lines.get(_flag_of(text), node.line)
        yield sweep.problem(line, text.replace(str(out), str(sweep.out)))


def _flag_of(problem: str) -> str:
    return problem.partition(":")[0].partition("=")[0]


def _without(made: Command, flags: set[str]) -> Command:
    kept = {name: value for name, value in made.flags.items() if name not in flags}
    return replace(made, flags=kept)


def _task_problems(node: Node) -> Iterator[str]:
    """An unknown task, a folder of data that is not there."""
    from tasks import task_name

    task, data = node.flags.get("--task"), node.flags.get("--data-dir")
    if node.program != "finetune":
        return
    try:
        task_name(task if isinstance(task, str) else None)
    except ConfigError as error:
        yield from error.problems
    if isinstance(data, str) and not Path(data).is_dir():
        yield f"--data-dir={data}: there is no such folder"
