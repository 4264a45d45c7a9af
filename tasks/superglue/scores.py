"""Scorer: predictions of a split -> its official scores, and the file of an official submission."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tasks.superglue.splits import Splits

if TYPE_CHECKING:
    from tasks.superglue.pvp.base import PVP


class Scorer:
    """Of one task. A prediction is the index that a sample's answer has among its choices."""

    def __init__(self, pvp: "PVP", splits: Splits):
        self.pvp, self.splits = pvp, splits

    def metrics(self, predictions: Mapping[int, int], split: str) -> dict[str, float]:
        """Scores of a whole split, in percent; {} if it has no labels.

        Under W29 those in the seed's units.
        """
        dataset = self.splits(split)
        if dataset is None or not dataset.labelled:
            return {}
        missing = len(dataset) - len(predictions)
        assert not missing, f"{missing} of {len(dataset)} predictions of {split} are missing"
        chosen = [predictions[i] for i in range(len(dataset))]
        scores = self.pvp.scores(chosen, dataset)
        if not self.pvp.options.w29:
            return scores
        seed = self.pvp.seed_fractions
        return {name: x / 100.0 if name in seed else x for name, x in scores.items()}

    def submission(
        self, predictions: Mapping[int, int], split: str
    ) -> tuple[str, list[str]] | None:
        """Name and lines of the file that the task's official server takes; None without one."""
        if not self.pvp.submits:
            return None
        dataset = self.splits(split)
        assert dataset is not None, split
        assert len(predictions) == len(dataset), (len(predictions), len(dataset))
        chosen = [predictions[i] for i in range(len(dataset))]
        return self.pvp.submission_file(), self.pvp.submission_lines(chosen, dataset)
