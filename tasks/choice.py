"""ChoiceTask: pick one of several answers or classes. All that needs no data set."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_utils.batch import Batch
from model.build import HeadSpec
from tasks.base import Task, TaskShape, as_float, token_mask, weighted

AT_ONCE = 10  # choices of a sample that evaluation scores in one forward
OF_CHOICES = (
    *("tokens", "position_ids", "attention_mask"),
    *("target_ids", "logit_mask", "choice_mask"),
)
FAR = 10000.0  # what the seed subtracts from the score of a choice that only fills the batch


class ChoiceTask(Task):
    """Scores z [b, c], labels y [b]; c choices, some perhaps fillers (`choice_mask`)."""

    vocab_parallel = False
    hard_rows = "samples"
    metric_names = ("accuracy",)

    def __init__(
        self,
        name: str,
        head: HeadSpec,
        loss: str = "cross_entropy",
        shape: TaskShape = TaskShape(),  # noqa: B008 - frozen
    ):
        """loss: a name of LOSSES. shape: only combiners of several teachers may need it."""
        assert loss in LOSSES, (loss, list(LOSSES))
        self.name, self.head, self.loss, self._shape = name, head, loss, shape

    @property
    def shape(self) -> TaskShape:
        """Choices of a sample, and whether each is a row."""
        return self._shape

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """The head's positional inputs; a choice dimension is flattened by the head."""
        context = (batch.tokens, batch.position_ids, batch.attention_mask)
        if self.head.kind == "classification":
            return context
        if self.head.kind == "single_token":
            return (*context, batch.target_ids)
        if self.head.kind == "multi_token":
            parts = () if batch.segments is None else (batch.segments,)
            return (*context, batch.target_ids, batch.logit_mask, *parts)
        answers = (batch.dec_tokens, batch.dec_position_ids)
        return (*context, *answers, batch.dec_target_ids, batch.dec_logit_mask)

    def hard_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """z [b, c] -> [b]; 0 for samples without a label."""
        known = batch.labels >= 0
        mask = as_float(batch.choice_mask, logits)
        losses = LOSSES[self.loss](logits.float(), batch.labels.clamp(min=0), mask)
        return torch.where(known, losses, torch.zeros_like(losses))

    def row_masks(self, batch: Batch) -> dict[str, Tensor]:
        """`samples` [b]; `tokens` [b * c, s]; with cloze heads also `answers` [b * c, s].

        Rows of filler choices are 0.
        """
        positions = batch.position_ids.reshape(-1, *batch.position_ids.shape[-2:])
        rows, real = batch.weight, batch.real_rows()
        if real is not None and batch.tokens.dim() == 3:
            rows = (batch.weight[:, None] * real).reshape(-1)
        masks = {
            "samples": batch.weight.float(),
            "tokens": weighted(token_mask(positions), rows),
        }
        if batch.logit_mask is not None:
            answers = batch.logit_mask.reshape(-1, batch.logit_mask.shape[-1]).float()
            masks["answers"] = weighted(answers, rows)
        return masks

    def answers(self, model: nn.Module, batch: Batch) -> list[Any]:
        """Predictions; of many choices ten at a time, which bounds the memory of evaluation."""
        several = batch.tokens.dim() == 3 and batch.segments is None
        if not several or batch.tokens.size(1) <= AT_ONCE:
            return super().answers(model, batch)
        scores = []
        for start in range(0, batch.tokens.size(1), AT_ONCE):
            outputs = model(*self.inputs(_choices(batch, start, start + AT_ONCE)))
            scores.append(outputs[0] if isinstance(outputs, tuple) else outputs)
        return self.predict(torch.cat(scores, 1), batch)

    def predict(self, logits: Tensor, batch: Batch) -> list[int]:
        """Index of the best real choice of each sample."""
        scores = logits.float()
        if batch.choice_mask is not None:
            scores = scores.masked_fill(batch.choice_mask == 0, float("-inf"))
        return scores.argmax(-1).tolist()

    def metrics(self, predictions: Mapping[int, int], split: str = "val") -> dict[str, float]:
        """Nothing: only a task with data knows the labels."""
        return {}


def _choices(batch: Batch, start: int, stop: int) -> Batch:
    """The batch with some of its choices only."""
    values = ((name, getattr(batch, name)) for name in OF_CHOICES)
    part = {name: value[:, start:stop] for name, value in values if value is not None}
    return dataclasses.replace(batch, **part)


def _pushed(z: Tensor, real: Tensor) -> Tensor:
    return z * real - FAR * (1.0 - real)


def _of_label(z: Tensor, y: Tensor) -> Tensor:
    return z.gather(-1, y[:, None]).squeeze(-1)


def cross_entropy(z: Tensor, y: Tensor, real: Tensor) -> Tensor:
    """[b, c] -> [b]: -log softmax(z)[y] over the real choices, in nats."""
    return F.cross_entropy(_pushed(z, real), y, reduction="none")


def hinge(z: Tensor, y: Tensor, real: Tensor) -> Tensor:
    """[b, c] -> [b]: sum over the other choices of max(0, 1 + z_c - z_y)."""
    z = _pushed(z, real)
    return (1.0 + z - _of_label(z, y)[:, None]).clamp(min=0.0).sum(-1) - 1.0


def generative(z: Tensor, y: Tensor, real: Tensor) -> Tensor:
    """[b, c] -> [b]: -z_y, the answer's own log-likelihood."""
    return -_of_label(z, y)


def mix(z: Tensor, y: Tensor, real: Tensor) -> Tensor:
    """[b, c] -> [b]: generative + cross entropy."""
    return generative(z, y, real) + cross_entropy(z, y, real)


def adapet(z: Tensor, y: Tensor, real: Tensor) -> Tensor:
    """[b, c] -> [b]: the other real choices' scores - z_y (ADAPET, arXiv 2103.11955)."""
    return (z * real).sum(-1) - 2.0 * _of_label(z, y)


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "cross_entropy": cross_entropy,
    "hinge": hinge,
    "generative": generative,
    "mix": mix,
    "adapet": adapet,
}
