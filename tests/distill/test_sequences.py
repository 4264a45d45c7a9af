"""Pooling over tokens, and means over sequences."""

import pytest
import torch

from distill.context import LossContext
from distill.rows import exact_rows
from distill.sequences import mean_over_sequences, mean_over_tokens, sum_over_sequences

X = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]]) > 0


def test_pooling_takes_the_tokens():
    actual = mean_over_tokens(X, LossContext(keys=MASK[:, None, None]))
    expected = torch.stack([X[0, :2].mean(0), X[1, 0], X[2].mean(0), torch.zeros(2)])
    torch.testing.assert_close(actual, expected)


def test_without_keys_it_takes_every_position():
    torch.testing.assert_close(mean_over_tokens(X, LossContext()), X.mean(1))


def test_padding_changes_no_gradient():
    x = X.clone().requires_grad_()
    mean_over_tokens(x, LossContext(keys=MASK[:, None, None])).sum().backward()
    assert torch.equal(x.grad[..., 0] > 0, MASK)


LOSSES = torch.tensor([1.0, 2.0, 4.0, 8.0])


def rows(total: float) -> dict:
    mask = torch.tensor([1.0, 1.0, 1.0, 0.0])
    return exact_rows({"sequences": mask}, {"sequences": torch.tensor(total)}, 2)


@pytest.mark.parametrize(
    ("function", "total", "expected", "each"),
    [
        (mean_over_sequences, 3.0, 7 / 3, [2.0, 8 / 3]),
        (mean_over_sequences, 6.0, 7 / 6, [1.0, 4 / 3]),
        (sum_over_sequences, 3.0, 7.0, [3.0, 4.0]),
        (sum_over_sequences, 6.0, 7.0, [3.0, 4.0]),
    ],
)
def test_rows(function, total, expected, each):
    assert float(function(LOSSES, LossContext(rows=rows(total)))) == pytest.approx(expected)
    actual = function(LOSSES, LossContext(rows=rows(total), keep_batch=True))
    torch.testing.assert_close(actual, torch.tensor(each))


def test_without_rows_each_sequence_is_a_sample():
    assert float(mean_over_sequences(LOSSES, LossContext())) == 3.75
    assert float(sum_over_sequences(LOSSES, LossContext())) == 15
    for function in (mean_over_sequences, sum_over_sequences):
        assert torch.equal(function(LOSSES, LossContext(keep_batch=True)), LOSSES)
