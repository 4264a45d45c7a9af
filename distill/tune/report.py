"""The report of a study: tables, significance, plots; Markdown, HTML, PNG and results.csv."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from config import ConfigError
from distill.engine import files
from distill.tune import plots
from distill.tune.document import Code, Grid, Heading, Image, Items, Paragraph, Part, markdown, page
from distill.tune.results import Cell, Results, correct
from distill.tune.stats import Difference, paired_bootstrap, ranks, sample_differences

CLOSE = 1e-6  # points


@dataclass(frozen=True)
class About:
    """What a report says of its study besides results."""

    study: str
    baseline: str | None
    facts: Mapping[str, str]
    commands: Mapping[str, str]  # name of a run -> its command
    importance: Mapping[str, Mapping[str, float]]  # study -> setting -> share


def write_report(results: Results, about: About, folder: Path) -> list[Path]:
    """Write report.md, report.html and the plots into the folder; returns the files.

    ConfigError if no run of the last stages has ended.
    """
    if not results.cells:
        reasons = "; ".join(results.missing[:3]) or "no runs"
        raise ConfigError(f"--report: study {about.study} has no results yet: {reasons}")
    folder.mkdir(parents=True, exist_ok=True)
    parts = list(_parts(results, about, folder))
    text, web = folder / "report.md", folder / "report.html"
    files.write_text(text, markdown(parts))
    files.write_text(web, page(parts, f"Sweep {about.study}"))
    return [text, web, *(part.path for part in parts if isinstance(part, Image))]


def _parts(results: Results, about: About, folder: Path) -> Iterator[Part]:
    yield Heading(f"Sweep {about.study}", 1)
    seeds = sorted({seed for cell in results.cells.values() for seed in cell.seeds})
    yield Paragraph(
        f"{len(results.methods)} methods, {len(results.tasks)} tasks, seeds "
        f"{', '.join(map(str, seeds))}. Settings and epochs are chosen on validation; the numbers "
        "are those of test (marked val where test has no labels): mean +- standard deviation over "
        "the seeds, in percent unless the metric is a loss."
    )
    yield Heading("Scores")
    yield _score_table(results)
    plots.scores(results, folder / "scores.png")
    yield Image("scores", folder / "scores.png")
    yield Heading("Ranks")
    yield _rank_table(results)
    if about.baseline is not None:
        yield from _significance(results, about.baseline)
    yield Heading("Cost")
    yield _cost_table(results)
    for cost in plots.COSTS:
        if plots.against(results, cost, folder / f"{cost}.png"):
            yield Image(f"score against {cost}", folder / f"{cost}.png")
    yield Heading("Learning curves")
    for task in results.tasks:
        path = folder / f"curves-{task}.png"
        if plots.curves(results, task, path):
            yield Image(f"learning curves of {task}", path)
    yield from _settings(results, about, folder)
    if results.missing:
        yield Heading("Not there")
        yield Items(results.missing)
    yield Heading("How it was made")
    facts = {name: value for name, value in about.facts.items() if value}
    yield Items([f"{name}: {value}" for name, value in facts.items()])
    yield Code("\n".join(about.commands.values()))


def _number(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    text = f"{cell.mean:.1f}" if cell.sd is None else f"{cell.mean:.1f} +- {cell.sd:.1f}"
    return text if cell.test else f"{text} (val)"


def means_of(results: Results) -> dict[str, float]:
    """Method -> mean over tasks, of methods that have a number for every task."""
    return {
        method: mean(results.cells[method, task].mean for task in results.tasks)
        for method in results.methods
        if results.complete(method)
    }


def _score_table(results: Results) -> Grid:
    names = {}
    for (_, task), cell in results.cells.items():
        names.setdefault(task, cell.metric)
    means = means_of(results)
    head = ["method", *(f"{task} ({names.get(task, '-')})" for task in results.tasks), "mean"]
    rows = [
        [
            method,
            *(_number(results.cells.get((method, task))) for task in results.tasks),
            f"{means[method]:.1f}" if method in means else "-",
        ]
        for method in results.methods
    ]
    return Grid(head, rows)


def rank_rows(results: Results) -> dict[str, dict[str, float]]:
    """Method -> task -> place; methods without a number for every task are left out."""
    whole = [method for method in results.methods if results.complete(method)]
    places: dict[str, dict[str, float]] = {method: {} for method in whole}
    for task in results.tasks:
        scores = {method: results.cells[method, task].mean for method in whole}
        for method, place in ranks(scores, lower_is_better=results.lower_is_better(task)).items():
            places[method][task] = place
    return places


def _rank_table(results: Results) -> Grid:
    places = rank_rows(results)
    ordered = sorted(places, key=lambda method: mean(places[method].values()))
    return Grid(
        ["method", *results.tasks, "mean rank"],
        [
            [method, *(f"{places[method][t]:g}" for t in results.tasks)]
            + [f"{mean(places[method].values()):.2f}"]
            for method in ordered
        ],
    )


def difference(cell: Cell, baseline: Cell) -> Difference | None:
    """Against the baseline: over test samples where the score is a mean of them, else over seeds.

    None if fewer than two are paired.
    """
    mine, theirs = ([correct(f) for f in each.folders] for each in (cell, baseline))
    runs = [run for run in (*mine, *theirs) if run is not None]
    paired = bool(runs) and len(runs) == len(mine) + len(theirs)
    if paired and _explain(runs, (*cell.test, *baseline.test)):
        points = sample_differences(runs[: len(mine)], runs[len(mine) :])
        return paired_bootstrap(points, "samples")
    shared = [seed for seed in cell.seeds if seed in baseline.seeds]
    if len(shared) < 2:
        return None
    mine_of, theirs_of = (dict(zip(c.seeds, c.scores, strict=True)) for c in (cell, baseline))
    return paired_bootstrap([mine_of[s] - theirs_of[s] for s in shared], "seeds")


def _explain(runs: list[dict[int, bool]], scores: tuple[float, ...]) -> bool:
    """Whether the predictions' shares of right answers are the scores: an accuracy."""
    if len(runs) != len(scores):
        return False
    shares = (100.0 * mean(run.values()) for run in runs)
    return all(abs(a - b) < CLOSE for a, b in zip(shares, scores, strict=True))


def _significance(results: Results, baseline: str) -> Iterator[Part]:
    yield Heading(f"Against {baseline}")
    rows = []
    for method in results.methods:
        for task in results.tasks:
            pair = [results.cells.get((name, task)) for name in (method, baseline)]
            if method == baseline or pair[0] is None or pair[1] is None:
                continue
            found = difference(pair[0], pair[1])
            if found is not None:
                interval = f"{found.low:+.1f} .. {found.high:+.1f}"
                drawn = f"{found.number} {found.unit}"
                p = "-" if found.p is None else f"{found.p:.4f}"
                rows.append([f"{method}, {task}", f"{found.mean:+.1f}", interval, p, drawn])
    yield Grid(["method, task", "points", "95 % interval", "p", "drawn again"], rows)
    yield Paragraph(
        "Paired bootstrap, 10,000 resamples, two-sided. Samples: each test sample's share of "
        "seeds that were right is drawn, so that the chance in the samples is counted; seeds: "
        "where predictions do not explain the score (no p of fewer than five). No correction "
        f"for several comparisons ({len(rows)} here)."
    )


def _cost_table(results: Results) -> Grid:
    rows = []
    for method in results.methods:
        cells = [cell for (name, _), cell in results.cells.items() if name == method]
        if cells:
            rows.append(
                [
                    method,
                    f"{mean(c.parameters for c in cells):,.0f}",
                    f"{max(c.peak_memory for c in cells) / 1e6:.0f}",
                    f"{mean(c.samples_per_second for c in cells):.0f}",
                    f"{mean(c.train_seconds for c in cells):.0f}",
                ]
            )
    units = "parameters, peak memory (MB), samples/s, training of all stages (s)"
    return Grid(["method", *units.split(", ")], rows)


def _settings(results: Results, about: About, folder: Path) -> Iterator[Part]:
    chosen = [c for c in results.cells.values() if c.settings]
    if chosen:
        yield Heading("Settings that won on validation")
        yield Grid(
            ["method, task", "settings", "of trials"],
            [
                [
                    f"{c.method}, {c.task}",
                    ", ".join(f"{name}={value}" for name, value in c.settings.items()),
                    str(c.trials),
                ]
                for c in chosen
            ],
        )
    if about.importance:
        plots.importance(about.importance, folder / "importance.png")
        yield Heading("Importance of settings")
        yield Image("importance of settings", folder / "importance.png")
