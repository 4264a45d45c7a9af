"""The check of losses in isolation can fail, and leaves no recorded call out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.vector_checks.common import FAILED, OK
from tests.vector_checks.losses import check_custom_loss, check_geometric_losses


@pytest.fixture
def case(vectors: Path, tmp_path: Path) -> Path:
    """A copy of the recorded calls that can be written to."""
    return Path(shutil.copytree(vectors / "custom_loss", tmp_path / "custom_loss_2"))


def change_calls(case: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    expected = json.loads((case / "expected.json").read_text())
    change(expected["calls"])
    (case / "expected.json").write_text(json.dumps(expected))


def of(fn: str, **kwargs: Any) -> Callable[[dict[str, Any]], bool]:
    return lambda call: call["fn"] == fn and call["kwargs"] == kwargs


def test_every_recorded_call_is_compared(case, monkeypatch):
    from tests.vector_checks import losses

    made: list[str] = []
    for name, function in losses.FUNCTIONS.items():
        monkeypatch.setitem(
            losses.FUNCTIONS, name, lambda c, n=name, f=function: made.append(n) or f(c)
        )
    (result,) = check_custom_loss(case)
    assert result.status == OK
    calls = json.loads((case / "expected.json").read_text())["calls"]
    assert made == [call["fn"] for call in calls]
    assert len(calls) > 80


@pytest.mark.parametrize(
    "wanted",
    [
        of("mse_loss", keep_batch=False),
        of("kl_div", keep_batch=True, input_mask="mask"),
        of("cross_entropy", keep_batch=False, mask="maskbool"),
        of("cos_distance", keep_batch=True),
    ],
)
def test_a_wrong_value_fails(case, wanted):
    def change(calls: list[dict[str, Any]]) -> None:
        call = next(filter(wanted, calls))
        call["value"] = (torch.tensor(call["value"]) * 1.001).tolist()

    change_calls(case, change)
    (result,) = check_custom_loss(case)
    assert result.status == FAILED


def test_a_wrong_gradient_fails(case):
    file = case / "expected.safetensors"
    tensors = load_file(file)
    tensors["45.grad_x"] = tensors["45.grad_x"] * 1.01
    save_file(tensors, file)
    (result,) = check_custom_loss(case)
    assert result.status == FAILED
    assert result.message.startswith("45 ")


def test_a_call_without_tensors_fails(case):
    change_calls(case, lambda calls: calls.append({**calls[0], "id": "new"}))
    with pytest.raises(KeyError, match="new"):
        check_custom_loss(case)


def test_tensors_without_a_call_fail(case):
    change_calls(case, lambda calls: calls.pop(7))
    (result,) = check_custom_loss(case)
    assert (result.status, result.message.split(":")[0]) == (FAILED, "calls")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kwargs": {"maks": "mask"}}, "unknown options"),
        ({"kwargs": {"mask": 0.5}}, "scales"),
        ({"kwargs": {"mask": "mask"}, "input": "x2,y2"}, "rows are"),
    ],
)
def test_what_cannot_be_translated_is_no_pass(case, change, words):
    change_calls(case, lambda calls: calls[0].update(change))
    with pytest.raises(AssertionError, match=words):
        check_custom_loss(case)


def test_other_temperatures_shapes_and_masks(tmp_path):
    # A hidden case in small: numbers made by torch alone.
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    mask = torch.tensor([[1.0, 1, 0, 1], [0, 0, 0, 0]], dtype=torch.float64)
    calls, tensors = [], {}

    def record(fn: str, temperature: float, kwargs: dict[str, Any], value: Any) -> None:
        leaf, name = x.clone().requires_grad_(), str(len(calls))
        result = value(leaf / temperature, y / temperature)
        (tensors[f"{name}.grad_x"],) = torch.autograd.grad(result.sum(), leaf)
        tensors[f"{name}.value"] = result.detach()
        call = {"id": name, "fn": fn, "input": "x3,y3", "T": temperature}
        calls.append(call | {"kwargs": kwargs, "value": result.tolist()})

    def kl(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        p = t.softmax(-1)
        return (p * (t.log_softmax(-1) - s.log_softmax(-1))).sum(-1)

    def entropy(s: torch.Tensor) -> torch.Tensor:
        return -(s.softmax(-1) * s.log_softmax(-1)).sum(-1)

    wide = mask.unsqueeze(-1)
    both = {"keep_batch": True, "input_mask": "mask1", "mask": "maskbool"}
    record("kl_div", 7.0, both, lambda s, t: (kl(s * wide, t * wide) * mask).mean(1))
    record("info_entropy", 0.5, {"input_mask": "mask"}, lambda s, t: entropy(s * wide).mean())
    record("mse_loss", 3.0, {"mask": "mask"}, lambda s, t: ((s - t) ** 2 * wide).mean())
    inputs = {"x3": x, "y3": y, "mask": mask}
    save_file({k: v.float() for k, v in inputs.items()}, tmp_path / "inputs.safetensors")
    save_file({k: v.float() for k, v in tensors.items()}, tmp_path / "expected.safetensors")
    (tmp_path / "expected.json").write_text(json.dumps({"calls": calls}))
    (result,) = check_custom_loss(tmp_path)
    assert (result.status, result.message) == (OK, "")


def test_a_wrong_structure_fails(vectors, tmp_path):
    case = Path(shutil.copytree(vectors / "geometric_losses", tmp_path / "geometric_losses"))
    values = json.loads((case / "expected.json").read_text())
    for name in values:
        (case / "expected.json").write_text(json.dumps(values | {name: values[name] * 1.01}))
        (result,) = check_geometric_losses(case)
        assert result.status == FAILED
        assert result.message.startswith(name)
    (case / "expected.json").write_text(json.dumps(values | {"of_a_new_kind": 1.0}))
    with pytest.raises(AssertionError, match="of_a_new_kind"):
        check_geometric_losses(case)
