"""Which rows of a batch a loss is a mean over, and what that mean divides by.

A *row* is what one loss value belongs to: a position of a sequence, or a sample. Masked rows do
not count. The mean is exact over the whole optimizer step: it divides by the unmasked rows of all
micro-batches on all data-parallel ranks, over (micro-batches * ranks), because the engines
average over both. So any re-partition of a global batch gives the same gradient:

    sum_micro sum_rank  (sum_rows mask * x) / total  / (micro * ranks) = sum_all mask * x / N
    total = N / (micro * ranks)

Not as in the seed, which divides soft and intermediate losses by all rows of the micro-batch,
masked ones and padding included, and hard losses by the micro-batch's own (--compat=D3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

import mpu

PICK_BELOW = 0.75  # picking copies rows: worth it where it saves at least a quarter of the work
TINY = 1e-12  # an empty mask has sum 0: 0 / TINY is 0, not NaN


@dataclass(frozen=True)
class Rows:
    """The rows that count and their divisor; see the module."""

    mask: Tensor  # [b, s], [b * c, s] or [b] float, 1 on rows that count
    total: Tensor  # [] divisor of the sum over this micro-batch
    num_samples: int  # b, the length of a loss with keep_batch
    index: Tensor | None = None  # [n] unmasked places in mask.flatten(), where picking pays
    outside: Tensor | None = None  # as mask: rows that are masked and yet counted (D3)

    def pick(self, x: Tensor) -> Tensor:
        """[*mask.shape, ...] -> [n, ...], the unmasked rows; x itself when most rows count."""
        if self.index is None:
            return x
        return x.flatten(0, self.mask.dim() - 1).index_select(0, self.index)

    def mean(self, losses: Tensor, keep_batch: bool = False, masked: float = 0.0) -> Tensor:
        """Row losses, `[*mask.shape]` or picked `[n]` -> [] or, keep_batch, [b].

        `masked` is the value of a masked row where the seed counts it (D3).
        """
        picked = self.index is not None and losses.shape == self.index.shape
        mask = self.mask.flatten().index_select(0, self.index) if picked else self.mask
        weighted = losses * mask
        if not keep_batch:
            total = weighted.sum()
            if masked and self.outside is not None:
                total = total + masked * self.outside.sum()
            return total / self.total
        if picked:
            flat = weighted.new_zeros(self.mask.numel())
            weighted = flat.index_add(0, self.index, weighted)
        if masked and self.outside is not None:
            weighted = weighted.view(self.mask.shape) + masked * self.outside
        return weighted.reshape(self.num_samples, -1).sum(1) * (self.num_samples / self.total)

    def of_samples(self, x: Tensor) -> Tensor:
        """Each sample's own mean; 0 for one without rows.

        [*mask.shape, ...] or, of the picked rows, [n, ...] -> [b, ...]
        """
        mask, number = self.mask.flatten(), self.mask.numel() // self.num_samples
        places = torch.arange(len(mask), device=x.device)
        if self.index is not None and x.shape[: self.mask.dim()] != self.mask.shape:
            places, mask = self.index, mask.index_select(0, self.index)
        else:
            x = x.flatten(0, self.mask.dim() - 1)
        ones = [1] * (x.dim() - 1)
        sums = x.new_zeros(self.num_samples, *x.shape[1:])
        sums = sums.index_add(0, places // number, x * mask.view(-1, *ones))
        counts = self.mask.reshape(self.num_samples, -1).sum(1).clamp(min=1)
        return sums / counts.view(-1, *ones)

    def to(self, device: torch.device | str) -> "Rows":
        """The same rows on another device."""
        moved = (None if t is None else t.to(device) for t in (self.index, self.outside))
        return Rows(self.mask.to(device), self.total.to(device), self.num_samples, *moved)


def count_rows(
    micro_batches: Sequence[Mapping[str, Tensor]],
    *,
    accumulation: int,
    device: torch.device | str,
) -> dict[str, Tensor]:
    """Name -> divisor [] of every row mask, for one optimizer step. One all-reduce over dp ranks.

    `micro_batches`: this rank's masks by name. The engines divide by `accumulation`, the number
    that was configured, also where a step has fewer micro-batches.
    """
    names = sorted({name for masks in micro_batches for name in masks})
    sums = torch.stack(
        [
            torch.stack([masks[name].sum(dtype=torch.float64) for name in names])
            for masks in micro_batches
        ]
    ).sum(0)
    sums = sums.to(device)
    ranks = mpu.get_data_parallel_world_size()
    if ranks > 1:
        dist.all_reduce(sums, group=mpu.get_data_parallel_group())
    totals = (sums / (accumulation * ranks)).clamp(min=TINY).float()
    return dict(zip(names, totals.unbind(), strict=True))


def exact_rows(
    masks: Mapping[str, Tensor],
    totals: Mapping[str, Tensor],
    num_samples: int,
    device: torch.device | str = "cpu",
) -> dict[str, Rows]:
    """Rows that divide by the count of the whole step, on the device."""
    return {
        name: Rows(mask, totals[name], num_samples, worth_picking(mask)).to(device)
        for name, mask in masks.items()
    }


def seed_rows(masks: Mapping[str, Tensor], weight: Tensor) -> dict[str, Rows]:
    """D3: rows that divide by all rows of this micro-batch; a masked row still counts.

    `weight` [b]: a sample that only fills the batch is no part of it. `all` is added: every
    position of every real sample.
    """
    rows = {}
    for name, mask in masks.items():
        every = spread(weight, mask)
        total = every.sum().clamp(min=TINY)
        rows[name] = Rows(mask, total, len(weight), worth_picking(mask), every - mask)
        if name == "tokens":
            rows["all"] = Rows(every, total, len(weight))
    return rows


def masked_rows(every: Rows, mask: Tensor) -> Rows:
    """D3: of all rows only those under `mask` [b, s]; the others still count in the divisor."""
    mask = every.mask * mask
    return Rows(mask, every.total, every.num_samples, None, every.mask - mask)


def local_rows(mask: Tensor, num_samples: int) -> Rows:
    """D3: the seed's hard loss, a mean over the unmasked rows of this micro-batch."""
    return Rows(mask, mask.sum().clamp(min=TINY), num_samples, worth_picking(mask))


def spread(weight: Tensor, mask: Tensor) -> Tensor:
    """[b] -> the shape of the mask, [b], [b, s] or [b * c, s]: each row its sample's weight."""
    weight = weight.to(mask.dtype).repeat_interleave(mask.size(0) // len(weight))
    return weight.view(-1, *[1] * (mask.dim() - 1)).expand_as(mask)


def worth_picking(mask: Tensor) -> Tensor | None:
    """[n] places of the unmasked rows in mask.flatten(), or None when most rows count.

    Reads the mask's values: cheap on the CPU, where batches come from; a synchronisation on a GPU.
    """
    if mask.dim() < 2:
        return None
    index = mask.flatten().nonzero().squeeze(1)
    return index if len(index) < PICK_BELOW * mask.numel() else None
