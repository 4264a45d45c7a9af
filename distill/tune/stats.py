"""Statistics of a report: ranks, and the paired bootstrap against a baseline."""

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
    unit: str  # what was drawn again: samples, or seeds
    number: int  # of them


def paired_bootstrap(
    differences: "Sequence[float] | np.ndarray", unit: str, seed: int = 0
) -> Difference:
    """Draw paired differences again, with replacement (Efron and Tibshirani, 1993, chapter 16).

    p: twice the smaller share of resampled means on one side of zero, those at zero counted as
    half; never below 1 / RESAMPLES. ValueError of a single difference.
    """
    import numpy as np

    values = np.asarray(differences, dtype=np.float64)
    number = len(values)
    if number < 2:
        raise ValueError(f"{number} paired differences have no spread")
    draw = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    block = max(1, 2_000_000 // max(1, number))  # resamples at a time: 16 MB of indices
    for begin in range(0, RESAMPLES, block):
        size = min(block, RESAMPLES - begin)
        means[begin : begin + size] = values[draw.integers(0, number, (size, number))].mean(1)
    below = np.mean(means < 0) + np.mean(means == 0) / 2
    p = 2 * min(below, 1 - below)
    low, high = np.percentile(means, [2.5, 97.5])
    bounded = float(min(1.0, max(p, 1 / RESAMPLES))) if number >= ENOUGH else None
    return Difference(float(values.mean()), float(low), float(high), bounded, unit, number)


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
) -> list[float]:
    """For each sample: how much more often the method's seeds were right, in points.

    ValueError: runs that were scored on different samples.
    """
    names = set(method[0])
    if any(set(run) != names for run in (*method, *baseline)):
        raise ValueError("runs were scored on different samples")
    return [
        100.0 * (mean(run[i] for run in method) - mean(run[i] for run in baseline))
        for i in sorted(names)
    ]
