"""Mixture: micro-batches of a second stream of samples in place of some of the first.

Whether a micro-batch is of the second stream follows from the seed, the iteration and its place
among the global batch's micro-batches: the same on every model-parallel rank and after resuming.
Ranks and accumulation steps are places alike, so a run may exchange one for the other.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from data_utils.block import BlockSample
from data_utils.samplers import StepSampler

SECOND = 1 << 48  # index of the second stream's first sample


@dataclass(frozen=True)
class Mixture:
    """ratio: fraction of micro-batches of the second stream. batch_size: their samples.

    datasets: name of a stream ("train", "valid") -> its second data set.
    """

    ratio: float
    batch_size: int
    datasets: Mapping[str, Any]


class MixedDataset:
    """Samples of the first data set, from SECOND on those of the second; `~i` has weight 0."""

    def __init__(self, first: Any, second: Any):
        self.first, self.second = first, second

    def __getitem__(self, index: int) -> BlockSample:
        number = index if index >= 0 else ~index
        if number < SECOND:
            return self.first[index]
        sample = self.second[number - SECOND]
        sample.index, sample.weight = number, float(index >= 0)
        return sample


class MixedSampler:
    """A StepSampler's micro-batches, some of them of the second stream.

    The samples that these replace are drawn by nobody.
    """

    def __init__(self, sampler: StepSampler, mixture: Mixture, seed: int):
        self.sampler, self.mixture, self.seed = sampler, mixture, seed

    @property
    def accumulation(self) -> int:
        """Micro-batches of a rank in one optimizer step."""
        return self.sampler.accumulation

    def micro_batches(self, iteration: int) -> list[list[int]]:
        """This rank's rows of an iteration: [accumulation][rows]."""
        batches = self.sampler.micro_batches(iteration)
        ranks, size = self.sampler.dp_size, self.mixture.batch_size
        for step in range(len(batches)):
            place = step * ranks + self.sampler.dp_rank
            if self.is_second(iteration, place):
                start = SECOND + (iteration * len(batches) * ranks + place) * size
                batches[step] = list(range(start, start + size))
        return batches

    def is_second(self, iteration: int, place: int) -> bool:
        """Whether this one of the micro-batches of all ranks is of the second stream."""
        draw = Random(f"{self.seed}/mixture/{iteration}/{place}").random()
        return draw < self.mixture.ratio

    def __iter__(self) -> Iterator[list[int]]:
        for iteration in self.sampler.iterations():
            yield from self.micro_batches(iteration)

    def __len__(self) -> int:
        return len(self.sampler)


def mix(
    dataset: Any, sampler: StepSampler, mixture: Mixture | None, stream: str, seed: int
) -> tuple[Any, StepSampler | MixedSampler]:
    """Data set and sampler of a stream, with those of the mixture where it has this stream."""
    if mixture is None or stream not in mixture.datasets:
        return dataset, sampler
    mixed = MixedDataset(dataset, mixture.datasets[stream])
    return mixed, MixedSampler(sampler, mixture, seed)


class AlternatingSampler:
    """A StepSampler's steps, some of them whole of a second view of the same samples.

    Which ones follows from (seed, iteration) alone, so that all ranks agree and runs resume.
    Sample i of epoch e is i + e * num_samples of the second data set, which can differ by epoch.
    """

    def __init__(self, sampler: StepSampler, share: float, seed: int):
        """`share`: fraction of steps of the second view."""
        self.sampler, self.share, self.seed = sampler, share, seed

    @property
    def accumulation(self) -> int:
        """Micro-batches of a rank in one optimizer step."""
        return self.sampler.accumulation

    @property
    def steps_per_epoch(self) -> int:
        """Iterations of one epoch."""
        return self.sampler.steps_per_epoch

    @property
    def stop_iteration(self) -> int | None:
        """Where iterations end."""
        return self.sampler.stop_iteration

    def is_second(self, iteration: int) -> bool:
        """Whether the step is one of the second view."""
        return Random(f"{self.seed}/alternating/{iteration}").random() < self.share

    def micro_batches(self, iteration: int) -> list[list[int]]:
        """This rank's rows of an iteration and fillers: [accumulation][rows]."""
        batches = self.sampler.micro_batches(iteration)
        if not self.is_second(iteration):
            return batches
        assert self.sampler.num_samples is not None, "a stream has no epochs"
        start = SECOND + iteration // self.steps_per_epoch * self.sampler.num_samples
        return [[start + i if i >= 0 else ~(start + ~i) for i in rows] for rows in batches]

    def __iter__(self) -> Iterator[list[int]]:
        for iteration in self.sampler.iterations():
            yield from self.micro_batches(iteration)

    def __len__(self) -> int:
        return len(self.sampler)
