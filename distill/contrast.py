"""COS-NCE of LRC-BERT: states of a sequence against those of all other sequences."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

import mpu
from distill.context import LossContext


def angular_distances(
    layers: Iterable[tuple[Tensor, Tensor]], ctx: LossContext, *, gather: bool = False
) -> tuple[Tensor, Tensor]:
    """How far each sequence of the student is from each one of the teacher, and which are real.

        g_ij = 1 - mean over layers and positions of cos(student_i, teacher_j)

    Layers of [b, s, h] twice -> [b, B], [B]. Positions: where both have a token (under D3 all).
    B = b; with `gather` the teacher's sequences of all data-parallel ranks (all-gather, without
    gradient), padded with some that are not real.
    """
    layers = list(layers)
    own, real = _masks(layers[0][0], ctx)
    others = _gathered(own) if gather else own
    count = own @ others.T
    total = torch.zeros_like(count)
    for student, teacher in layers:
        s, t = (F.normalize(x.float(), dim=-1) * own[..., None] for x in (student, teacher))
        t = _gathered(t) if gather else t
        total = total + s.flatten(1) @ t.flatten(1).T
    real = mpu.gather_from_data_parallel_region(real) if gather else real
    return 1 - total / (count.clamp(min=1) * len(layers)), real > 0


def cos_nce(distances: Tensor, real: Tensor, first: int = 0) -> Tensor:
    """A loss of each sequence, 0 to 4. [b, B], [B] -> [b]

        l_i = 1 + g_ii - mean_{j != i} (g_ij - g_ii) / 2

    j: real sequences. Row i belongs to column first + i. 0 where there is no other sequence.
    """
    columns = torch.arange(len(real), device=real.device)
    own = columns[first : first + len(distances), None]
    same = distances.gather(1, own)
    others = real & (columns != own)
    number = others.sum(1)
    gap = ((distances - same) * others).sum(1) / (2 * number.clamp(min=1))
    return (1 + same.squeeze(1) - gap) * (number > 0)


def first_own(real: Tensor, *, gather: bool = False) -> int:
    """Where this rank's sequences start among [B]."""
    if not gather:
        return 0
    return mpu.get_data_parallel_rank() * (len(real) // mpu.get_data_parallel_world_size())


def per_token_unit(gradient: Tensor) -> Tensor:
    """Each token's gradient over its length. [b, s, h] -> the same; all 0 if one is not finite.

    A gradient of zeros stays zeros. Tiny and huge ones keep their direction.
    """
    gradient = gradient.float()
    finite = torch.isfinite(gradient).all()
    largest = gradient.abs().amax(-1, keepdim=True)
    unit = F.normalize(gradient / largest.where(largest > 0, 1.0), dim=-1)
    return torch.where(finite, unit, 0.0)


def _masks(like: Tensor, ctx: LossContext) -> tuple[Tensor, Tensor]:
    """[b, s] 1 on positions that count and [b] 1 on sequences that do."""
    rows = ctx.first_rows("sequences")
    real = like.new_ones(len(like)) if rows is None else rows.mask.float()
    if ctx.keys is None:
        return like.new_ones(like.shape[:2]), real
    return ctx.keys[:, 0, 0].float(), real


def _gathered(x: Tensor) -> Tensor:
    """[n, s, ...] of every rank -> [B, s, ...], cut to this rank's length: beyond it is nothing."""
    return mpu.gather_from_data_parallel_region(x)[:, : x.size(1)]
