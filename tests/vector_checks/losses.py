"""Losses in isolation: the seed's CustomLoss calls, and the structures of CKD and MGSKD."""

import dataclasses
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.losses import cosine_distance, kl, mse, soft_cross_entropy
from distill.relations import (
    layer_angles,
    layer_distances,
    mean_of,
    word_angles,
    word_distances,
)
from distill.rows import Rows, local_rows, seed_rows
from distill.triplets import (
    mean_of_tokens,
    pair_differences,
    sample_differences,
    triplet_differences,
)
from mpu.softmax import entropy, log_softmax
from tests.vector_checks.common import Result, read_json, read_tensors

# The seed's CustomLoss ------------------------------------------------------------------------------

KNOWN = {"keep_batch", "input_mask", "mask", "parallel"}  # parallel: nothing at one process
SHAPED = {"mask1": "mask", "maskbool": "mask"}  # the mask with a last axis, and as bool
FLATTENED = re.compile(r"(\w+)\*(\w+), (\w+)\*\2 flattened to \(b\*s, d\)")


@dataclasses.dataclass
class Call:
    """A call of the seed, in our words."""

    student: Tensor
    teacher: Tensor
    rows: Rows
    keep_batch: bool
    temperature: float


def check_custom_loss(case: Path) -> list[Result]:
    """Every recorded call; one that cannot be translated is a failure."""
    result = Result(case.name)
    inputs, expected = (
        read_tensors(case, name) for name in ("inputs.safetensors", "expected.safetensors")
    )
    calls = read_json(case, "expected.json")["calls"]
    result.exact("calls", sorted(expected), sorted(_names(calls)))
    for recorded in calls:
        name = f"{recorded['id']} {recorded['fn']}"
        call = _translate(recorded, inputs)
        actual = FUNCTIONS[recorded["fn"]](call)
        actual.sum().backward()
        where = str(recorded["id"])
        result.values(f"{name} in json", actual, recorded["value"])
        result.values(name, actual, expected[f"{where}.value"])
        grad = call.student.grad
        result.gradient(name, grad, expected[f"{where}.grad_x"].view_as(grad))
    return [result]


def _names(calls: list[dict[str, Any]]) -> list[str]:
    return [f"{call['id']}.{part}" for call in calls for part in ("value", "grad_x")]


def _translate(recorded: dict[str, Any], inputs: dict[str, Tensor]) -> Call:
    options = dict(recorded["kwargs"])
    unknown = set(options) - KNOWN
    assert not unknown, f"{recorded['id']}: unknown options {unknown}"
    flattened = FLATTENED.fullmatch(recorded["input"])
    names = recorded["input"].split(",")
    if flattened:
        names, options["input_mask"] = (flattened[1], flattened[3]), flattened[2]
    student, teacher = (inputs[name].clone() for name in names)
    if flattened:
        student, teacher = student.flatten(0, -2), teacher.flatten(0, -2)
    shape = student.shape[:-1]
    of_inputs, of_losses = (_mask(options.get(k), inputs, shape) for k in ("input_mask", "mask"))
    return Call(
        student=student.requires_grad_(),
        teacher=teacher,
        rows=_rows(of_inputs, of_losses),
        keep_batch=options.get("keep_batch", False),
        temperature=recorded["T"],
    )


def _mask(value: str | float | None, inputs: dict[str, Tensor], shape: torch.Size) -> Tensor:
    """A mask of the rows: 1 where the seed multiplies by 1."""
    if value is None:
        return torch.ones(shape)
    if not isinstance(value, str):
        assert value == 1, f"a mask of {value} scales the rows"
        return torch.ones(shape)
    mask = inputs[SHAPED.get(value, value)].float()
    mask = mask.view(shape) if mask.numel() == shape.numel() else mask
    assert mask.shape == shape, f"{value}: {list(mask.shape)}, rows are {list(shape)}"
    assert bool(((mask == 0) | (mask == 1)).all()), f"{value} scales the rows"
    return mask


def _rows(of_inputs: Tensor, of_losses: Tensor) -> Rows:
    """The seed divides by all rows; a row of masked inputs still has the loss of zeros."""
    rows = seed_rows({"all but masked": of_inputs * of_losses}, torch.ones(len(of_inputs)))
    (rows,) = rows.values()
    return dataclasses.replace(rows, outside=(1 - of_inputs) * of_losses)


def _mse(call: Call) -> Tensor:
    student, teacher = call.student / call.temperature, call.teacher / call.temperature
    return mse(student, teacher, rows=call.rows, keep_batch=call.keep_batch)


def _distribution(loss: Callable[..., Tensor]) -> Callable[[Call], Tensor]:
    """Ours are times T^2."""

    def value(call: Call) -> Tensor:
        pair, options = (call.student, call.teacher), {"temperature": call.temperature}
        of_ours = loss(*pair, rows=call.rows, keep_batch=call.keep_batch, **options)
        return of_ours / call.temperature**2

    return value


def _entropy(call: Call) -> Tensor:
    losses = entropy(log_softmax(call.student / call.temperature))
    of_zeros = float(torch.tensor(call.student.size(-1)).log())
    return call.rows.mean(losses, call.keep_batch, masked=of_zeros)


def _cosine(call: Call) -> Tensor:
    student, teacher = call.student / call.temperature, call.teacher / call.temperature
    return cosine_distance(student, teacher, rows=call.rows, keep_batch=call.keep_batch)


FUNCTIONS: dict[str, Callable[[Call], Tensor]] = {
    "mse_loss": _mse,
    "kl_div": _distribution(kl),
    "cross_entropy": _distribution(soft_cross_entropy),
    "info_entropy": _entropy,
    "cos_distance": _cosine,
}

# CKD and MGSKD --------------------------------------------------------------------------------------

Structure = Callable[[Tensor, Tensor, Tensor], Tensor]  # states [b, K, s, h] twice, mask [b, s]


def check_geometric_losses(case: Path) -> list[Result]:
    """Every recorded structure."""
    result = Result(case.name)
    inputs = read_tensors(case, "inputs.safetensors")
    expected, values = read_tensors(case, "expected.safetensors"), read_json(case, "expected.json")
    names = [f"{name}.{part}" for name in values for part in ("value", "grad_student")]
    result.exact("structures", sorted(expected), sorted(names))
    for name, value in values.items():
        student = inputs["student"].clone().requires_grad_()
        actual = _structure(name)(student, inputs["teacher"], inputs["mask"].float())
        actual.backward()
        result.values(f"{name} in json", actual, value)
        result.values(name, actual, expected[f"{name}.value"])
        of_layers = expected[f"{name}.grad_student"]
        grad = student.grad if of_layers.dim() == 4 else student.grad[:, 0]
        result.gradient(name, grad, of_layers)
    return [result]


def _structure(name: str) -> Structure:
    for pattern, make in STRUCTURES.items():
        found = re.fullmatch(pattern, name)
        if found:
            return make(*map(int, found.groups()))
    raise AssertionError(f"no structure is called {name}")


def _of_layers(relation: Callable[..., tuple[Tensor, Tensor]], **options: Any) -> Structure:
    def value(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        sums, counts = relation(student.unbind(1), teacher.unbind(1), mask, **options)
        return mean_of(sums, counts, local_rows(mask, len(mask)), pooled=True)

    return value


def _samples(heads: int) -> Structure:
    def value(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        pooled = (mean_of_tokens(x[:, 0], mask) for x in (student, teacher))
        return _pooled([sample_differences(*pooled, mask[:, 0], heads)], mask)

    return value


def _units(heads: int, k: int) -> Structure:
    def value(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        first = student[:, 0], teacher[:, 0], mask
        parts = [pair_differences(*first, heads), triplet_differences(*first, heads, k, k)]
        return _pooled(parts, mask)

    return value


def _pooled(parts: Iterable[tuple[Tensor, Tensor]], mask: Tensor) -> Tensor:
    rows = local_rows(mask[:, 0], len(mask))
    return sum(mean_of(sums, counts, rows, pooled=True) for sums, counts in parts)


STRUCTURES: dict[str, Callable[..., Structure]] = {
    r"wr_dist_cos_kl": lambda: _of_layers(word_distances),
    r"ltr_dist_cos_kl": lambda: _of_layers(layer_distances),
    r"ltr_angle_l2": lambda: _of_layers(layer_angles),
    r"wr_angle_window_(\d+)": lambda w: _of_layers(word_angles, window=w, clamped=True),
    r"mgskd_sample_h(\d+)": _samples,
    r"mgskd_token_h(\d+)_k(\d+)": _units,
}

CHECKS: dict[str, Callable[[Path], list[Result]]] = {
    "custom_loss*": check_custom_loss,
    "geometric_losses*": check_geometric_losses,
}
