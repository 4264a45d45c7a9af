"""row_losses against dense float64: values, gradients, and when the expectation was wrong."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mpu import row_losses as module
from mpu.row_losses import HardRows, Side, row_losses

ROWS, WIDTH, HIDDEN = 11, 24, 6


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of four rows, worked on two at a time."""
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 4 * WIDTH)
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 2 * WIDTH)


@pytest.fixture
def backwards(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each backward pass found what it expected."""
    seen: list[bool] = []
    compare = module._common_factor

    def watched(expected: object, grads: object) -> Tensor | None:
        factor = compare(expected, grads)
        seen.append(factor is not None)
        return factor

    monkeypatch.setattr(module, "_common_factor", watched)
    return seen


def made(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden, weight, labels and weights of the rows."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, HIDDEN, generator=generator)
    weight = torch.randn(WIDTH, HIDDEN, generator=generator)
    labels = torch.randint(WIDTH, (ROWS,), generator=generator)
    each = torch.rand(ROWS, generator=generator)
    each[3] = 0
    return x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), labels, each


def expected_of(
    x: Tensor, weight: Tensor, labels: Tensor, each: Tensor, smoothing: float = 0.0
) -> list[Tensor]:
    """Row losses and both gradients of their weighted sum."""
    x, weight = (t.detach().double().requires_grad_() for t in (x, weight))
    logits = x @ weight.T
    rows = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    (rows * each.double()).sum().backward()
    return [rows.detach(), x.grad, weight.grad]


def check(actual: Tensor, x: Tensor, weight: Tensor, expected: list[Tensor], rtol: float) -> None:
    """Values and gradients; the gradients to so much of their largest entry."""
    torch.testing.assert_close(actual.detach().double(), expected[0], rtol=rtol, atol=rtol)
    for found, wanted in zip((x.grad, weight.grad), expected[1:], strict=True):
        largest = float(wanted.abs().max())
        torch.testing.assert_close(found.double(), wanted, rtol=rtol, atol=rtol * largest)


@pytest.mark.parametrize("factor", [None, 1.0, 0.01])
def test_expected_or_not_the_gradient_is_right(factor, backwards):
    x, weight, labels, each = made()
    hint = [] if factor is None else [factor * each]
    (rows,) = row_losses([HardRows(labels)], Side(x, weight), expected=hint)
    (rows * each).sum().backward()
    check(rows, x, weight, expected_of(x, weight, labels, each), 1e-5)
    assert backwards == ([] if factor is None else [True])


@pytest.mark.parametrize("hint", [False, True])
def test_smoothed_labels(hint, backwards):
    x, weight, labels, each = made()
    term = HardRows(labels.flip(0), smoothing=0.1).at(torch.arange(ROWS - 1, -1, -1))
    (rows,) = row_losses([term], Side(x, weight), expected=[each] if hint else [])
    (rows * each).sum().backward()
    check(rows, x, weight, expected_of(x, weight, labels, each, smoothing=0.1), 1e-5)


def test_other_weights_than_expected_are_computed_again(backwards):
    x, weight, labels, each = made()
    wrong = each + 0.1
    (rows,) = row_losses([HardRows(labels)], Side(x, weight), expected=[wrong])
    (rows * each).sum().backward()
    check(rows, x, weight, expected_of(x, weight, labels, each), 1e-5)
    assert backwards == [False]


def test_terms_in_another_proportion_than_expected(backwards):
    x, weight, labels, each = made()
    terms = [HardRows(labels), HardRows(labels.flip(0))]
    first, second = row_losses(terms, Side(x, weight), expected=[each, each])
    (first * each + 0.5 * second * each).sum().backward()
    actual = [x.grad.double(), weight.grad.double()]
    one = expected_of(x, weight, labels, each)[1:]
    other = expected_of(x, weight, labels.flip(0), 0.5 * each)[1:]
    for found, a, b in zip(actual, one, other, strict=True):
        torch.testing.assert_close(found, a + b, rtol=1e-5, atol=1e-6)
    assert backwards == [False]


def test_a_term_without_a_part_in_the_loss(backwards):
    x, weight, labels, each = made()
    terms = [HardRows(labels), HardRows(labels.flip(0))]
    first, second = row_losses(terms, Side(x, weight), expected=[each, None])
    (first * each).sum().backward()
    check(first, x, weight, expected_of(x, weight, labels, each), 1e-5)
    expected = expected_of(x, weight, labels.flip(0), each)[0]
    torch.testing.assert_close(second.detach().double(), expected, rtol=1e-5, atol=1e-5)
    assert backwards == [True]


def test_gradients_accumulate_and_a_second_backward_gives_the_same():
    x, weight, labels, each = made()
    (rows,) = row_losses([HardRows(labels)], Side(x, weight), expected=[each])
    loss = (rows * each).sum()
    loss.backward(retain_graph=True)
    once = [x.grad.clone(), weight.grad.clone()]
    loss.backward()
    for twice, first in zip((x.grad, weight.grad), once, strict=True):
        torch.testing.assert_close(twice, 2 * first, rtol=1e-5, atol=1e-6)


def test_under_activation_checkpointing():
    x, weight, labels, each = made()

    def loss() -> Tensor:
        hidden = torch.tanh(x)
        (rows,) = row_losses([HardRows(labels)], Side(hidden, weight), expected=[each])
        return (rows * each).sum()

    checkpoint(loss, use_reentrant=False).backward()
    actual = [x.grad.clone(), weight.grad.clone()]
    x.grad = weight.grad = None
    (F.cross_entropy(torch.tanh(x) @ weight.T, labels, reduction="none") * each).sum().backward()
    for found, wanted in zip(actual, (x.grad, weight.grad), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_without_gradients_there_are_values_only():
    x, weight, labels, each = made()
    with torch.no_grad():
        (rows,) = row_losses([HardRows(labels)], Side(x, weight), expected=[each])
    assert not rows.requires_grad
    expected = expected_of(x, weight, labels, each)[0]
    torch.testing.assert_close(rows.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_side_gets_no_gradient(frozen):
    x, weight, labels, each = made()
    (x if frozen == "hidden" else weight).requires_grad_(False)
    (rows,) = row_losses([HardRows(labels)], Side(x, weight), expected=[each])
    (rows * each).sum().backward()
    expected = expected_of(x, weight, labels, each)
    found, wanted = (weight, expected[2]) if frozen == "hidden" else (x, expected[1])
    torch.testing.assert_close(found.grad.double(), wanted, rtol=1e-5, atol=1e-6)
    assert (x if frozen == "hidden" else weight).grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_gradients_of_its_own_type(dtype):
    x, weight, labels, each = made(dtype)
    tiny = each * 1e-7  # below what half precision can hold
    (rows,) = row_losses([HardRows(labels)], Side(x, weight), expected=[tiny])
    (rows * tiny).sum().mul(2.0**20).backward()
    assert x.grad.dtype is weight.grad.dtype is dtype
    expected = expected_of(x, weight, labels, each * 1e-7 * 2.0**20)
    check(rows, x, weight, expected, 2e-2)


def test_fp32_weights_under_autocast_compute_in_half_and_sum_in_fp32():
    x, weight, labels, each = made()
    with torch.autocast("cpu", torch.bfloat16):
        (rows,) = row_losses(
            [HardRows(labels)], Side(x.to(torch.bfloat16), weight), expected=[each]
        )
    (rows * each).sum().backward()
    assert weight.grad.dtype is torch.float32
    check(rows, x, weight, expected_of(x, weight, labels, each), 2e-2)


def test_a_loss_that_is_not_finite_gives_no_finite_gradient():
    x, weight, labels, each = made()
    (rows,) = row_losses([HardRows(labels)], Side(x, weight), expected=[each])
    ((rows * each).sum() * float("nan")).backward()
    assert weight.grad.isnan().all()


def test_no_rows():
    x, weight, labels, each = made()
    nothing = x[:0]
    (rows,) = row_losses([HardRows(labels[:0])], Side(nothing, weight), expected=[each[:0]])
    rows.sum().backward()
    assert rows.shape == (0,)
    assert weight.grad is None or not weight.grad.any()


def test_a_label_outside_the_vocabulary_raises():
    x, weight, labels, _ = made()
    labels[2] = WIDTH
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        row_losses([HardRows(labels)], Side(x, weight))
