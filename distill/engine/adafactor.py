"""Adafactor (Shazeer, Stern, 2018, arXiv 1804.04235), right for parameters cut over ranks.

For a matrix W [n, m] with gradient G, at step t = 1, 2, ...:

    beta = 1 - t^-0.8                       squares of gradients are forgotten more and more slowly
    R = beta R + (1 - beta) mean_columns(G^2 + 1e-30)     [n]
    C = beta C + (1 - beta) mean_rows(G^2 + 1e-30)        [m]
    U = G / sqrt(R C / mean(R)),  then U / max(1, RMS(U))
    a = lr max(1e-3, RMS(W))
    W = W - a (U + weight_decay W)

Vectors keep the mean of each square itself. There is no first moment. The state is n + m numbers
where AdamW's is 2 n m. Of a shard the means and RMS are those of the whole parameter: the ranks
have equal parts of it, so that a mean of their means is the mean.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

import mpu
from mpu.mappings import all_reduced

DECAY = 0.8
SMALLEST_SQUARE = 1e-30
SMALLEST_SCALE = 1e-3
CLIP = 1.0  # largest RMS of an update before its rate


class Adafactor(torch.optim.Optimizer):
    """As transformers' with relative_step=False, which the seed uses: the rate is a schedule's."""

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        for group in self.param_groups:
            for p in group["params"]:
                cut = mpu.partition_of(p)
                assert cut is None or cut.dim >= max(0, p.dim() - 2), (cut, p.shape)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """One update of every parameter that has a gradient. All-reduces for shards."""
        assert closure is None, "losses are not computed anew"
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad.float(), group["lr"], group["weight_decay"])

    def _update(self, p: nn.Parameter, grad: Tensor, lr: float, weight_decay: float) -> None:
        state, cut = self.state[p], _cut_dim(p)
        whole = cut is not None
        if not state:
            state["step"] = 0
            for name, shape in _state_shapes(p).items():
                state[name] = torch.zeros(shape, device=p.device)
        state["step"] += 1
        keep = 1.0 - state["step"] ** -DECAY
        squares = grad.square() + SMALLEST_SQUARE
        if p.dim() < 2:
            state["squares"].lerp_(squares, 1.0 - keep)
            update = grad * state["squares"].rsqrt()
        else:
            rows, columns = squares.mean(-1), squares.mean(-2)
            state["rows"].lerp_(_over_ranks(rows, cut == p.dim() - 1), 1.0 - keep)
            state["columns"].lerp_(_over_ranks(columns, cut == p.dim() - 2), 1.0 - keep)
            mean = _over_ranks(state["rows"].mean(-1, keepdim=True), cut == p.dim() - 2)
            update = grad * (state["rows"] / mean).rsqrt().unsqueeze(-1)
            update = update * state["columns"].rsqrt().unsqueeze(-2)
        update = update / (_rms(update, whole) / CLIP).clamp(min=1.0)
        rate = lr * _rms(p.float(), whole).clamp(min=SMALLEST_SCALE)
        p.sub_((update + weight_decay * p) * rate)


def _cut_dim(p: Tensor) -> int | None:
    """The dimension along which the ranks have parts of p; None where each has all of it."""
    cut = mpu.partition_of(p)
    return None if cut is None or mpu.get_model_parallel_world_size() == 1 else cut.dim


def _state_shapes(p: Tensor) -> dict[str, torch.Size]:
    if p.dim() < 2:
        return {"squares": p.shape}
    return {"rows": p.shape[:-1], "columns": p.shape[:-2] + p.shape[-1:]}


def _over_ranks(mean: Tensor, cut: bool) -> Tensor:
    """The mean over all ranks' parts of what was averaged; itself where nothing was cut."""
    if not cut:
        return mean
    ranks = mpu.get_model_parallel_world_size()
    return all_reduced(mean, mpu.get_model_parallel_group()) / ranks


def _rms(x: Tensor, cut: bool) -> Tensor:
    """[] root of the mean square of all of a parameter."""
    return _over_ranks(x.square().mean(), cut).sqrt()
