"""Relations between representations: cosines of pairs, angles of triples. What CKD compares.

    cosine (i, j)      x_i . x_j / (|x_i| |x_j|)
    angle (i; j, k)    cos(x_j - x_i, x_k - x_i),  0 if j or k is i (or where x_i is)

Angles are made of inner products, so that no difference of vectors is stored: O(n w^2) numbers for
n vertices with w points each, not O(n w h). Vectors are centred first. That changes no angle, and
keeps what matters of them in fp32.

Every relation returns two tensors, its `sums` and `counts` over what one row compares; `mean_of`
makes a loss of them. What a relation needs between is computed again in the backward pass, so that
one layer at a time is held. Hidden states are whole on every rank: nothing is communicated. A
teacher that is trained gets its gradient, too.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from distill.context import LossContext
from distill.divergence import soft_rows, soft_rows_by_autograd
from distill.rows import TINY, Rows

SAME = 1e-6  # |x_i - x_j|^2 over |x_i|^2 + |x_j|^2, below which fp32 knows no direction


def rows_of(ctx: LossContext, name: str, states: Tensor) -> Rows:
    """The context's `tokens` or `sequences`; called by hand without any: all of [b, s, h]."""
    rows = ctx.first_rows(name)
    if rows is not None:
        return rows
    shape = states.shape[: 1 if name == "sequences" else 2]
    mask = states.new_ones(shape, dtype=torch.float32)
    if ctx.token_mask is not None:
        mask = mask * (ctx.token_mask[:, 0] if name == "sequences" else ctx.token_mask)
    return Rows(mask, mask.sum().clamp(min=TINY), len(mask))


def mean_of(
    sums: Tensor, counts: Tensor, rows: Rows, *, pooled: bool = False, keep_batch: bool = False
) -> Tensor:
    """Mean over rows of sums / counts, both shaped as the rows' mask. -> [] or, keep_batch, [b]

    0 in a row that has nothing to compare. `pooled` (D3): sum of sums / sum of counts of this
    micro-batch, whose rows then weigh as much as they have counts.
    """
    if not pooled:
        return rows.mean(sums / counts.clamp(min=1), keep_batch)
    number = rows.mask.sum().clamp(min=TINY)
    every = (counts * rows.mask).sum().clamp(min=1)
    return Rows(rows.mask, number, rows.num_samples).mean(sums * (number / every), keep_batch)


def lean(function: Callable[..., Tensor], *inputs: object) -> Tensor:
    """The function's result; for the backward pass only its inputs are kept."""
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def cosines(x: Tensor) -> Tensor:
    """[..., n, h] -> [..., n, n], fp32."""
    x = F.normalize(x.float(), dim=-1)
    return x @ x.transpose(-1, -2)


def inner_products(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Of centred vectors: [..., n, h] -> [..., n, n], fp32. `mask` [..., n]: which ones to centre.

    The centre gets no gradient: no angle depends on it.
    """
    x = x.float()
    weight = torch.ones_like(x[..., :1]) if mask is None else mask.to(x.dtype).unsqueeze(-1)
    with torch.no_grad():
        centre = (x * weight).sum(-2, keepdim=True) / weight.sum(-2, keepdim=True).clamp(min=1)
    x = x - centre
    return x @ x.transpose(-1, -2)


def angles(pairs: Tensor, to_vertex: Tensor, own: Tensor, is_vertex: Tensor) -> Tensor:
    """Angles at a vertex between w points, from inner products. -> [..., w, w], fp32.

    `pairs` [..., w, w] of points, `to_vertex` [..., w] of points and vertex, `own` [..., 1] of the
    vertex with itself, `is_vertex` [..., w] True on points that are the vertex.
    """
    squares = pairs.diagonal(dim1=-2, dim2=-1)
    distance = squares + own - 2 * to_vertex
    nowhere = is_vertex | (distance.detach() <= SAME * (squares + own).detach())
    inverse = distance.masked_fill(nowhere, 1.0).rsqrt().masked_fill(nowhere, 0.0)
    inside = pairs - to_vertex.unsqueeze(-1) - to_vertex.unsqueeze(-2) + own.unsqueeze(-1)
    return inside * inverse.unsqueeze(-1) * inverse.unsqueeze(-2)


# CKD. Hidden states of K layers, each [b, s, h] -> sums and counts [b, s] for each token.


def word_distances(
    student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor
) -> tuple[Tensor, Tensor]:
    """KL of a token's softmax over its cosines to the other tokens; sums over layers.

    Counts: layers times tokens of the sequence (the token itself included, as in the seed).
    """
    size = mask.size(1)
    others = (mask > 0)[:, None] & ~torch.eye(size, dtype=torch.bool, device=mask.device)
    sums = sum(lean(_distance_rows, s, t, others) for s, t in zip(student, teacher, strict=True))
    return sums * mask, len(student) * mask * mask.sum(1, keepdim=True)


def word_angles(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    mask: Tensor,
    window: int,
    *,
    clamped: bool = False,
) -> tuple[Tensor, Tensor]:
    """Squared differences of angles at a token between tokens of its window; sums over layers.

    Counts: layers times pairs of tokens in the window. `clamped` (D3): a position beyond the
    padded sequence is its first or last one, and padding in the window counts as tokens.
    """
    size, device = mask.size(1), mask.device
    centre = torch.arange(size, device=device).unsqueeze(1)
    points = centre + torch.arange(window, device=device) - window // 2
    inside = (points >= 0) & (points < size)
    points = points.clamp(0, size - 1)
    weight = torch.ones_like(mask)[:, points] if clamped else mask[:, points] * inside
    sums = sum(
        lean(_window_rows, s, t, mask, points, points == centre, weight)
        for s, t in zip(student, teacher, strict=True)
    )
    return sums * mask, len(student) * mask * weight.sum(-1).square()


def layer_distances(
    student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor
) -> tuple[Tensor, Tensor]:
    """KL of the softmax over a token's cosines between one layer and the others; sums over layers.

    Counts: pairs of layers, equal ones included, as in the seed.
    """
    number = len(student)
    others = ~torch.eye(number, dtype=torch.bool, device=mask.device)

    def rows(*states: Tensor) -> Tensor:
        return _distance_rows(*_by_token(states), others).sum(-1)

    return lean(rows, *student, *teacher) * mask, mask * number**2


def layer_angles(
    student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Squared differences of a token's angles at a layer between two layers; sums over layers.

    Counts: triples of layers.
    """
    number = len(student)

    def rows(*states: Tensor) -> Tensor:
        own, target = (all_angles(inner_products(x)) for x in _by_token(states))
        return (own - target).square().sum((-3, -2, -1))

    return lean(rows, *student, *teacher) * mask, mask * number**3


def all_angles(products: Tensor) -> Tensor:
    """Inner products [..., n, n] -> angles [..., n, n, n]: the vertex, then two points."""
    own = products.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    vertex = torch.eye(products.size(-1), dtype=torch.bool, device=products.device)
    return angles(products.unsqueeze(-3), products, own, vertex)


def _by_token(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """States [b, s, h] of the student's layers, then of the teacher's -> [b, s, K, h] of each."""
    half = len(states) // 2
    return torch.stack(states[:half], 2).float(), torch.stack(states[half:], 2).float()


def _distance_rows(student: Tensor, teacher: Tensor, others: Tensor) -> Tensor:
    """[..., n, h] twice -> [..., n] KL over the cosines that `others` [..., n, n] marks."""
    own, target = cosines(student), cosines(teacher)
    compare = soft_rows_by_autograd if target.requires_grad else soft_rows
    return compare(own, target, columns=others.expand_as(own))


def _window_rows(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    points: Tensor,
    is_vertex: Tensor,
    weight: Tensor,
) -> Tensor:
    """[b, s, h] twice -> [b, s]; points [s, w] of each token, weight [b, s, w] of its points."""
    own, target = (
        _window_angles(inner_products(x, mask), points, is_vertex) for x in (student, teacher)
    )
    square = (own - target).square() * weight.unsqueeze(-1) * weight.unsqueeze(-2)
    return square.sum((-2, -1))


def _window_angles(products: Tensor, points: Tensor, is_vertex: Tensor) -> Tensor:
    """[b, s, s], [s, w] -> [b, s, w, w]"""
    pairs = products[:, points.unsqueeze(-1), points.unsqueeze(-2)]
    to_vertex = products[:, torch.arange(len(points), device=points.device).unsqueeze(1), points]
    own = products.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    return angles(pairs, to_vertex, own, is_vertex)
