"""soft_rows against float64, in every precision, across chunks; two ranks are in tests/laws."""

import pytest
import torch
import torch.nn.functional as F

from distill import divergence
from distill.divergence import soft_rows


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(3 * torch.randn(5, 7, 32, generator=generator) for _ in range(2))


@pytest.mark.parametrize("cross_entropy", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 15.0])
@pytest.mark.parametrize("chunk", [1, 100, 1 << 18])
def test_value_and_gradient(pair, cross_entropy, temperature, chunk, monkeypatch):
    monkeypatch.setattr(divergence, "CHUNK_ELEMENTS", chunk)
    student, teacher = pair
    weights = torch.rand(5, 7, generator=torch.Generator().manual_seed(1))
    actual = student.clone().requires_grad_()
    rows = soft_rows(actual, teacher, temperature=temperature, cross_entropy=cross_entropy)
    (rows * weights).sum().backward()
    x = student.double().requires_grad_()
    log_q = F.log_softmax(x / temperature, -1)
    p = F.softmax(teacher.double() / temperature, -1)
    expected = (
        -(p * log_q).sum(-1) if cross_entropy else F.kl_div(log_q, p, reduction="none").sum(-1)
    )
    (expected * weights).sum().backward()
    torch.testing.assert_close(rows.double(), expected, rtol=1e-5, atol=1e-7)
    largest = float(x.grad.abs().max())
    torch.testing.assert_close(actual.grad.double(), x.grad, rtol=1e-5, atol=1e-6 * largest)


def test_equal_logits_are_exactly_zero(pair):
    student = pair[0].clone().requires_grad_()
    rows = soft_rows(student, pair[0], temperature=3.0)
    rows.sum().backward()
    assert not rows.any()
    assert not student.grad.any()


def test_a_shift_of_a_row_changes_nothing(pair):
    student, teacher = pair
    expected = soft_rows(student, teacher)
    actual = soft_rows(student + 30, teacher - 20)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_fp32(pair, dtype):
    student, teacher = (x.to(dtype) for x in pair)
    expected = soft_rows(student.float(), teacher.float(), temperature=2.0)
    student.requires_grad_()
    actual = soft_rows(student, teacher, temperature=2.0)
    actual.sum().backward()
    assert actual.dtype is torch.float32
    assert student.grad.dtype is dtype
    torch.testing.assert_close(actual, expected)


def test_columns_that_take_no_part_have_no_weight_and_no_gradient(pair):
    student, teacher = pair
    columns = torch.zeros(5, 7, 32, dtype=torch.bool)
    columns[..., :6] = True
    whole = student.clone().requires_grad_()
    soft_rows(whole, teacher, columns=columns).sum().backward()
    cut = student[..., :6].clone().requires_grad_()
    expected = soft_rows(cut, teacher[..., :6])
    expected.sum().backward()
    torch.testing.assert_close(soft_rows(student, teacher, columns=columns), expected)
    torch.testing.assert_close(whole.grad[..., :6], cut.grad)
    assert not whole.grad[..., 6:].any()


def test_no_rows():
    student = torch.empty(0, 8, requires_grad=True)
    rows = soft_rows(student, torch.empty(0, 8))
    rows.sum().backward()
    assert rows.shape == (0,)
    assert student.grad.shape == (0, 8)


def test_a_trained_teacher_is_refused(pair):
    with pytest.raises(AssertionError, match="gradient"):
        soft_rows(pair[0], pair[1].clone().requires_grad_())
