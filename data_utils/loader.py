"""StepLoader: a data set and a sampler as lists of batches, one list an optimizer step."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader

from data_utils.batch import Batch
from data_utils.mixed import AlternatingSampler, MixedSampler
from data_utils.samplers import StepSampler


class StepLoader:
    """Iterating yields list[Batch]: this rank's micro-batches of one optimizer step.

    `dataset[i]` is a sample and must be a pure function of i; `dataset[~i]` is the same sample
    with weight 0. `collate` makes a Batch of a list of samples. With `num_workers` processes the
    order stays that of the sampler, and the global torch generator is not touched. Every
    iteration starts anew at the sampler's start_iteration.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Callable[[Sequence[Any]], Batch],
        sampler: StepSampler | MixedSampler | AlternatingSampler,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
    ):
        self.sampler = sampler
        self.dataset = dataset
        self._loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            generator=torch.Generator().manual_seed(0),
        )

    def __iter__(self) -> Iterator[list[Batch]]:
        batches = iter(self._loader)
        while step := list(islice(batches, self.sampler.accumulation)):
            yield step

    def __len__(self) -> int:
        """Optimizer steps that are left."""
        return len(self.sampler) // self.sampler.accumulation
