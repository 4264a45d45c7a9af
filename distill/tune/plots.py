"""The plots of a report, as PNG files."""

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from distill.tune.results import Results, curve

SIZE = (7.5, 4.5)  # inches


def _figure(draw: Callable[[Any], None], path: Path, size: tuple[float, float] = SIZE) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=size)
    draw(axes)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def scores(results: Results, path: Path) -> None:
    """Mean and standard deviation over the seeds: one group of bars a task, one bar a method."""

    def _draw(axes: Any) -> None:
        width = 0.8 / max(1, len(results.methods))
        for number, method in enumerate(results.methods):
            found = [(i, results.cells.get((method, t))) for i, t in enumerate(results.tasks)]
            cells = [(i, cell) for i, cell in found if cell is not None]
            axes.bar(
                [i + (number - (len(results.methods) - 1) / 2) * width for i, _ in cells],
                [cell.mean for _, cell in cells],
                width,
                yerr=[cell.sd or 0.0 for _, cell in cells],
                label=method,
                capsize=2,
            )
        axes.set_xticks(range(len(results.tasks)), results.tasks)
        values = [s for cell in results.cells.values() for s in cell.scores]
        low, high = min(values), max(values)
        axes.set_ylim(max(0.0, low - 0.5 * (high - low) - 1), high + 0.1 * (high - low) + 1)
        axes.set(ylabel="score on test", title="mean over seeds; lines: standard deviation")
        axes.legend(fontsize=8)

    _figure(_draw, path)


def curves(results: Results, task: str, path: Path) -> bool:
    """Validation score after each evaluation of the last stage, mean over seeds; if there are."""
    lines = {}
    for (method, each), cell in results.cells.items():
        found = [curve(folder, cell.metric) for folder in cell.folders]
        if each == task and any(found):
            lines[method] = [mean(v) for v in zip(*filter(None, found), strict=False)]

    def _draw(axes: Any) -> None:
        for method, values in lines.items():
            axes.plot(range(1, len(values) + 1), values, marker="o", markersize=3, label=method)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel="evaluation of the last stage", ylabel="score on validation", title=task)
        axes.legend(fontsize=8)

    if lines:
        _figure(_draw, path)
    return bool(lines)


#: File -> (axis, value of a cell, logarithmic).
COSTS: dict[str, tuple[str, Callable[[Any], float], bool]] = {
    "size": ("parameters", lambda cell: cell.parameters, True),
    "speed": ("samples a second in evaluation", lambda cell: cell.samples_per_second, False),
    "memory": ("peak memory (MB)", lambda cell: cell.peak_memory / 1e6, False),
    "time": ("training of all stages (s)", lambda cell: cell.train_seconds, False),
}


def against(results: Results, cost: str, path: Path) -> bool:
    """Mean score over the tasks against what a method costs; if any cost is known."""
    label, value, is_log = COSTS[cost]
    points = {}
    for method in results.methods:
        cells = [c for (m, _), c in results.cells.items() if m == method]
        if results.complete(method) and any(value(cell) for cell in cells):
            points[method] = (mean(map(value, cells)), mean(cell.mean for cell in cells))

    def _draw(axes: Any) -> None:
        for method, (x, y) in points.items():
            axes.plot([x], [y], "o")
            axes.annotate(method, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
        if is_log:
            axes.set_xscale("log")
        axes.margins(0.15)
        axes.set(xlabel=label, ylabel="mean score on test")

    if points:
        _figure(_draw, path)
    return bool(points)


def importance(values: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Share of each setting in the spread of validation scores: one group of bars a study."""
    rows = [(f"{study}: {name}", v) for study, each in values.items() for name, v in each.items()]

    def _draw(axes: Any) -> None:
        axes.barh([name for name, _ in rows][::-1], [v for _, v in rows][::-1])
        axes.set(xlabel="importance (fANOVA)", xlim=(0, 1))

    _figure(_draw, path, (SIZE[0], 1.0 + 0.3 * len(rows)))
