"""Uncertainty of samples: entropy over its largest value, on shards too."""

import math

import pytest
import torch

import mpu
from distill.combiner import Combination
from distill.context import LossContext
from distill.entropy import padded_uncertainty, uncertainty
from distill.rows import local_rows
from mpu.layout import Layout
from tests.ranks import run_ranks


def made(logits, **fields):
    return Combination(logits, torch.tensor(0.0), 1.0, LossContext(**fields), lambda *_: None)


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def entropy(row):
    p = torch.exp(row) / torch.exp(row).sum()
    return float(-(p * torch.log(p)).sum())


def test_of_choices():
    z = random(3, 4)
    expected = [entropy(row) / math.log(4) for row in z]
    assert uncertainty(made(z), "targets").tolist() == pytest.approx(expected, rel=1e-5)
    assert uncertainty(made(torch.zeros(2, 5)), "targets").tolist() == pytest.approx([1, 1])
    sure = torch.tensor([[100.0, 0, 0]])
    assert float(uncertainty(made(sure), "targets")) == pytest.approx(0, abs=1e-6)


def test_of_real_choices_alone():
    z, mask = random(3, 4), torch.ones(3, 4)
    mask[1, 2:], mask[2, 1:] = 0, 0
    expected = [entropy(z[0]) / math.log(4), entropy(z[1, :2]) / math.log(2), 0.0]
    actual = uncertainty(made(z, class_mask=mask), "targets").tolist()
    assert actual == pytest.approx(expected, rel=1e-5, abs=1e-7)


MASK = torch.tensor([[0.0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]])


def lm(z, mask=MASK):
    return made(z, rows={"targets": local_rows(mask, len(mask))}, layout=Layout.SHARD_LAST)


def by_hand(z):
    found = []
    for i in range(3):
        each = [entropy(z[i, j]) / math.log(z.size(-1)) for j in range(6) if MASK[i, j]]
        found.append(sum(each) / max(1, len(each)))
    return found


def test_of_a_language_models_rows():
    z = random(3, 6, 8)
    assert uncertainty(lm(z), "targets").tolist() == pytest.approx(by_hand(z), rel=1e-5)
    picked = z[MASK > 0]
    assert uncertainty(lm(picked), "targets").tolist() == pytest.approx(by_hand(z), rel=1e-5)
    without = uncertainty(made(z, layout=Layout.SHARD_LAST), "targets")
    every = [sum(entropy(row) for row in x) / 6 / math.log(8) for x in z]
    assert without.tolist() == pytest.approx(every, rel=1e-5)


def test_it_has_no_gradient_but_in_the_seed():
    z = random(3, 6, 8).requires_grad_()
    assert not uncertainty(lm(z), "targets").requires_grad
    assert padded_uncertainty(lm(z), every=True, labels=False).requires_grad


def test_the_seeds_masked_positions_count_as_unsure():
    z = random(3, 6, 8)
    labels = torch.tensor([[0, 1, 0, 2, 0, 0]] * 3)
    context = {"layout": Layout.SHARD_LAST, "loss_mask": MASK, "labels": labels}
    masks = {(False, False): MASK, (False, True): (labels > 0).float(), (True, True): None}
    for (every, by_label), mask in masks.items():
        x = z if mask is None else z * mask[..., None]
        expected = [sum(entropy(row) for row in sample) / 6 / math.log(8) for sample in x]
        actual = padded_uncertainty(made(z, **context), every=every, labels=by_label)
        assert actual.tolist() == pytest.approx(expected, rel=1e-5)
    choices = padded_uncertainty(made(z[:, 0]), every=False, labels=False)
    assert choices.tolist() == pytest.approx([entropy(r) / math.log(8) for r in z[:, 0]], rel=1e-5)


def sharded(rank, size):
    mpu.initialize_model_parallel(size)
    z = mpu.split(random(3, 6, 8), mpu.Partition(2), rank, size).requires_grad_()
    seed = padded_uncertainty(
        made(z, layout=Layout.SHARD_LAST, loss_mask=MASK), every=False, labels=False
    )
    seed.sum().backward()
    return uncertainty(lm(z), "targets"), seed.detach(), z.grad


def test_on_shards_it_is_the_same():
    z = random(3, 6, 8).requires_grad_()
    seed = padded_uncertainty(
        made(z, layout=Layout.SHARD_LAST, loss_mask=MASK), every=False, labels=False
    )
    seed.sum().backward()
    ranks = run_ranks(2, sharded)
    for u, other, _ in ranks:
        torch.testing.assert_close(u, uncertainty(lm(z), "targets"))
        torch.testing.assert_close(other, seed.detach())
    torch.testing.assert_close(torch.cat([g for _, _, g in ranks], -1), z.grad)
