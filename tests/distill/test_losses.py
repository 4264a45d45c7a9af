"""Losses on one process, with numbers written down; layouts, ranks and masks are in tests/laws."""

import math

import pytest
import torch

from distill.losses import (
    cosine_distance,
    excess,
    floored,
    kl,
    mse,
    relation,
    soft_cross_entropy,
    split_heads,
    top_n_columns,
    whole_width,
)
from distill.rows import Rows
from mpu.layout import Layout

LOG2 = math.log(2.0)


def test_mse_by_hand():
    student, teacher = (
        torch.tensor([[1.0, 2.0], [3.0, 5.0]]),
        torch.tensor([[1.0, 4.0], [0.0, 5.0]]),
    )
    assert float(mse(student, teacher)) == (0 + 4 + 9 + 0) / 4
    assert mse(student, teacher, keep_batch=True).tolist() == [2.0, 4.5]
    columns = torch.tensor([[True, False], [True, True]])
    assert mse(student, teacher, columns=columns, keep_batch=True).tolist() == [0.0, 4.5]


def test_kl_by_hand():
    # p = (1/2, 1/2), q = (3/4, 1/4): sum p log p/q = log(4 / 3) / 2 = log(2 / sqrt(3))
    student, teacher = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
    assert float(kl(student, teacher)) == pytest.approx(math.log(2 / math.sqrt(3)))
    # At T = 2 the student's odds are sqrt(3) : 1, and the loss is multiplied by 4.
    q = math.sqrt(3) / (1 + math.sqrt(3))
    expected = 4 * (-LOG2 - (math.log(q) + math.log(1 - q)) / 2)
    assert float(kl(student, teacher, temperature=2.0)) == pytest.approx(expected)


def test_soft_cross_entropy_is_kl_plus_the_teachers_entropy():
    student, teacher = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
    expected = float(kl(student, teacher)) + LOG2
    assert float(soft_cross_entropy(student, teacher)) == pytest.approx(expected)


def test_masked_rows_of_the_seed_count_log_v_for_cross_entropy_and_nothing_for_kl():
    mask = torch.tensor([[1.0, 0.0]])
    rows = Rows(mask, torch.tensor(2.0), 1, None, 1 - mask)
    z = torch.zeros(1, 2, 4)
    assert float(soft_cross_entropy(z, z, rows=rows)) == pytest.approx(math.log(4))
    assert float(soft_cross_entropy(z, z, rows=rows, temperature=3.0)) == pytest.approx(
        9 * math.log(4)
    )
    assert float(kl(z, z, rows=rows)) == 0.0


def test_top_n_marks_the_largest_and_ties():
    teacher = torch.tensor([[4.0, 1.0, 3.0, 3.0]])
    assert top_n_columns(teacher, 1, Layout.SHARD_LAST).tolist() == [[True, False, False, False]]
    assert top_n_columns(teacher, 2, Layout.SHARD_LAST).tolist() == [[True, False, True, True]]
    assert floored(teacher, 1, Layout.SHARD_LAST).tolist() == [[4.0, 1.0, 1.0, 1.0]]


def test_excess_by_hand():
    # Row 0: theta = 2; 5 and 3 exceed it by 3 and 1. Row 1: nothing exceeds.
    student = torch.tensor(
        [[2.0, 4.0, 5.0, 3.0, 1.0], [9.0, 8.0, 0.0, 0.0, 0.0]], requires_grad=True
    )
    columns = torch.tensor([[True, True, False, False, False]] * 2)
    loss, number = excess(student, columns, layout=Layout.SHARD_LAST)
    assert float(loss.detach()) == (2.0 + 0.0) / 2
    assert float(number) == 2
    pooled, _ = excess(student, columns, layout=Layout.SHARD_LAST, pooled=True)
    assert float(pooled.detach()) == (3 + 1) / 2
    loss.backward()
    assert student.grad.tolist() == [[-0.5, 0, 0.25, 0.25, 0], [0, 0, 0, 0, 0]]


def test_excess_of_a_perfect_student_is_zero():
    student = torch.tensor([[3.0, 2.0, 1.0]])
    columns = top_n_columns(student, 1, Layout.SHARD_LAST)
    for pooled in (False, True):
        loss, number = excess(student, columns, layout=Layout.SHARD_LAST, pooled=pooled)
        assert (float(loss), float(number)) == (0.0, 0.0)


def test_the_gradient_of_a_trained_teacher():
    # d KL / dt = p ((log p - log q) - KL),  d CE / dt = p (-log q - CE)
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 6, generator=generator).double() for _ in range(2))
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    for loss, inside in ((kl, log_p - log_q), (soft_cross_entropy, -log_q)):
        row = (log_p.exp() * inside).sum(-1, keepdim=True)
        expected = log_p.exp() * (inside - row) / 2
        t = teacher.float().requires_grad_()
        loss(student.float(), t).backward()
        torch.testing.assert_close(t.grad.double(), expected, rtol=1e-4, atol=1e-6)


def test_whole_width_on_one_process():
    assert whole_width(torch.zeros(2, 3, 8), Layout.SHARD_LAST) == 8


def test_cosine_distance_by_hand():
    # Angles of 0, 90, 180 and 60 degrees, whatever the lengths.
    student = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [5.0, 0.0]])
    teacher = torch.tensor([[7.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, math.sqrt(3)]])
    actual = cosine_distance(student, teacher, keep_batch=True)
    torch.testing.assert_close(actual, torch.tensor([0.0, 1.0, 2.0, 0.5]))
    assert float(cosine_distance(student, teacher)) == pytest.approx(3.5 / 4)


def test_cosine_distance_of_equal_rows_is_zero_and_of_zeros_one():
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert float(cosine_distance(x, x)) == pytest.approx(0.0, abs=1e-11)
    zeros = torch.zeros(5, 7, requires_grad=True)
    for teacher in (x, torch.zeros(5, 7)):
        distance = cosine_distance(zeros, teacher)
        assert float(distance.detach()) == pytest.approx(1.0)
        distance.backward()
        assert zeros.grad.isfinite().all()


def test_cosine_distance_and_its_gradient_are_torchs():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 4, 8, generator=generator) for _ in range(2))
    ours, expected = (student.clone().requires_grad_() for _ in range(2))
    cosine_distance(ours, teacher).backward()
    (1 - torch.cosine_similarity(expected, teacher, dim=-1)).mean().backward()
    torch.testing.assert_close(ours.grad, expected.grad)


def test_masked_rows_of_the_seed_have_cosine_distance_one():
    mask = torch.tensor([[1.0, 0.0]])
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    seed = Rows(mask, torch.tensor(2.0), 1, None, 1 - mask)
    assert float(cosine_distance(x, x, rows=seed)) == pytest.approx(0.5)
    exact = Rows(mask, torch.tensor(1.0), 1)
    assert float(cosine_distance(x, -x, rows=exact)) == pytest.approx(2.0)


def test_relation_by_hand():
    x = torch.tensor([[1.0, 0.0, 0.0, 2.0], [0.0, 3.0, 0.0, 1.0]])
    assert relation(x).tolist() == [[5 / 2, 2 / 2], [2 / 2, 10 / 2]]


def test_split_heads_takes_neighbouring_entries():
    x = torch.arange(12.0).view(1, 2, 6)
    heads, layout = split_heads(x, 3)
    assert layout is Layout.SHARD_HEADS
    assert heads.tolist() == [[[[0, 1], [6, 7]], [[2, 3], [8, 9]], [[4, 5], [10, 11]]]]


def test_columns_are_broadcast():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 4, 5, generator=generator) for _ in range(2))
    keys = torch.tensor([[True] * 5, [True, True, True, False, False]])[:, None, None]
    for loss in (mse, kl, soft_cross_entropy):
        actual = loss(student, teacher, columns=keys, keep_batch=True)
        expected = [float(loss(student[0], teacher[0]))]
        expected.append(float(loss(student[1, ..., :3], teacher[1, ..., :3])))
        assert actual.tolist() == pytest.approx(expected, rel=1e-5)
