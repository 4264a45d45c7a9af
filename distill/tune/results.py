"""The results of a sweep: one row a run, and for each method and task the settings that won.

Settings are chosen by the mean of the seeds' validation scores; the numbers are those of test.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev

from distill.engine.run_dir import RESULTS, predictions_file
from distill.tune.graph import Graph, Leaf
from distill.tune.grid import Assignment
from distill.tune.scores import LOWER_IS_BETTER, percent
from distill.tune.store import DONE, Row
from distill.tune.trials import metric_of, validation_score


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method on one task, with the settings that were best on validation."""

    method: str
    task: str
    metric: str
    settings: Assignment
    trials: int  # from which they were chosen
    seeds: tuple[int, ...]
    val: tuple[float, ...]  # one a seed; in percent unless a loss
    test: tuple[float, ...]  # of the same weights; empty where the test split has no labels
    parameters: int = 0
    peak_memory: int = 0  # bytes
    samples_per_second: float = 0.0  # of the evaluation
    train_seconds: float = 0.0  # all stages of one seed, on the mean
    folders: tuple[Path, ...] = ()  # of the last stages, one a seed

    @property
    def scores(self) -> tuple[float, ...]:
        """What is reported: test, or validation where there is no test."""
        return self.test or self.val

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return mean(self.scores)

    @property
    def sd(self) -> float | None:
        """Standard deviation over the seeds; None of one."""
        return stdev(self.scores) if len(self.scores) > 1 else None


@dataclass(frozen=True)
class Results:
    """All that a report says."""

    cells: dict[tuple[str, str], Cell]  # (method, task)
    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    rows: dict[str, Row] = field(default_factory=dict)
    missing: tuple[str, ...] = ()  # what is not there, and why
    shared: tuple[tuple[str, str], ...] = ()  # models of no method that were scored: name, text

    def lower_is_better(self, task: str) -> bool:
        """Whether the task's metric is a loss."""
        names = {c.metric for (_, t), c in self.cells.items() if t == task}
        return bool(names & LOWER_IS_BETTER)

    def complete(self, method: str) -> bool:
        """Whether there is a number for every task."""
        return all((method, task) in self.cells for task in self.tasks)


def collect(graph: Graph, rows: Mapping[str, Row], metric: str | None, out: Path) -> Results:
    """The cells of a graph. What has not ended well is listed, never left out in silence."""
    groups: dict[tuple[str, str], dict[int, list[Leaf]]] = {}
    for leaf in graph.leaves:
        groups.setdefault((leaf.method, leaf.task), {}).setdefault(leaf.trial, []).append(leaf)
    cells, missing = {}, []
    for (method, task), trials in groups.items():
        scored = {}
        for number, leaves in trials.items():
            values = [validation_score(rows[leaf.stages[-1]], metric) for leaf in leaves]
            ended = [rows[leaf.stages[-1]].state == DONE for leaf in leaves]
            if all(ended) and None not in values:
                scored[number] = mean(v for v in values if v is not None)
            else:
                missing += _reasons(leaves, rows)
        if scored:
            name = metric_of(rows[trials[next(iter(scored))][0].stages[-1]], metric)
            best = (min if name in LOWER_IS_BETTER else max)(scored, key=lambda n: scored[n])
            cells[method, task] = _cell(trials[best], rows, name, len(scored), graph, out)
    return Results(
        cells=cells,
        methods=tuple(dict.fromkeys(method for method, _ in groups)),
        tasks=tuple(dict.fromkeys(task for _, task in groups)),
        rows=dict(rows),
        missing=tuple(dict.fromkeys(missing)),
        shared=tuple(_shared(graph, rows, metric)),
    )


def _shared(graph: Graph, rows: Mapping[str, Row], metric: str | None) -> Iterator[tuple[str, str]]:
    """Name and score of the models that methods share, of those that have one."""
    for key, node in graph.nodes.items():
        row = rows[key]
        if node.method is None and row.state == DONE:
            name = metric_of(row, metric)
            for split, mark in (("test", ""), ("val", " (val)")):
                value = (row.result.get(split) or {}).get(name)
                if value is not None:
                    yield node.name, f"{percent(name, value):.1f} {name}{mark}"
                    break


def _reasons(leaves: Iterable[Leaf], rows: Mapping[str, Row]) -> list[str]:
    found = []
    for leaf in leaves:
        for key in leaf.stages:
            row = rows[key]
            if row.state != DONE:
                first = row.reason.splitlines()[0] if row.reason else "not run yet"
                found.append(f"{row.name}: {row.state} ({first})")
                break
    return found


def _cell(
    leaves: list[Leaf], rows: Mapping[str, Row], metric: str, trials: int, graph: Graph, out: Path
) -> Cell:
    last = [rows[leaf.stages[-1]].result for leaf in leaves]
    tests = [(r.get("test") or {}).get(metric) for r in last]
    seconds = [
        sum(rows[key].result.get("train_seconds", 0.0) for key in leaf.stages) for leaf in leaves
    ]
    speeds = [r.get("test_samples_per_second") or r.get("val_samples_per_second") for r in last]
    return Cell(
        method=leaves[0].method,
        task=leaves[0].task,
        metric=metric,
        settings=leaves[0].settings,
        trials=trials,
        seeds=tuple(leaf.seed for leaf in leaves),
        val=tuple(percent(metric, r["val"][metric]) for r in last),
        test=() if None in tests else tuple(percent(metric, t) for t in tests if t is not None),
        parameters=last[0].get("parameters", 0),
        peak_memory=max(r.get("peak_memory_bytes") or 0 for r in last),
        samples_per_second=mean([s for s in speeds if s] or [0.0]),
        train_seconds=mean(seconds),
        folders=tuple(out / "runs" / graph.nodes[leaf.stages[-1]].folder for leaf in leaves),
    )


def curve(folder: Path, metric: str) -> list[float]:
    """Validation scores of a run's evaluations."""
    try:
        content = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return [percent(metric, row["metrics"][metric]) for row in content["history"]]


def correct(folder: Path) -> dict[int, bool] | None:
    """Sample of the test split -> whether the run was right; None where labels are not known."""
    try:
        text = (folder / predictions_file("test")).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    rows = [json.loads(line) for line in text.splitlines()]
    if not rows or any("label" not in row for row in rows):
        return None
    return {row["id"]: row["prediction"] == row["label"] for row in rows}


FIXED = ("name", "method", "task", "stage", "seed", "state", "settings", "failures", "interrupted")
MEASURED = ("parameters", "iterations", "train_seconds", "tokens_per_second")
MEASURED += ("peak_memory_bytes", "val_samples_per_second", "test_samples_per_second")


def results_csv(graph: Graph, rows: Mapping[str, Row]) -> str:
    """One line a run, as text of results.csv. Scores have the units in which the run wrote them."""
    settings = {key: leaf.settings for leaf in graph.leaves for key in leaf.stages}
    scores = sorted(
        {
            f"{split}/{name}"
            for row in rows.values()
            for split in ("val", "test")
            for name in row.result.get(split) or {}
        }
    )
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    last = ("seconds", "code", "reason", "folder", "key", "command")
    writer.writerow([*FIXED, *scores, *MEASURED, *last])
    for key, node in graph.nodes.items():
        row = rows[key]
        fixed = {name: getattr(row, name, "") for name in FIXED}
        fixed["settings"] = json.dumps(settings.get(key, {})) if node.method else ""
        found = [row.result.get(s.split("/")[0], {}).get(s.split("/")[1], "") for s in scores]
        measured = [row.result.get(name, "") for name in MEASURED]
        reason = row.reason.splitlines()[0] if row.reason else ""
        ends = [f"{row.seconds:.1f}", row.code, reason, node.folder, key, row.command]
        writer.writerow([*fixed.values(), *found, *measured, *ends])
    return file.getvalue()
