"""Structures that MGSKD compares: inner products of pairs, angles of triples, at three sizes.

Units are tokens or spans of a sequence, or the sequences of a micro-batch. A structure returns its
`sums` and `counts` for each sequence [b]; `relations.mean_of` makes a loss of them. A teacher
that is trained gets its gradient; which units are compared is chosen without.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.divergence import NOWHERE
from distill.relations import angles, inner_products, lean

CHUNK_ELEMENTS = 1 << 24  # of what is made for some heads at a time: 64 MB in fp32
SAME = 1e-12  # |x_i - x_j|^2 over |x_i|^2 + |x_j|^2, below which two samples are one


def pair_differences(
    student: Tensor, teacher: Tensor, mask: Tensor, num_heads: int
) -> tuple[Tensor, Tensor]:
    """Squared differences of inner products x_i . x_j / sqrt(d) in each head. -> [b], [b]

    [b, n, h] twice, mask [b, n]. From d x d matrices instead of n x n ones:

        |A A^T - B B^T|^2 = |A^T A|^2 + |B^T B|^2 - 2 |A^T B|^2

    in fp64, as the terms all but cancel where the student is good. Counts: heads times pairs of
    units, a unit with itself included.
    """
    sums = lean(_pair_sums, student, teacher, mask, num_heads)
    return sums, num_heads * mask.sum(1).square()


def triplet_differences(
    student: Tensor, teacher: Tensor, mask: Tensor, num_heads: int, k1: int, k2: int
) -> tuple[Tensor, Tensor]:
    """Smooth L1 of angles between units that the teacher attends to most. -> [b], [b]

    [b, n, h] twice, mask [b, n]. Vertices: the k1 units that get most attention; each one's points:
    the k2 others that it attends to most. Attention is the softmax of the teacher's inner products
    in each head, summed over heads. Angles are those of whole vectors. Counts: angles.
    """
    vertices, points = select(teacher, mask, num_heads, k1, k2)
    at = torch.arange(len(mask), device=mask.device)[:, None]
    on_vertex, on_point = mask[at, vertices], mask[at.unsqueeze(-1), points]
    on_point = on_point * (points != vertices.unsqueeze(-1)) * on_vertex.unsqueeze(-1)
    valid = on_point.unsqueeze(-1) * on_point.unsqueeze(-2)
    valid = valid * (points.unsqueeze(-1) != points.unsqueeze(-2))
    sums = lean(_triplet_sums, student, teacher, mask, vertices, points, valid)
    return sums, valid.sum((1, 2, 3))


@torch.no_grad()
def select(x: Tensor, mask: Tensor, num_heads: int, k1: int, k2: int) -> tuple[Tensor, Tensor]:
    """Vertices [b, k1] and the points of each [b, k1, k2]; see `triplet_differences`.

    Where there are fewer units, padding fills up: mask it.
    """
    size = mask.size(1)
    both = mask.unsqueeze(-1) * mask.unsqueeze(-2)
    heads = _heads(x, num_heads)
    attention = torch.zeros_like(both)
    step = max(1, CHUNK_ELEMENTS // max(1, both.numel()))
    for part in heads.split(step, 1):
        scores = part @ part.transpose(-1, -2) / math.sqrt(part.size(-1))
        scores = scores.masked_fill(both.unsqueeze(1) == 0, NOWHERE)
        attention += (scores.softmax(-1) * both.unsqueeze(1)).sum(1)
    received = attention.sum(1).masked_fill(mask == 0, -1.0)
    vertices = received.topk(min(k1, size), dim=-1).indices
    rows = attention.gather(1, vertices.unsqueeze(-1).expand(-1, -1, size))
    rows = rows.masked_fill(mask.unsqueeze(1) == 0, -1.0)
    rows = rows.scatter(-1, vertices.unsqueeze(-1), -1.0)
    return vertices, rows.topk(min(k2, size), dim=-1).indices


def sample_differences(
    student: Tensor, teacher: Tensor, mask: Tensor, num_heads: int
) -> tuple[Tensor, Tensor]:
    """Smooth L1 of angles between samples, in each head, by vertex. -> [b], [b]

    [b, h] twice, mask [b] of the samples that take part. Angles: cos(x_j - x_i, x_k - x_i) for all
    i, j, k. Counts: heads times pairs of samples.
    """
    number = len(mask)
    step = max(1, CHUNK_ELEMENTS // number**3)
    heads = (x.float().unflatten(-1, (num_heads, -1)).transpose(0, 1) for x in (student, teacher))
    own, target = heads
    parts = zip(own.split(step), target.split(step), strict=True)
    sums = sum(lean(_sample_rows, s, t, mask) for s, t in parts)
    return sums * mask, num_heads * mask.sum().square() * mask


def mean_of_tokens(x: Tensor, mask: Tensor) -> Tensor:
    """[b, s, h], [b, s] -> [b, h]; 0 where there are none."""
    mask = mask.to(x.dtype).unsqueeze(-1)
    return (x * mask).sum(1) / mask.sum(1).clamp(min=1)


def span_members(spans: Sequence[Sequence[int]], length: int) -> Tensor:
    """Lengths of each sequence's spans, from position 0 on -> [b, n, length]: 1 on members."""
    number = max(map(len, spans), default=0)
    owner = torch.full((len(spans), length), -1)
    for row, lengths in zip(owner, spans, strict=True):
        numbers = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths).long())
        row[: len(numbers)] = numbers
    return (owner.unsqueeze(1) == torch.arange(number)[:, None]).float()


def span_means(members: Tensor, x: Tensor) -> Tensor:
    """[b, n, s] or [1, n, s], [b, s, h] -> [b, n, h]; 0 for a span without members."""
    return members / members.sum(-1, keepdim=True).clamp(min=1) @ x.float()


def random_spans(length: int, number: int, generator: torch.Generator) -> list[int]:
    """Lengths of so many random spans that fill `length`: 1 each, the rest by |normal| shares.

    What rounding down leaves is given to the last spans, one each.
    """
    if number < 1:
        return []
    shares = torch.randn(number, generator=generator, dtype=torch.float64).abs()
    lengths = (shares / shares.sum() * (length - number)).long() + 1
    rest = length - int(lengths.sum())
    lengths[number - rest :] += 1
    return lengths.tolist()


def _heads(x: Tensor, number: int) -> Tensor:
    """[b, n, h] -> [b, heads, n, d], fp32."""
    return x.float().unflatten(-1, (number, -1)).transpose(1, 2)


def _pair_sums(student: Tensor, teacher: Tensor, mask: Tensor, num_heads: int) -> Tensor:
    a, b = (_heads(x, num_heads).double() for x in (student, teacher))
    a, b = (x * (mask[:, None, :, None] / x.size(-1) ** 0.25) for x in (a, b))
    own, target, between = (
        (x.transpose(-1, -2) @ y).square().sum((1, 2, 3)) for x, y in ((a, a), (b, b), (a, b))
    )
    return (own + target - 2 * between).float()


def _triplet_sums(
    student: Tensor, teacher: Tensor, mask: Tensor, vertices: Tensor, points: Tensor, valid: Tensor
) -> Tensor:
    own, target = (
        _chosen_angles(inner_products(x, mask), vertices, points) for x in (student, teacher)
    )
    losses = F.smooth_l1_loss(own, target, reduction="none")
    return (losses * valid).sum((1, 2, 3))


def _chosen_angles(products: Tensor, vertices: Tensor, points: Tensor) -> Tensor:
    """[b, n, n], [b, k1], [b, k1, k2] -> [b, k1, k2, k2]"""
    at = torch.arange(len(products), device=products.device)[:, None]
    own = products[at, vertices, vertices].unsqueeze(-1)
    to_vertex = products[at.unsqueeze(-1), vertices.unsqueeze(-1), points]
    pairs = products[at[..., None, None], points.unsqueeze(-1), points.unsqueeze(-2)]
    return angles(pairs, to_vertex, own, points == vertices.unsqueeze(-1))


def _sample_rows(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """[heads, b, d] twice -> [b]: sums over heads and pairs of points, for each vertex."""
    own, target = (_sample_angles(x) for x in (student, teacher))
    other = ~torch.eye(len(mask), dtype=torch.bool, device=mask.device)
    apart = other * mask
    valid = apart.unsqueeze(-1) * apart.unsqueeze(-2) * other  # a vertex and two other points
    losses = F.smooth_l1_loss(own, target, reduction="none")
    return (losses * valid).sum((0, 2, 3))


def _sample_angles(x: Tensor) -> Tensor:
    """[heads, b, d] -> [heads, b, b, b]: the vertex, then two points."""
    difference = x.unsqueeze(1) - x.unsqueeze(2)  # [., vertex, point, d]
    squares = difference.square().sum(-1, keepdim=True)
    scale = x.detach().square().sum(-1, keepdim=True)
    nowhere = squares.detach() <= SAME * (scale.unsqueeze(1) + scale.unsqueeze(2))
    inverse = squares.masked_fill(nowhere, 1.0).rsqrt().masked_fill(nowhere, 0.0)
    units = difference * inverse
    return units @ units.transpose(-1, -2)
