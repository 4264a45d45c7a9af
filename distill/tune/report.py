"""The report of a study: tables, significance, plots; Markdown, HTML, PNG and results.csv."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from config import ConfigError
from distill.engine import files
from distill.tune import plots
from distill.tune.document import Code, Grid, Heading, Image, Items, Paragraph, Part, markdown, page
from distill.tune.results import Cell, Results, correct
from distill.tune.stats import (
    Difference,
    holm,
    paired_bootstrap,
    ranks,
    sample_differences,
    two_way_bootstrap,
)

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
        "are those of test: mean +- standard deviation over the seeds, in percent unless the "
        "metric is a loss. Marked val: test has no labels, and validation, by which settings and "
        "epochs were chosen, looks better than it should."
    )
    yield Heading("Scores")
    yield _score_table(results)
    plots.scores(results, folder / "scores.png")
    yield Image("scores", folder / "scores.png")
    if results.shared:
        yield Heading("Models that methods share")
        yield Grid(["model", "score"], [[name, text] for name, text in results.shared])
    yield Heading("Ranks")
    places = rank_rows(results)
    if places:
        yield _rank_table(results, places)
    if len(places) < len(results.methods):
        yield Paragraph("Only methods with a number for every task are ranked.")
    if about.baseline is not None:
        yield from _significance(results, about.baseline)
    yield Heading("Cost")
    yield _cost_table(results)
    yield Paragraph(
        "Parameters: with those that a method adds for training. Speed, of evaluation, and time "
        "are as measured beside the sweep's other runs; memory is the largest of all runs."
    )
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
    """Method -> mean over tasks, of methods that have a number for every task.

    None where a task's metric is a loss: it has no mean with others.
    """
    if len(results.tasks) > 1 and any(map(results.lower_is_better, results.tasks)):
        return {}
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


def _rank_table(results: Results, places: Mapping[str, Mapping[str, float]]) -> Grid:
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
    """Against the baseline, seed by seed: over test samples as well where the score is a mean of
    them. None if fewer than two values are paired.
    """
    shared = [seed for seed in cell.seeds if seed in baseline.seeds]
    mine, theirs = (_runs(each, shared) for each in (cell, baseline))
    if shared and mine is not None and theirs is not None:
        return two_way_bootstrap(sample_differences(mine, theirs))
    if len(shared) < 2:
        return None
    mine_of, theirs_of = (dict(zip(c.seeds, c.scores, strict=True)) for c in (cell, baseline))
    points = [mine_of[seed] - theirs_of[seed] for seed in shared]
    return replace(paired_bootstrap(points, "seeds"), seeds=tuple(points))


def _runs(cell: Cell, seeds: list[int]) -> list[dict[int, bool]] | None:
    """Which test samples were right, for each of the seeds; None where that is not the score."""
    runs = [correct(folder) for folder in cell.folders]
    known = [run for run in runs if run is not None]
    if not cell.test or len(known) < len(runs) or not _explain(known, cell.test):
        return None
    return [known[cell.seeds.index(seed)] for seed in seeds]


def _explain(runs: list[dict[int, bool]], scores: tuple[float, ...]) -> bool:
    """Whether the predictions' shares of right answers are the scores: an accuracy."""
    if len(runs) != len(scores):
        return False
    shares = (100.0 * mean(run.values()) for run in runs)
    return all(abs(a - b) < CLOSE for a, b in zip(shares, scores, strict=True))


def _significance(results: Results, baseline: str) -> Iterator[Part]:
    yield Heading(f"Against {baseline}")
    found: dict[str, Difference] = {}
    for (method, task), cell in sorted_cells(results):
        other = results.cells.get((baseline, task))
        if method != baseline and other is not None:
            against = difference(cell, other)
            if against is not None:
                found[f"{method}, {task}"] = against
    tested = {name: each.p for name, each in found.items() if each.p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    rows = []
    for name, each in found.items():
        told = [f"{each.mean:+.1f}", ", ".join(f"{points:+.1f}" for points in each.seeds)]
        if name in tested:
            told += [f"{each.low:+.1f} .. {each.high:+.1f}", f"{each.p:.4f}"]
            told += [f"{corrected[name]:.4f}"]
        else:
            told += ["-"] * 3
        rows.append([name, *told, each.drawn])
    head = ["method, task", "points", "of each seed", "95 % interval", "p", "p (Holm)", "drawn"]
    yield Grid(head, rows)
    yield Paragraph(
        "Paired bootstrap, 10,000 resamples, two-sided: method minus baseline of the same seed, "
        "on the same test samples. Seeds and samples are drawn again together; seeds alone where "
        "predictions do not explain the score, and then without interval and p below five of "
        f"them. p (Holm): corrected for the {len(tested)} comparisons of this table. Fewer than "
        "five seeds say little of how much runs vary: look at the differences of each seed as "
        "well, and claim no more than they agree on."
    )


def sorted_cells(results: Results) -> list[tuple[tuple[str, str], Cell]]:
    """Cells by method, then task, in the order of the file."""
    pairs = [(method, task) for method in results.methods for task in results.tasks]
    return [(pair, results.cells[pair]) for pair in pairs if pair in results.cells]


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
