"""Relative positions of Transformer-XL (Dai et al., 2019, arXiv 1901.02860).

    score_ij = ((q_i + u) k_j + (q_i + w) (W_r R(i - j) + b_r)) / sqrt(d)

R(k) [h] = (sin k f, cos k f), f_t = 10000^(-2t / h): of the distance k of a key before its query,
which is negative behind it. u, w (`r_w_bias`, `r_r_bias` [n, d]) belong to all layers, W_r
(`attention.relative`, h -> h) to one. There are no tables of positions, and no block positions.

Not as in the seed: a key behind its query (in GLM's context) has its own distance; there the shift
of scores brings those of another query to it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import mpu


class Sinusoids(nn.Module):
    """R of distances. The frequencies are in checkpoints, as in the seed's."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.register_buffer("inv_freq", _frequencies(width))

    def forward(self, length: int, memory: int) -> Tensor:
        """Distances mem + s - 1 down to -(s - 1), [mem + 2s - 1, h], at least in fp32."""
        first, last, frequencies = memory + length - 1, -length, self.inv_freq
        if frequencies.dtype not in (torch.float32, torch.float64):  # rounded: angles would be off
            frequencies = _frequencies(self.width).to(frequencies.device)
        distances = torch.arange(first, last, -1, device=frequencies.device)
        angles = torch.outer(distances.to(frequencies.dtype), frequencies)
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


def _frequencies(width: int) -> Tensor:
    """f_t, fp32 [h / 2]."""
    return 10000.0 ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)


@dataclass(frozen=True)
class Relative:
    """What all layers share: R, and the rank's heads of u and w."""

    sinusoids: Tensor  # [mem + 2s - 1, h]
    r_w_bias: Tensor  # [n/p, d]
    r_r_bias: Tensor  # [n/p, d]


def relative_scores(query: Tensor, keys: Tensor) -> Tensor:
    """Products of queries [b, n/p, s, d] and keys of all distances [n/p, mem + 2s - 1, d].

    -> [b, n/p, s, mem + s]: of query i and key j that of their distance, mem + i - j.
    """
    length = query.size(2)
    every = query @ keys.transpose(-1, -2)
    row = torch.arange(length, device=query.device)[:, None]
    column = torch.arange(every.size(-1) - length + 1, device=query.device)
    places = (length - 1 - row + column).expand(*every.shape[:2], -1, -1)
    return every.gather(-1, places)


def head_biases(num_heads: int, head_size: int) -> nn.Parameter:
    """The rank's heads of u or w, 0: [n/p, d]."""
    return nn.Parameter(torch.zeros(mpu.divide(num_heads, _ranks()), head_size))


def _ranks() -> int:
    return mpu.get_model_parallel_world_size()
