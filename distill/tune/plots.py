"""The plots of a report, as PNG files."""

from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean, stdev
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
    """A group a task, in it each method's mean and standard deviation, and its seeds as dots."""

    def _draw(axes: Any) -> None:
        width = 0.8 / max(1, len(results.methods))
        for number, method in enumerate(results.methods):
            found = [(i, results.cells.get((method, t))) for i, t in enumerate(results.tasks)]
            offset = (number - (len(results.methods) - 1) / 2) * width
            cells = [(i + offset, cell) for i, cell in found if cell is not None]
            drawn = axes.errorbar(
                [x for x, _ in cells],
                [cell.mean for _, cell in cells],
                yerr=[cell.sd or 0.0 for _, cell in cells],
                label=method,
                fmt="s",
                markersize=5,
                capsize=3,
            )
            axes.plot(
                [x + width / 4 for x, cell in cells for _ in cell.scores],
                [score for _, cell in cells for score in cell.scores],
                ".",
                color=drawn[0].get_color(),
                alpha=0.6,
            )
        axes.set_xticks(range(len(results.tasks)), results.tasks)
        axes.set_xlim(-0.5, len(results.tasks) - 0.5)
        axes.set(ylabel="score", title="mean and standard deviation over seeds; dots: seeds")
        axes.legend(fontsize=8)

    _figure(_draw, path)


def curves(results: Results, task: str, path: Path) -> bool:
    """Validation score after each evaluation of the last stage, if there are: mean over seeds, and
    a band of one standard deviation.
    """
    lines = {}
    for (method, each), cell in results.cells.items():
        found = [curve(folder, cell.metric) for folder in cell.folders]
        if each == task and any(found):
            lines[method] = list(zip(*filter(None, found), strict=False))

    def _draw(axes: Any) -> None:
        for method, values in lines.items():
            places, middle = range(1, len(values) + 1), [mean(v) for v in values]
            spread = [stdev(v) if len(v) > 1 else 0.0 for v in values]
            low = [m - s for m, s in zip(middle, spread, strict=True)]
            high = [m + s for m, s in zip(middle, spread, strict=True)]
            axes.plot(places, middle, marker="o", markersize=3, label=method)
            axes.fill_between(places, low, high, alpha=0.12)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel="evaluation of the last stage", ylabel="score on validation", title=task)
        axes.legend(fontsize=8)

    if lines:
        _figure(_draw, path)
    return bool(lines)


#: File -> (axis, value of a cell).
COSTS: dict[str, tuple[str, Callable[[Any], float]]] = {
    "size": ("parameters", lambda cell: cell.parameters),
    "speed": ("samples a second in evaluation", lambda cell: cell.samples_per_second),
    "memory": ("peak memory (MB)", lambda cell: cell.peak_memory / 1e6),
    "time": ("training of all stages (s)", lambda cell: cell.train_seconds),
}
WIDE = 3.0  # from this ratio of largest to smallest on, an axis of costs is logarithmic


def against(results: Results, cost: str, path: Path) -> bool:
    """Mean score over the tasks against what a method costs; if any cost is known."""
    label, value = COSTS[cost]
    points = {}
    for method in results.methods:
        cells = [c for (m, _), c in results.cells.items() if m == method]
        if results.complete(method) and any(value(cell) for cell in cells):
            points[method] = (mean(map(value, cells)), mean(cell.mean for cell in cells))

    def _draw(axes: Any) -> None:
        for method, (x, y) in points.items():
            axes.plot([x], [y], "o")
            axes.annotate(method, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
        costs = [x for x, _ in points.values()]
        if max(costs) > WIDE * min(costs) > 0:
            axes.set_xscale("log")
        else:
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.locator_params(axis="x", nbins=6)
        axes.margins(0.15)
        axes.set(xlabel=label, ylabel="mean score")

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
