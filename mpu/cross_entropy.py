"""Cross entropy of hard labels over a sharded vocabulary (arXiv 1909.08053), lean in memory.

    loss = log sum_j exp z_j - z_target        d loss / d z_j = softmax(z)_j - [j is the target]

With label smoothing e (Szegedy et al., 2016, arXiv 1512.00567) over the v words of all shards:

    loss = log sum_j exp z_j - (1 - e) z_target - e / v sum_j z_j

fp32 inside whatever comes in. Only the logits themselves and one number a row are kept for the
backward; probabilities exist for a chunk of rows at a time. The gradient is written once.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .initialize import get_model_parallel_rank, get_model_parallel_world_size
from .layers import local_ids
from .mappings import max_across, reduce_from_model_parallel_region

# Elements of a chunk's fp32 working copy: 4 MB, so that it stays near the processor.
_CHUNK_ELEMENTS = 1 << 20


def _row_chunks(logits: Tensor) -> Iterator[slice]:
    rows, width = logits.shape
    step = max(1, _CHUNK_ELEMENTS // max(1, width))
    if logits.is_cuda:
        step *= 16  # launches cost more than memory there: 64 MB
    return (slice(first, first + step) for first in range(0, rows, step))


class _VocabParallelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
        """[N, v/p], [N] -> [N]. Two all-reduces of one and of two numbers a row."""
        width, rank = logits.size(-1), get_model_parallel_rank()
        total = width * get_model_parallel_world_size()
        local, elsewhere = local_ids(target, rank * width, width, total)
        at_target = logits.gather(-1, local.unsqueeze(-1)).squeeze(-1).float()
        at_target = at_target.masked_fill(elsewhere, 0.0) * (1 - smoothing)
        normaliser = torch.empty_like(at_target)
        for rows in _row_chunks(logits):
            chunk = logits[rows].float()
            normaliser[rows] = torch.logsumexp(chunk, dim=-1)
            if smoothing:
                at_target[rows] += chunk.sum(-1) * (smoothing / total)
        if total > width:
            largest = max_across(normaliser)
            parts = torch.stack([(normaliser - largest).exp(), at_target])
            sum_exp, at_target = reduce_from_model_parallel_region(parts)
            normaliser = largest + sum_exp.log()
        ctx.save_for_backward(logits, normaliser, local, elsewhere)
        ctx.smoothing, ctx.total = smoothing, total
        return normaliser - at_target

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """(softmax - smoothed onehot) * grad of the row, for the rank's classes; no collective."""
        logits, normaliser, local, elsewhere = ctx.saved_tensors
        result = torch.empty_like(logits)
        onehot = grad.masked_fill(elsewhere, 0.0).unsqueeze(-1) * (1 - ctx.smoothing)
        for rows in _row_chunks(logits):
            probs = (logits[rows].float() - normaliser[rows].unsqueeze(-1)).exp_()
            if ctx.smoothing:
                probs -= ctx.smoothing / ctx.total
            probs *= grad[rows].unsqueeze(-1)
            probs.scatter_add_(-1, local[rows].unsqueeze(-1), -onehot[rows])
            result[rows] = probs
        return result, None, None


def vocab_parallel_cross_entropy(
    logits: Tensor, target: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Cross entropy of each position, in nats: [..., v/p], int64 [...] -> [...] fp32.

    `target` holds ids of the whole vocabulary; an id outside it raises (CPU) as an index error. The
    result is the same on every rank; the gradient of a rank's logits is its slice of the whole one.
    """
    rows = _VocabParallelCrossEntropy.apply(
        logits.flatten(0, -2), target.flatten(), label_smoothing
    )
    return rows.view(target.shape)
