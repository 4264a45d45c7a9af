"""Runs that mix two objectives, blank infilling and labelled tasks: how much each counts.

A micro-batch is of one of them. Each objective is a mean over its own rows of the whole optimizer
step, and counts as much as its part of the step's micro-batches. Were it one mean over all rows,
the few targets of labelled tasks would all but vanish among the others wherever a step has several
micro-batches, and --multi-task-ratio would depend on the number of ranks.

The log tells the loss of each kind of samples, exact over its interval: sums and counts are told.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from config.data import DataArgs
from config.training import TrainArgs
from data_utils.batch import Batch
from data_utils.block import KINDS
from distill.rows import Rows, count_rows

LABELLED = KINDS.index("multi-task")
MARK = "/labelled"  # on the names of that objective's masks


@dataclass(frozen=True)
class Counts:
    """Divisors of all row masks, for one optimizer step."""

    totals: Mapping[str, Tensor]  # name -> []
    labelled: Mapping[str, Tensor] | None = None  # of micro-batches of labelled tasks

    def times(self, factor: int) -> "Counts":
        """The counts where every row is there `factor` times."""
        return Counts({name: total * factor for name, total in self.totals.items()})

    def of(self, batch: Batch) -> "Counts":
        """Those of this micro-batch's objective."""
        return Counts(self.labelled) if self.labelled and is_labelled(batch) else self


def is_labelled(batch: Batch) -> bool:
    """Whether the micro-batch is one of labelled tasks. Reads `kinds`, best on the CPU."""
    return batch.kinds is not None and int(batch.kinds[0]) == LABELLED


def count_step(
    micro_batches: Sequence[Batch],
    masks: Sequence[Mapping[str, Tensor]],
    data: DataArgs,
    train: TrainArgs,
    device: torch.device | str,
) -> Counts:
    """Count the rows of an optimizer step: this rank's micro-batches, with their masks by name.

    One all-reduce. The part of an objective is counted in samples over those of a micro-batch, so
    that it does not matter how they are cut.
    """
    accumulation = train.gradient_accumulation_steps
    if data.multi_task_ratio == 0:
        return Counts(count_rows(masks, accumulation=accumulation, device=device))
    sizes = train.batch_size, data.multi_batch_size or train.batch_size
    marked = []
    for batch, own in zip(micro_batches, masks, strict=True):
        labelled = is_labelled(batch)
        own = {**own, "part": batch.weight / sizes[labelled]}
        zeros = {name: torch.zeros(1) for name in own}
        pair = (zeros, own) if labelled else (own, zeros)
        marked.append(pair[0] | {name + MARK: mask for name, mask in pair[1].items()})
    totals = count_rows(marked, accumulation=accumulation, device=device)
    every = totals["part"] + totals["part" + MARK]

    def divisors(mark: str) -> dict[str, Tensor]:
        share = totals["part" + mark] / every
        return {name: totals[name + mark] / share for name in masks[0]}

    return Counts(divisors(""), divisors(MARK))


def kind_terms(kinds: Tensor | None, losses: Tensor, rows: Rows) -> dict[str, Tensor]:
    """`Train/loss_<kind>` of the kinds in a batch: [2], nats summed and targets counted.

    kinds [b]: of the batch, best on the CPU; None: nothing is told. losses: hard losses of `rows`.
    """
    if kinds is None:
        return {}
    number = rows.num_samples
    sums = rows.mean(losses.detach(), keep_batch=True) * (rows.total / number)
    pairs = torch.stack([sums, rows.mask.reshape(number, -1).sum(1)])  # [2, b]
    terms = {}
    for kind in sorted(set(kinds.tolist())):
        chosen = (kinds == kind).to(pairs.device, pairs.dtype)
        terms[f"Train/loss_{KINDS[kind]}"] = (pairs * chosen).sum(1)
    return terms
