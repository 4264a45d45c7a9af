"""Vocabulary-parallel cross entropy against torch: values and gradients at p = 1, 2, 4."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import mpu
from mpu import cross_entropy
from tests.ranks import RankError, run_ranks

SIZES = (1, 2, 4)
VOCABULARY = 24


def _inputs(scale=3.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(2, 5, VOCABULARY, generator=generator) * scale).to(dtype)
    target = torch.randint(0, VOCABULARY, (2, 5), generator=generator)
    weight = torch.rand(2, 5, generator=generator)
    return logits, target, weight


def _sharded(rank, size, logits, target, weight, chunk, smoothing=0.0):
    """Loss of each token and the gradient of the rank's logits."""
    mpu.initialize_model_parallel(size)
    cross_entropy._CHUNK_ELEMENTS = chunk
    shard = mpu.split(logits, mpu.Partition(-1), rank, size).clone().requires_grad_()
    loss = mpu.vocab_parallel_cross_entropy(shard, target, smoothing)
    (loss * weight).sum().backward()
    return loss.detach(), shard.grad


def _dense(logits, target, weight, smoothing=0.0):
    logits = logits.float().clone().requires_grad_()
    rows = logits.flatten(0, 1), target.flatten()
    loss = F.cross_entropy(*rows, reduction="none", label_smoothing=smoothing).view_as(target)
    (loss * weight).sum().backward()
    return loss.detach(), logits.grad


@pytest.mark.parametrize("chunk", [1, 3 * VOCABULARY, 1 << 20], ids=lambda c: f"chunk{c}")
@pytest.mark.parametrize("size", SIZES)
def test_value_and_gradient_do_not_depend_on_the_size(size, chunk):
    inputs = _inputs()
    expected_loss, expected_gradient = _dense(*inputs)
    ranks = run_ranks(size, _sharded, *inputs, chunk)
    for loss, _ in ranks:
        assert_close(loss, expected_loss)
    assert_close(mpu.merge([g for _, g in ranks], mpu.Partition(-1)), expected_gradient)


@pytest.mark.parametrize("size", [1, 2])
def test_label_smoothing_is_over_the_words_of_all_shards(size):
    inputs = _inputs()
    expected_loss, expected_gradient = _dense(*inputs, smoothing=0.1)
    ranks = run_ranks(size, _sharded, *inputs, 3 * VOCABULARY, 0.1)
    for loss, _ in ranks:
        assert_close(loss, expected_loss)
    assert_close(mpu.merge([g for _, g in ranks], mpu.Partition(-1)), expected_gradient)


@pytest.mark.parametrize("size", SIZES)
def test_large_logits_stay_finite(size):
    logits, target, weight = _inputs(scale=3e4)
    ranks = run_ranks(size, _sharded, logits, target, weight, 1 << 20)
    expected_loss, expected_gradient = _dense(logits, target, weight)
    for loss, _ in ranks:
        assert_close(loss, expected_loss)
    assert_close(mpu.merge([g for _, g in ranks], mpu.Partition(-1)), expected_gradient)


def test_half_precision_logits_are_treated_in_fp32():
    inputs = _inputs(dtype=torch.bfloat16)
    expected_loss, expected_gradient = _dense(*inputs)
    [(loss, gradient)] = run_ranks(1, _sharded, *inputs, 1 << 20)
    assert loss.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16
    assert_close(loss, expected_loss)
    assert_close(gradient, expected_gradient.bfloat16())


def test_one_process_needs_no_group():
    logits, target, _ = _inputs()
    actual = mpu.vocab_parallel_cross_entropy(logits, target)
    assert actual.shape == target.shape
    assert_close(actual, _dense(*_inputs())[0])


def test_a_flat_batch():
    logits, target, _ = _inputs()
    actual = mpu.vocab_parallel_cross_entropy(logits[0], target[0])
    assert_close(actual, F.cross_entropy(logits[0], target[0], reduction="none"))


def test_logits_are_not_written_to():
    logits, target, _ = _inputs()
    before = logits.clone()
    mpu.vocab_parallel_cross_entropy(logits.requires_grad_(), target).sum().backward()
    assert torch.equal(logits.detach(), before)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("wrong", [-100, VOCABULARY])
def test_a_target_outside_the_vocabulary_is_an_error(size, wrong):
    logits, target, weight = _inputs()
    target[0, 0] = wrong
    with pytest.raises(RankError, match="out of bounds"):
        run_ranks(size, _sharded, logits, target, weight, 1 << 20)
