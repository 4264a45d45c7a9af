"""What every area of the vector check shares: results, tolerances, reading a case."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

LOSS_RTOL, LOSS_ATOL = 1e-4, 1e-5
GRAD_RTOL, GRAD_OF_LARGEST = 1e-3, 1e-5

OK, FAILED, NOT_IMPLEMENTED = "ok", "FAILED", "not-implemented"


@dataclass
class Result:
    """Outcome of a case, or of one part of it (`superglue_encodings/copa`)."""

    name: str
    status: str = OK
    loss_error: float = 0.0  # largest relative error of forward values and losses
    grad_error: float = 0.0  # largest error of a gradient, relative to its largest entry
    message: str = ""

    def fail(self, message: str) -> None:
        """Keep the first reason."""
        self.status, self.message = FAILED, self.message or message

    def values(self, what: str, actual: Any, expected: Any) -> None:
        """Losses, logits, captures: within 1e-4 relative, 1e-5 absolute."""
        actual, expected = _as_float(actual), _as_float(expected)
        if actual.shape != expected.shape:
            return self.fail(f"{what}: shape {list(actual.shape)}, expected {list(expected.shape)}")
        error = (actual - expected).abs()
        relative = error / expected.abs().clamp(min=LOSS_ATOL / LOSS_RTOL)
        self.loss_error = max(self.loss_error, _largest(relative))
        if not bool((error <= LOSS_ATOL + LOSS_RTOL * expected.abs()).all()):
            self.fail(f"{what}: largest error {_largest(error):.3g}")
        return None

    def gradient(self, what: str, actual: Any, expected: Any) -> None:
        """Gradients: within 1e-3 relative, or 1e-5 of the largest entry."""
        actual, expected = _as_float(actual), _as_float(expected)
        if actual.shape != expected.shape:
            return self.fail(f"{what}: shape {list(actual.shape)}, expected {list(expected.shape)}")
        error, largest = (actual - expected).abs(), _largest(expected.abs())
        self.grad_error = max(self.grad_error, _largest(error) / max(largest, 1e-12))
        if not bool((error <= GRAD_RTOL * expected.abs() + GRAD_OF_LARGEST * largest).all()):
            self.fail(f"{what}: largest error {_largest(error):.3g} of {largest:.3g}")
        return None

    def exact(self, what: str, actual: Any, expected: Any) -> None:
        """Ids, maps, shards: equal."""
        if isinstance(actual, Tensor):
            actual = actual.tolist()
        if isinstance(expected, Tensor):
            expected = expected.tolist()
        if actual != expected:
            self.fail(f"{what}: {str(actual)[:120]} is not {str(expected)[:120]}")


def read_json(case: Path, name: str) -> Any:
    """A json file of the case."""
    return json.loads((case / name).read_text(encoding="utf-8"))


def read_tensors(case: Path, name: str) -> dict[str, Tensor]:
    """A safetensors file of the case; {} if there is none."""
    path = case / name
    return load_file(path) if path.exists() else {}


def _as_float(x: Any) -> Tensor:
    return torch.as_tensor(x).detach().double().cpu()


def _largest(x: Tensor) -> float:
    return float(x.max()) if x.numel() else 0.0
