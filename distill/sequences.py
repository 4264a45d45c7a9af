"""One vector and one loss a sequence: for methods that compare pooled states.

Rows are the `sequences` of `LossContext`: padded choices and fillers do not count.
"""

from torch import Tensor

from distill.context import LossContext


def mean_over_tokens(x: Tensor, ctx: LossContext) -> Tensor:
    """Mean over the positions that are tokens (under D3 over all). [b * c, s, h] -> [b * c, h]

    A sequence without any token gives zeros.
    """
    x = x.float()
    if ctx.keys is None:
        return x.mean(1)
    mask = ctx.keys[:, 0, 0, :, None].to(x.dtype)
    return (x * mask).sum(1) / mask.sum(1).clamp(min=1)


def mean_over_sequences(losses: Tensor, ctx: LossContext) -> Tensor:
    """A loss of each sequence -> their mean. [b * c] -> [] or, ctx.keep_batch, [b]"""
    rows = ctx.first_rows("sequences")
    if rows is not None:
        return rows.mean(losses, ctx.keep_batch)
    return losses if ctx.keep_batch else losses.mean()


def sum_over_sequences(losses: Tensor, ctx: LossContext) -> Tensor:
    """A loss of each sequence -> their sum. [b * c] -> [], or the sum of each sample [b]"""
    rows = ctx.first_rows("sequences")
    if rows is not None:
        divisor = rows.num_samples if ctx.keep_batch else 1
        return rows.mean(losses, ctx.keep_batch) * rows.total / divisor
    return losses if ctx.keep_batch else losses.sum()
