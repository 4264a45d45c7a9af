"""COS-NCE against loops over sequences, layers and positions."""

import pytest
import torch

from distill.context import LossContext
from distill.contrast import angular_distances, cos_nce, first_own, per_token_unit
from distill.rows import exact_rows

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]) > 0


def layers(number=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [tuple(torch.randn(2, 4, 4, 5, generator=generator).to(dtype)) for _ in range(number)]


def context(mask=MASK):
    real = mask[:, 0].float()
    rows = exact_rows({"sequences": real}, {"sequences": real.sum()}, len(real))
    return LossContext(rows=rows, keys=mask[:, None, None])


def distance(pairs, i, j, mask) -> float:
    """1 - mean over layers, then over positions that both have."""
    means = []
    for s, t in pairs:
        cosines = [
            float(x @ y / (x.square().sum() * y.square().sum()).sqrt())
            for x, y, m, n in zip(s[i], t[j], mask[i], mask[j], strict=True)
            if m and n
        ]
        means.append(sum(cosines) / len(cosines))
    return 1 - sum(means) / len(means)


def test_distances():
    pairs = layers()
    actual, real = angular_distances(pairs, context())
    assert real.tolist() == [True, True, True, False]
    for i in range(3):
        for j in range(3):
            assert float(actual[i, j]) == pytest.approx(distance(pairs, i, j, MASK), abs=1e-6)
    assert bool(torch.isfinite(actual).all())


def test_distances_by_hand_take_every_position():
    pairs, every = layers(), torch.ones(4, 4)
    actual, real = angular_distances(iter(pairs), LossContext())
    assert real.tolist() == [True] * 4
    for i in range(4):
        for j in range(4):
            assert float(actual[i, j]) == pytest.approx(distance(pairs, i, j, every), abs=1e-6)


def test_padding_and_sequences_without_tokens_get_no_gradient():
    pairs = [(s.requires_grad_(), t) for s, t in layers()]
    distances, real = angular_distances(pairs, context())
    (cos_nce(distances, real) * real).sum().backward()
    for s, _ in pairs:
        assert torch.equal(s.grad.ne(0).any(-1), MASK)


def test_cos_nce():
    g = torch.rand(3, 5, generator=torch.Generator().manual_seed(1)) * 2
    real = torch.tensor([True, True, False, True, True])
    for first in (0, 2):
        for row, actual in enumerate(cos_nce(g, real, first)):
            own = g[row, first + row]
            others = [g[row, j] for j in range(5) if real[j] and j != first + row]
            expected = 1 + own - sum(o - own for o in others) / (2 * len(others))
            torch.testing.assert_close(actual, expected)


def test_the_best_and_the_worst_are_0_and_4():
    same, far = torch.zeros(2, 2), torch.full((2, 2), 2.0)
    real, eye = torch.tensor([True, True]), torch.eye(2) > 0
    assert cos_nce(torch.where(eye, same, far), real).tolist() == [0.0, 0.0]
    assert cos_nce(torch.where(eye, far, same), real).tolist() == [4.0, 4.0]


def test_a_sequence_alone_has_loss_0_and_no_gradient():
    g = torch.rand(3, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    losses = cos_nce(g, torch.tensor([True, False, False]))
    assert float(losses[0].detach()) == 0.0
    losses[0].backward()
    assert not bool(g.grad.any())


def test_own_rows_start_at_0_where_nothing_is_gathered():
    real = torch.ones(6) > 0
    assert first_own(real) == 0 == first_own(real, gather=True)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_a_unit_for_each_token(scale):
    g = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(2))
    g[0, 1] = 0
    expected = g / g.norm(dim=-1, keepdim=True).clamp(min=1e-9)
    torch.testing.assert_close(per_token_unit(g * scale), expected)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_nothing_is_perturbed_unless_all_is_finite(value):
    g = torch.ones(2, 3, 4)
    g[1, 2, 3] = value
    assert torch.equal(per_token_unit(g), torch.zeros(2, 3, 4))
