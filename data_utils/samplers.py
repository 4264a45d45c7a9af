"""StepSampler: which samples make up which optimizer step.

The global batch of iteration k is a pure function of (seed, k). How it is cut into micro-batches,
accumulation steps and data-parallel ranks changes nothing but who computes what, so a run resumes
exactly, on any number of ranks.
"""

from collections.abc import Iterable, Iterator
from itertools import count

import numpy as np


class StepSampler:
    """Yields this rank's micro-batches, lists of sample indices: `accumulation` an iteration.

    num_samples: size of the data set, walked through in epochs; None: an endless stream, where
        iteration k takes the indices k * g ... (k + 1) * g - 1 (g samples a global batch).
    shuffle: a new order each epoch, keyed by (seed, epoch). It has no meaning for a stream.
    start_iteration: first iteration to yield. epochs, iterations: where to stop; None: never.

    In epoch mode the samples left for an epoch's last global batch are dealt out evenly, and all
    its micro-batches are as small as that allows: ceil(samples / (ranks * accumulation)) rows, the
    same on every rank. Rows that are still missing are fillers: `~index` (negative) of a sample of
    that batch, to be given weight 0.
    """

    def __init__(
        self,
        num_samples: int | None,
        micro_batch: int,
        accumulation: int = 1,
        dp_rank: int = 0,
        dp_size: int = 1,
        seed: int = 0,
        *,
        shuffle: bool = False,
        start_iteration: int = 0,
        epochs: int | None = None,
        iterations: int | None = None,
    ):
        assert min(micro_batch, accumulation) > 0, (micro_batch, accumulation)
        assert 0 <= dp_rank < dp_size, (dp_rank, dp_size)
        assert num_samples is None or num_samples > 0, "an empty data set has no batches"
        assert num_samples is not None or epochs is None, "a stream has no epochs"
        self.num_samples = num_samples
        self.micro_batch = micro_batch
        self.accumulation = accumulation
        self.dp_rank, self.dp_size = dp_rank, dp_size
        self.seed, self.shuffle = seed, shuffle
        self.start_iteration = start_iteration
        ends = [iterations] if iterations is not None else []
        if epochs is not None:
            ends.append(epochs * self.steps_per_epoch)
        self.stop_iteration = min(ends, default=None)
        self._order: tuple[int, np.ndarray] | None = None

    @property
    def global_batch_size(self) -> int:
        """Samples of one optimizer step over all ranks; an epoch's last one may have fewer."""
        return self.micro_batch * self.accumulation * self.dp_size

    @property
    def steps_per_epoch(self) -> int:
        """Iterations of one epoch."""
        assert self.num_samples is not None, "a stream has no epochs"
        return -(-self.num_samples // self.global_batch_size)

    @property
    def num_iterations(self) -> int | None:
        """Iterations that are left; None if there is no end."""
        if self.stop_iteration is None:
            return None
        return max(0, self.stop_iteration - self.start_iteration)

    def global_batch(self, iteration: int) -> list[int]:
        """The samples of an iteration over all ranks, without fillers."""
        size = self.global_batch_size
        if self.num_samples is None:
            return list(range(iteration * size, (iteration + 1) * size))
        epoch, step = divmod(iteration, self.steps_per_epoch)
        return self._epoch_order(epoch)[step * size : (step + 1) * size].tolist()

    def micro_batches(self, iteration: int) -> list[list[int]]:
        """This rank's rows of an iteration and fillers: [accumulation][at most micro_batch]."""
        rows = self.global_batch(iteration)
        parts = self.accumulation * self.dp_size
        size = -(-len(rows) // parts)
        batches = []
        for step in range(self.accumulation):
            mine = rows[step * self.dp_size + self.dp_rank :: parts]
            missing = size - len(mine)
            batches.append(mine + [~rows[i % len(rows)] for i in range(missing)])
        return batches

    def iterations(self) -> Iterable[int]:
        """Those that are left, in order."""
        start, stop = self.start_iteration, self.stop_iteration
        return count(start) if stop is None else range(start, stop)

    def __iter__(self) -> Iterator[list[int]]:
        for iteration in self.iterations():
            yield from self.micro_batches(iteration)

    def __len__(self) -> int:
        """Micro-batches that are left."""
        assert self.num_iterations is not None, "this sampler never ends"
        return self.num_iterations * self.accumulation

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            order = (
                np.random.default_rng((self.seed, epoch)).permutation(self.num_samples)
                if self.shuffle
                else np.arange(self.num_samples)
            )
            self._order = (epoch, order)
        return self._order[1]
