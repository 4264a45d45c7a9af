"""Divergence of softmax rows, lean in memory: what `kl` and `soft_cross_entropy` are made of.

    p = softmax(t / T), q = softmax(s / T)       s, t [N, v/p], of student and teacher

    kl            sum p (log p - log q)          cross entropy    -sum p log q
    d / d s_j     (q_j - p_j) / T                of both, the rank's own entries

fp32 inside whatever comes in. Only s, t and two numbers a row are kept for the backward;
probabilities exist for a chunk of rows at a time, and the gradient is written once. A teacher that
is trained needs its own gradient: that goes through autograd (`soft_rows_by_autograd`).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mpu.layout import Layout
from mpu.mappings import max_across, reduce_from_model_parallel_region
from mpu.softmax import log_softmax, sum_last

NOWHERE = -1e30  # logit of an entry that takes no part: exp is 0, and differences stay finite
# Elements of a chunk's fp32 working copy: 1 MB, so that it stays near the processor.
CHUNK_ELEMENTS = 1 << 18


def soft_rows(
    student: Tensor,
    teacher: Tensor,
    *,
    layout: Layout = Layout.REPLICATED,
    columns: Tensor | None = None,
    temperature: float = 1.0,
    cross_entropy: bool = False,
) -> Tensor:
    """[..., v/p] twice, before the softmax -> [...] in nats, fp32. No gradient for the teacher.

    `columns` [..., v/p]: True on entries that take part. SHARD_LAST: three all-reduces of one or
    two numbers a row forward (maximum, sum, result), none backward. Results are then the same on
    every rank; the gradient is the rank's slice.
    """
    assert not teacher.requires_grad, "a trained teacher needs its gradient"
    flat = (None if x is None else x.reshape(-1, x.size(-1)) for x in (student, teacher, columns))
    sharded = layout is Layout.SHARD_LAST
    rows = _SoftRows.apply(*flat, sharded, float(temperature), cross_entropy)
    return rows.view(student.shape[:-1])


def soft_rows_by_autograd(
    student: Tensor,
    teacher: Tensor,
    *,
    layout: Layout = Layout.REPLICATED,
    columns: Tensor | None = None,
    temperature: float = 1.0,
    cross_entropy: bool = False,
) -> Tensor:
    """The same, with a gradient for the teacher too, and in more memory."""
    pair = [x.float() / temperature for x in (student, teacher)]
    if columns is not None:
        pair = [x.where(columns.bool(), NOWHERE) for x in pair]
    log_q, log_p = (log_softmax(x, layout) for x in pair)
    inside = -log_q if cross_entropy else log_p - log_q
    return sum_last(log_p.exp() * inside, layout)


class _SoftRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        columns: Tensor | None,
        sharded: bool,
        temperature: float,
        cross_entropy: bool,
    ) -> Tensor:
        """[N, v/p] twice -> [N]; keeps two numbers a row."""
        pair = student, teacher
        size = [2, len(student)]
        normalisers = torch.empty(size, dtype=torch.float32, device=student.device)
        result = torch.empty_like(normalisers[0])
        if sharded:
            for rows in _chunks(student):
                for kept, x in zip(normalisers, pair, strict=True):
                    torch.logsumexp(_logits(x, columns, rows, temperature), -1, out=kept[rows])
            normalisers = _over_ranks(normalisers)
        for rows in _chunks(student):
            log_q, log_p = (_logits(x, columns, rows, temperature) for x in pair)
            if not sharded:
                for kept, x in zip(normalisers, (log_q, log_p), strict=True):
                    torch.logsumexp(x, -1, out=kept[rows])
            log_q = log_q - normalisers[0, rows, None]
            log_p = log_p - normalisers[1, rows, None]
            inside = log_q.neg_() if cross_entropy else torch.sub(log_p, log_q, out=log_q)
            torch.sum(inside.mul_(log_p.exp_()), -1, out=result[rows])
        ctx.save_for_backward(student, teacher, columns, normalisers)
        ctx.temperature = temperature
        return reduce_from_model_parallel_region(result) if sharded else result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """[N] -> the student's gradient [N, v/p]."""
        student, teacher, columns, normalisers = ctx.saved_tensors
        result = torch.empty_like(student)
        scale = grad / ctx.temperature
        for rows in _chunks(student):
            q, p = (
                (_logits(x, columns, rows, ctx.temperature) - kept[rows, None]).exp_()
                for x, kept in zip((student, teacher), normalisers, strict=True)
            )
            torch.mul(q.sub_(p), scale[rows, None], out=q)
            result[rows] = q
        return result, None, None, None, None, None


def _chunks(x: Tensor) -> Iterator[slice]:
    rows, width = x.shape
    step = max(1, CHUNK_ELEMENTS // max(1, width))
    if x.is_cuda:
        step *= 64  # launches cost more than memory there
    return (slice(first, first + step) for first in range(0, rows, step))


def _logits(x: Tensor, columns: Tensor | None, rows: slice, temperature: float) -> Tensor:
    """A chunk in fp32, over T, with NOWHERE for what takes no part. Never a view of x's data."""
    chunk = x[rows].float() / temperature
    return chunk if columns is None else chunk.masked_fill_(~columns[rows].bool(), NOWHERE)


def _over_ranks(local: Tensor) -> Tensor:
    """log sum exp of each rank's classes -> of all classes. [2, N] -> [2, N]"""
    largest = max_across(local)
    return largest + reduce_from_model_parallel_region((local - largest).exp()).log()
