"""How unsure a student is of each sample: the entropy of its softmax, over its largest value.

u = H(softmax z) / ln c        0 sure, 1 unsure; c: the real choices, or the vocabulary
"""

import torch
from torch import Tensor

import mpu
from distill.agent import padded_mask
from distill.combiner import Combination
from distill.divergence import NOWHERE
from distill.losses import whole_width
from mpu.layout import Layout


def uncertainty(made: Combination, rows: str) -> Tensor:
    """u [b] in [0, 1], without gradient; of a language model its mean over these rows."""
    logits, ctx = made.logits.detach(), made.context
    width: Tensor | int = whole_width(logits, ctx.layout)
    found = ctx.first_rows(rows) if ctx.layout is Layout.SHARD_LAST else None
    if found is not None and logits.dim() == 3:
        logits = found.pick(logits)
    if ctx.class_mask is not None:
        logits, width = logits.masked_fill(ctx.class_mask == 0, NOWHERE), ctx.class_mask.sum(-1)
    u = _entropies(logits, ctx.layout) / torch.as_tensor(width).clamp(min=2).log()
    if found is not None:
        return found.of_samples(u)
    return u if u.dim() == 1 else u.mean(1)


def padded_uncertainty(made: Combination, *, every: bool, labels: bool) -> Tensor:
    """The seed's u [b] (MT): with gradient; a masked position has logits 0, so it counts as unsure.

    `every`: no position is masked; `labels`: those without a label are, instead of non-targets.
    """
    logits, ctx = made.logits, made.context
    mask = padded_mask(made, every=every, labels=labels)
    if mask is not None:
        logits = logits * mask[..., None]
    width = torch.tensor(float(max(2, whole_width(logits, ctx.layout))))
    u = _entropies(logits, ctx.layout) / width.log()
    return u.mean(1) if u.dim() > 1 else u


def _entropies(logits: Tensor, layout: Layout) -> Tensor:
    """[..., c] -> [...] in nats."""
    return mpu.entropy(mpu.log_softmax(logits, layout), layout)
