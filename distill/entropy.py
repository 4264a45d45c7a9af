"""How unsure a student is of each sample: the entropy of its softmax, over its largest value.

u = H(softmax z) / ln c        0 sure, 1 unsure; c: the real choices, or the vocabulary
"""

from collections.abc import Iterator

import torch
from torch import Tensor

import mpu
from distill.agent import padded_mask
from distill.combiner import Combination
from distill.context import LossContext
from distill.divergence import NOWHERE
from distill.lazy_logits import Logits, Planned
from distill.losses import whole_width
from distill.vocab_rows import OtherRows
from mpu.layout import Layout


def uncertainty(made: Combination, rows: str) -> Tensor:
    """u [b] in [0, 1], without gradient; of a language model its mean over these rows."""
    logits, ctx = made.lazy_logits, made.context
    width: Tensor | int = whole_width(logits, ctx.layout)
    found = ctx.first_rows(rows) if ctx.layout is Layout.SHARD_LAST else None
    with torch.no_grad():
        if isinstance(logits, Logits):
            entropies = logits.rows(ENTROPY, None, found, weight=0.0)
        else:
            if found is not None and logits.dim() == 3:
                logits = found.pick(logits)
            if ctx.class_mask is not None:
                logits = logits.masked_fill(ctx.class_mask == 0, NOWHERE)
                width = ctx.class_mask.sum(-1)
            entropies = _entropies(logits, ctx.layout)
        u = entropies.detach() / torch.as_tensor(width).clamp(min=2).log()
    if found is not None:
        return found.of_samples(u)
    return u if u.dim() == 1 else u.mean(1)


def padded_uncertainty(made: Combination, *, every: bool, labels: bool) -> Tensor:
    """The seed's u [b] (MT): with gradient; a masked position has logits 0, so it counts as unsure.

    `every`: no position is masked; `labels`: those without a label are, instead of non-targets.
    """
    logits, ctx = made.lazy_logits, made.context
    mask = padded_mask(made, every=every, labels=labels)
    most = torch.tensor(float(max(2, whole_width(logits, ctx.layout)))).log()
    if isinstance(logits, Logits):
        entropies = logits.rows(ENTROPY, weight=0.0)
        entropies = entropies if mask is None else torch.where(mask > 0, entropies, most)
    else:
        entropies = _entropies(logits if mask is None else logits * mask[..., None], ctx.layout)
    u = entropies / most
    return u.mean(1) if u.dim() > 1 else u


def soft_weight(u: Tensor, rank: int, number: int) -> Tensor:
    """[b] -> [b]: of the teacher of this rank among so many; over the teachers their mean is 1."""
    if number == 1:
        return torch.ones_like(u)
    weights = [u + (1 - 2 * u) * k / (number - 1) for k in range(number)]
    return number * weights[rank] / sum(weights)


def _entropies(logits: Tensor, layout: Layout) -> Tensor:
    """[..., c] -> [...] in nats."""
    return mpu.entropy(mpu.log_softmax(logits, layout), layout)


def _of_words(logits: Tensor, teacher: None) -> Tensor:
    """[r, v/p] -> [r]"""
    return _entropies(logits, Layout.SHARD_LAST)


ENTROPY = OtherRows(_of_words, teacher=None)  # of a student's lazy logits


def planned_entropies(ctx: LossContext, rows: str | None) -> Iterator[Planned]:
    """What either will ask lazy logits for, of these rows or of all."""
    if ctx.layout is Layout.SHARD_LAST:
        yield Planned(ENTROPY, None if rows is None else ctx.first_rows(rows), 0.0)
