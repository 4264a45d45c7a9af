"""Statistics of a report: ranks, and paired bootstraps against a baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 10_000
ENOUGH = 5  # units to draw from, for a p that means anything: n of one sign alone give 2 / n^n


@dataclass(frozen=True)
class Difference:
    """A method minus the baseline, in points: mean, 95 % interval, two-sided p."""

    mean: float
    low: float
    high: float
    p: float | None  # None of fewer than ENOUGH units
    drawn: str  # what was drawn again, as `3 seeds`
    seeds: tuple[float, ...] = ()  # the difference of each seed


def paired_bootstrap(differences: "Sequence[float] | np.ndarray", unit: str) -> Difference:
    """Draw paired differences again, with replacement (Efron and Tibshirani, 1993, chapter 16).

    p: twice the smaller share of resampled means on one side of zero, those at zero counted as
    half; never below 1 / RESAMPLES. ValueError of a single difference.
    """
    import numpy as np

    values = np.asarray(differences, dtype=np.float64)
    number = len(values)
    if number < 2:
        raise ValueError(f"{number} paired differences have no spread")
    means = _resampled(values[None], np.random.default_rng(0))
    p = _two_sided(means) if number >= ENOUGH else None
    low, high = np.percentile(means, [2.5, 97.5])
    return Difference(float(values.mean()), float(low), float(high), p, f"{number} {unit}")


def two_way_bootstrap(differences: "np.ndarray") -> Difference:
    """Draw seeds and samples again, each with replacement: both were chance (Owen, 2007,
    arXiv 0712.1111: means of crossed factors; a little wide rather than too narrow).

    differences: [seeds, samples], in points. p as above; None of fewer than ENOUGH samples.
    ValueError of a single sample.
    """
    import numpy as np

    seeds, number = differences.shape
    if number < 2:
        raise ValueError(f"{number} paired differences have no spread")
    means = _resampled(differences, np.random.default_rng(0))
    p = _two_sided(means) if number >= ENOUGH else None
    low, high = np.percentile(means, [2.5, 97.5])
    drawn = f"{number} samples, {seeds} seed{'s' if seeds > 1 else ''}"
    by_seed = tuple(map(float, differences.mean(1)))
    return Difference(float(differences.mean()), float(low), float(high), p, drawn, by_seed)


def _resampled(values: "np.ndarray", draw: "np.random.Generator") -> "np.ndarray":
    """Means of rows and columns that are drawn again: [seeds, samples] -> [RESAMPLES]."""
    import numpy as np

    seeds, number = values.shape
    columns, means = np.ascontiguousarray(values.T), np.empty(RESAMPLES)
    block = max(1, 2_000_000 // (number * seeds))  # resamples at a time: 16 MB
    for begin in range(0, RESAMPLES, block):
        size = min(block, RESAMPLES - begin)
        by_seed = columns[draw.integers(0, number, (size, number))].mean(1)
        drawn = draw.integers(0, seeds, (size, seeds))
        means[begin : begin + size] = np.take_along_axis(by_seed, drawn, 1).mean(1)
    return means


def _two_sided(means: "np.ndarray") -> float:
    import numpy as np

    below = np.mean(means < 0) + np.mean(means == 0) / 2
    return float(min(1.0, max(2 * min(below, 1 - below), 1 / RESAMPLES)))


def holm(values: Sequence[float]) -> list[float]:
    """p of several comparisons, such that one false finding among all is rare (Holm, 1979)."""
    found, largest = [0.0] * len(values), 0.0
    for place, i in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, (len(values) - place) * values[i]))
        found[i] = largest
    return found


def ranks(scores: Mapping[str, float], *, lower_is_better: bool = False) -> dict[str, float]:
    """1 for the best; those that are equal share the mean of their places."""
    sign = 1 if lower_is_better else -1
    ordered = sorted(scores, key=lambda name: sign * scores[name])
    found = {}
    for name in ordered:
        places = [i for i, other in enumerate(ordered, 1) if scores[other] == scores[name]]
        found[name] = mean(places)
    return found


def sample_differences(
    method: Sequence[Mapping[int, bool]], baseline: Sequence[Mapping[int, bool]]
) -> "np.ndarray":
    """For each seed and sample, in points: 100 if only the method was right, -100 if only the
    baseline was, else 0. Runs of the same seed stand at the same place. -> [seeds, samples]

    ValueError: runs that were scored on different samples.
    """
    import numpy as np

    names = sorted(method[0])
    if any(set(run) != set(names) for run in (*method, *baseline)):
        raise ValueError("runs were scored on different samples")
    mine, theirs = (np.array([[run[i] for i in names] for run in each], dtype=np.float64)
                    for each in (method, baseline))  # fmt: skip
    return 100.0 * (mine - theirs)
