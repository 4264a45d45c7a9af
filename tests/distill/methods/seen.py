"""What both models compute on a batch, captured by hand: for formulas that know no method."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import mpu
from data_utils.batch import Batch
from distill.step import DistillStep

NAMES = ("layernorm_output", "tf_output", "attention_scores", "attention_probs", "value_layer")
NAMES += ("mixed_query_layer", "mixed_key_layer", "mixed_value_layer")


class Seen:
    """Captures of one model; `state(i)` is the hidden state after i blocks."""

    def __init__(self, model: torch.nn.Module, inputs: Sequence[Tensor], num_layers: int):
        layers = {i: dict.fromkeys(NAMES) for i in range(num_layers)}
        hook: dict = {"transformer": {"layers": layers, "output": None}}
        self.tensors: list[Tensor] = []
        self.outputs = mpu.hook_model(hook, self.tensors, model, *inputs)
        self.hook, self.num_layers = hook["transformer"], num_layers

    def layer(self, number: int, name: str) -> Tensor:
        """A tensor of block `number`, counted from 1."""
        return self.tensors[self.hook["layers"][number - 1][name]]

    def state(self, i: int) -> Tensor:
        """[b, s, h]"""
        if i == self.num_layers:
            return self.tensors[self.hook["output"]]
        return self.layer(i + 1, "layernorm_output")


def seen(step: DistillStep, batch: Batch, t_no: int = 0) -> tuple[Seen, Seen]:
    """Of the student, with gradient, and of a teacher."""
    inputs = step.task.inputs(batch)
    student = Seen(step.student.module, inputs, step.run.model.num_layers)
    with torch.no_grad():
        teacher = step.teachers[t_no]
        return student, Seen(teacher.module, inputs, step.run.teachers[t_no].num_layers)


def lengths(batch: Batch) -> dict[int, int]:
    """Row of the flattened batch -> its tokens; padded choices are left out."""
    positions = batch.position_ids.flatten(0, -3)[:, 0]
    counts = positions.gt(0).sum(1) + 1  # the first token has position 0
    real = torch.ones(len(counts)) if batch.choice_mask is None else batch.choice_mask.flatten()
    return {i: int(n) for i, n in enumerate(counts) if real[i]}


def mean_over_tokens(batch: Batch, losses: Callable[[int, int], Tensor]) -> Tensor:
    """`losses(row, length)` gives [length] numbers: the mean of all."""
    return torch.cat([losses(i, n) for i, n in lengths(batch).items()]).mean()


def kl_rows(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(softmax(teacher) || softmax(student)) over the last dim."""
    p, q = teacher.softmax(-1), student.softmax(-1)
    return (p * (p / q).log().nan_to_num(posinf=0.0, neginf=0.0)).sum(-1)
