"""What the step hands to a method's intermediate loss, and what a batch says of its rows."""

import dataclasses

import torch
from torch import Tensor

from data_utils.batch import Batch
from distill.capture import Captured, hidden
from distill.context import LossContext
from distill.step import DistillStep
from tasks.base import token_mask
from tests.distill.runs import take


@dataclasses.dataclass
class Handed:
    """One call of `inter_loss`."""

    student: Captured
    teacher: Captured
    context: LossContext
    loss: float


def handed(step: DistillStep, batch: Batch) -> list[Handed]:
    """One for each teacher of each pass, backward included."""
    calls, function = [], type(step.method).inter_loss

    def record(s_vars, t_vars, s_hook, t_hook, **kwargs):
        loss = function(step.method, s_vars, t_vars, s_hook, t_hook, **kwargs)
        pair = [Captured(hook, list(x)) for hook, x in ((s_hook, s_vars), (t_hook, t_vars))]
        calls.append(Handed(*pair, LossContext(**kwargs), float(loss.detach())))
        return loss

    step.method.inter_loss = record
    step.output = take(step, batch)
    del step.method.inter_loss
    return calls


def states(captured: Captured, num_layers: int, layers: list[int]) -> list[Tensor]:
    """Hidden states [b, s, h] after so many blocks."""
    return [captured[hidden(i, num_layers)].detach() for i in layers]


def tokens(batch: Batch) -> Tensor:
    """[b * c, s] 1 on tokens; padded choices are left out."""
    positions = batch.position_ids.reshape(-1, *batch.position_ids.shape[-2:])
    mask = token_mask(positions)
    if batch.choice_mask is not None:
        mask = mask * batch.choice_mask.reshape(-1, 1)
    return mask


def pooled(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the marked positions, row by row; over all without a mask."""
    if mask is None:
        mask = torch.ones(x.shape[:2])
    rows = [x[i, mask[i] > 0].mean(0) if mask[i].any() else x[i, 0] * 0 for i in range(len(x))]
    return torch.stack(rows)
