"""Random tokens in place of, or beside, the data: --distill_random_data.

Soft labels can be learned on any input. `replace` puts random tokens in place of the batch's,
`dual` adds a copy of the batch with random tokens; positions, masks and targets stay, so hard
labels mean nothing on random rows.

    shuffle    the micro-batch's tokens in another order, across samples, padding included
    sample     uniform over the vocabulary, a function of (seed, iteration, sample)
"""

import dataclasses

import torch
from torch import Tensor

import mpu
from config import RunArgs
from data_utils.batch import Batch
from distill.context import Clock


class RandomData:
    """What the passes of a run see instead of their batch."""

    def __init__(self, run: RunArgs, num_tokens: int):
        """`num_tokens`: ids are drawn below it."""
        flags = run.distill
        self.mode, self.method = flags.distill_random_data, flags.distill_random_data_method
        self.passes = flags.random_passes
        self.seed, self.num_tokens = run.train.seed, num_tokens

    def __call__(self, batch: Batch, clock: Clock) -> tuple[Batch, int]:
        """The batch of this pass, and how often each sample is in it: 1, or 2 with `dual`."""
        if not self.mode or clock.repeat not in self.passes:
            return batch, 1
        tokens = self._sampled(batch, clock) if self.method == "sample" else None
        if tokens is None:
            tokens = self._shuffled(batch, clock)
        changed = dataclasses.replace(batch, tokens=tokens)
        if self.mode == "replace":
            return changed, 1
        other = changed.tensors()
        both = {name: torch.cat([x, other[name]]) for name, x in batch.tensors().items()}
        return dataclasses.replace(batch, **both), 2

    def _shuffled(self, batch: Batch, clock: Clock) -> Tensor:
        """Keyed by the micro-batch, which it depends on anyway; equal on model-parallel ranks."""
        key = (clock.iteration, clock.micro_step, clock.repeat, mpu.get_data_parallel_rank())
        generator = self._generator("shuffle", *key)
        order = torch.randperm(batch.tokens.numel(), generator=generator)
        return batch.tokens.flatten()[order.to(batch.tokens.device)].view_as(batch.tokens)

    def _sampled(self, batch: Batch, clock: Clock) -> Tensor:
        """Position by position the same for a sample, however the global batch is cut."""
        shape = batch.tokens.shape[1:]
        rows = [
            torch.randint(
                self.num_tokens,
                shape[::-1],  # positions first: padding only adds to them
                generator=self._generator("sample", clock.iteration, clock.repeat, sample),
            ).movedim(0, -1)
            for sample in batch.sample_ids.tolist()
        ]
        return torch.stack(rows).to(batch.tokens)

    def _generator(self, *words: int | str) -> torch.Generator:
        return torch.Generator().manual_seed(mpu.derive_seed(self.seed, "random data", *words))
