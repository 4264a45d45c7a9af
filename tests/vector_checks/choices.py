"""What the seed drew at random in a run, put in place of what a method would draw.

Every method with draws of its own has one small function for each kind of draw; that is what is
replaced on the instance. The recorded values come from expected.json (`choice`) and
expected.safetensors (`run<i>.choice.*`).
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from data_utils.batch import Batch
from distill.context import Clock
from distill.step import DistillStep


def use_choices(step: DistillStep, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Let the step and its method draw what was recorded."""
    found = {**(values or {}), **tensors}
    for name, use in USES.items():
        if name in found:
            use(step, found)


def _set(name: str, draw: Callable[[dict[str, Any]], Callable[..., Any]]) -> Callable[..., None]:
    """A use that replaces the method's function `name`, or that of a mix's part that has it."""

    def use(step: DistillStep, found: dict[str, Any]) -> None:
        owners = [m for m in step.method.modules() if hasattr(m, name)]
        assert owners, f"the case has draws for {name}, which the method does not have"
        for owner in owners:
            setattr(owner, name, draw(found))

    return use


def _layers(found: dict[str, Any]) -> Callable[[int], list[int]]:
    return lambda t_no: found["teacher_layers"][t_no]


def _spans(found: dict[str, Any]) -> Callable[[int], list[int]]:
    return lambda length: found["span_lengths"].tolist()


def _layer(found: dict[str, Any]) -> Callable[[], int]:
    return lambda: found["student_alignment_layer"]


def _masks(found: dict[str, Any]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """(where a state is put, where it comes from)"""
    pair = found["interchange_mask"].bool(), found["dual_interchange_mask"].bool()
    return lambda token_mask: pair


def _blocks(found: dict[str, Any]) -> Callable[[], list[int | None]]:
    """`s0 t0.2 t0.3` -> [None, 0]: for each student layer the teacher that stands in for it."""

    def draw_of(step_layers: list[str], number: int, group: int) -> list[int | None]:
        drawn: list[int | None] = []
        position = 0
        while len(drawn) < number:
            word = step_layers[position]
            drawn.append(None if word.startswith("s") else int(word[1:].partition(".")[0]))
            position += 1 if word.startswith("s") else group
        return drawn

    layers = found["executed_layers"]
    return lambda num_layers, num_teacher: draw_of(layers, num_layers, num_teacher // num_layers)


def _tokens(step: DistillStep, found: dict[str, Any]) -> None:
    """The ids that the student saw in each pass."""
    random_data = step._random_data
    mode = random_data.mode

    def recorded(batch: Batch, clock: Clock) -> Tensor:
        ids = found[f"student_input_ids_call{clock.repeat}"]
        return ids[len(ids) // 2 :] if mode == "dual" else ids

    random_data._sampled = random_data._shuffled = recorded


USES: dict[str, Callable[[DistillStep, dict[str, Any]], None]] = {
    "teacher_layers": _set("draw_layers", _layers),
    "span_lengths": _set("draw_spans", _spans),
    "student_alignment_layer": _set("draw_layer", _layer),
    "interchange_mask": _set("draw_masks", _masks),
    "executed_layers": _set("draw_blocks", _blocks),
    "student_input_ids_call0": _tokens,
}
