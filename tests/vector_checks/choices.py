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
from distill.layer_maps import uniform
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


def _layers(step: DistillStep, found: dict[str, Any]) -> None:
    """Of each teacher; its first and last state are not drawn, recorded or not."""
    drawn = [
        [layer for layer in layers if 0 < layer < teacher.num_layers]
        for layers, teacher in zip(found["teacher_layers"], step.run.teachers, strict=True)
    ]
    _set("draw_layers", lambda _: drawn.__getitem__)(step, found)


def _spans(found: dict[str, Any]) -> Callable[[int], list[int]]:
    return lambda length: found["span_lengths"].tolist()


def _layer(found: dict[str, Any]) -> Callable[[], int]:
    return lambda: found["student_alignment_layer"]


def _masks(found: dict[str, Any]) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(where a state is put, where it comes from)"""
    pair = found["interchange_mask"].bool(), found["dual_interchange_mask"].bool()
    return lambda tokens, targets: pair


def _blocks(step: DistillStep, found: dict[str, Any]) -> None:
    """`s0 t0.2 t0.3` -> [None, 0]: for each student block the teacher that stands in for it."""
    own, depths = step.run.model.num_layers, [t.num_layers for t in step.run.teachers]
    words, drawn = list(found["executed_layers"]), []
    for block in range(own):
        word = words.pop(0)
        drawn.append(None if word == f"s{block}" else int(word[1:].partition(".")[0]))
        if drawn[-1] is not None:
            ends = [0, *uniform(own, depths[drawn[-1]])]
            del words[: ends[block + 1] - ends[block] - 1]
    assert not words, f"more layers than the student stands for: {words}"
    step.method.draw_blocks = lambda: drawn


def _tokens(step: DistillStep, found: dict[str, Any]) -> None:
    """The ids that the student saw in each pass."""
    random_data = step._random_data
    mode = random_data.mode

    def recorded(batch: Batch, clock: Clock) -> Tensor:
        ids = found[f"student_input_ids_call{clock.repeat}"]
        return ids[len(ids) // 2 :] if mode == "dual" else ids

    random_data._sampled = random_data._shuffled = recorded


def _survival(step: DistillStep, found: dict[str, Any]) -> None:
    """A uniform number for each teacher of the average."""
    step.comparison.combiner.draw_survival = lambda number: found["survival_draws"]


def _actions(step: DistillStep, found: dict[str, Any]) -> None:
    """A uniform number for each sample and teacher of RL-KD."""
    step.comparison.combiner.draw = lambda shape: found["uniform_draw"]


USES: dict[str, Callable[[DistillStep, dict[str, Any]], None]] = {
    "teacher_layers": _layers,
    "span_lengths": _set("draw_spans", _spans),
    "student_alignment_layer": _set("draw_layer", _layer),
    "interchange_mask": _set("draw_masks", _masks),
    "executed_layers": _blocks,
    "student_input_ids_call0": _tokens,
    "survival_draws": _survival,
    "uniform_draw": _actions,
}
