"""The law of losses on shards: value and gradient do not depend on p, for every layout."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import mpu
import mpu.softmax
from mpu import Layout
from tests.ranks import run_ranks

SIZES = (1, 2, 4)
WIDTH = 24
# Where each layout cuts [2, 4, 6, 24].
CUTS = {
    Layout.REPLICATED: None,
    Layout.SHARD_HEADS: mpu.Partition(1),
    Layout.SHARD_LAST: mpu.Partition(-1),
}


def _numbers(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(2, 4, 6, WIDTH, generator=generator) * 2).to(dtype)


def _own(x, layout):
    rank, size = mpu.get_model_parallel_rank(), mpu.get_model_parallel_world_size()
    return mpu.split(x, CUTS[layout], rank, size).clone()


# Each loss on shards, and the same on whole tensors, written with torch only.


def _kl(s, t, layout):
    log_q, log_p = mpu.log_softmax(s, layout), mpu.log_softmax(t, layout)
    return _mean(mpu.sum_last(log_p.exp() * (log_p - log_q), layout), layout)


def _dense_kl(s, t):
    log_q, log_p = torch.log_softmax(s, -1), torch.log_softmax(t, -1)
    return F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).mean()


def _entropy(s, t, layout):
    return _mean(mpu.entropy(mpu.log_softmax(s, layout), layout), layout)


def _dense_entropy(s, t):
    return torch.distributions.Categorical(logits=s).entropy().mean()


def _mse(s, t, layout):
    return mpu.mean_over_shards((s - t).square().mean(), layout)


def _dense_mse(s, t):
    return F.mse_loss(s, t)


def _cosine(s, t, layout):
    dot, ss, tt = (mpu.sum_last(a * b, layout) for a, b in ((s, t), (s, s), (t, t)))
    return _mean(1 - dot / (ss * tt).sqrt(), layout)


def _dense_cosine(s, t):
    return (1 - F.cosine_similarity(s, t, dim=-1)).mean()


def _normaliser(s, t, layout):
    # the normaliser meets the rank's own columns: its gradient comes from all ranks
    weighted = mpu.sum_last((s - mpu.logsumexp(s, layout)).sigmoid() * t, layout)
    return _mean(weighted, layout)


def _dense_normaliser(s, t):
    return ((s - s.logsumexp(-1, keepdim=True)).sigmoid() * t).sum(-1).mean()


def _picked(s, t, layout):
    indices = mpu.top_k(t, 5, layout)[1]
    return _mean(torch.log_softmax(mpu.take_last(s, indices, layout), -1)[..., 0], layout)


def _dense_picked(s, t):
    return torch.log_softmax(s.gather(-1, t.topk(5).indices), -1)[..., 0].mean()


def _mean(rows, layout):
    """Mean over rows that are whole (SHARD_LAST) or the rank's own heads."""
    return rows.mean() if layout is Layout.SHARD_LAST else mpu.mean_over_shards(rows.mean(), layout)


LOSSES = {
    "kl": (_kl, _dense_kl),
    "entropy": (_entropy, _dense_entropy),
    "mse": (_mse, _dense_mse),
    "cosine": (_cosine, _dense_cosine),
    "normaliser": (_normaliser, _dense_normaliser),
    "picked": (_picked, _dense_picked),
}


def _on_shards(rank, size, mutation=None):
    """{(loss, layout): (value, gradients of both arguments)}"""
    mpu.initialize_model_parallel(size)
    if mutation == "identity backward":
        mpu.softmax.sum_across_model_parallel_region = mpu.reduce_from_model_parallel_region
    if mutation == "double backward":
        mpu.softmax.reduce_from_model_parallel_region = mpu.sum_across_model_parallel_region
    results = {}
    for name, (loss, _) in LOSSES.items():
        for layout in Layout:
            s, t = (_own(_numbers(seed), layout).requires_grad_() for seed in (0, 1))
            value = loss(s, t, layout)
            value.backward()
            results[name, layout.value] = (value.detach(), s.grad, t.grad)
    return results


@pytest.fixture(scope="module", params=SIZES)
def results(request):
    return run_ranks(request.param, _on_shards)


def _check(ranks, name, layout):
    s, t = (_numbers(seed).requires_grad_() for seed in (0, 1))
    expected = LOSSES[name][1](s, t)
    expected.backward()
    for value, _, _ in (r[name, layout.value] for r in ranks):
        assert_close(value, expected.detach())
    for i, whole in ((1, s), (2, t)):
        shards = [r[name, layout.value][i] for r in ranks]
        if whole.grad is None:
            assert all(g is None for g in shards)
        else:
            assert_close(mpu.merge(shards, CUTS[layout]), whole.grad)


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_does_not_depend_on_the_size(results, name, layout):
    _check(results, name, layout)


@pytest.mark.parametrize(
    ("mutation", "name"),
    [("identity backward", "kl"), ("identity backward", "normaliser"), ("double backward", "mse")],
)
def test_the_law_notices_a_wrong_backward(mutation, name):
    with pytest.raises(AssertionError):
        _check(run_ranks(2, _on_shards, mutation), name, Layout.SHARD_LAST)


def _top(rank, size, k):
    mpu.initialize_model_parallel(size)
    x = _own(_numbers(3), Layout.SHARD_LAST)
    return (*mpu.top_k(x, k, Layout.SHARD_LAST), mpu.top_k_threshold(x, k, Layout.SHARD_LAST))


@pytest.mark.parametrize("k", [1, 5, 10, WIDTH, WIDTH + 7])
@pytest.mark.parametrize("size", SIZES)
def test_top_k_of_the_whole_row(size, k):
    expected = _numbers(3).topk(min(k, WIDTH), dim=-1)
    for values, indices, threshold in run_ranks(size, _top, k):
        assert torch.equal(values, expected.values)
        assert torch.equal(indices, expected.indices)
        assert torch.equal(threshold, expected.values[..., -1:])


@pytest.mark.parametrize("layout", [Layout.REPLICATED, Layout.SHARD_HEADS, Layout.SHARD_LAST])
def test_fp32_whatever_comes_in(layout):
    x = _numbers(0, torch.bfloat16)
    log_p = mpu.log_softmax(x, layout)
    assert log_p.dtype == torch.float32
    assert_close(log_p, torch.log_softmax(x.float(), -1))
    assert mpu.sum_last(x, layout).dtype == torch.float32
    assert mpu.logsumexp(x, layout).dtype == torch.float32


def _large(rank, size):
    mpu.initialize_model_parallel(size)
    return mpu.log_softmax(_own(_numbers(0) * 1e4, Layout.SHARD_LAST), Layout.SHARD_LAST)


@pytest.mark.parametrize("size", SIZES)
def test_large_logits_stay_finite(size):
    actual = mpu.merge(run_ranks(size, _large), mpu.Partition(-1))
    assert_close(actual, torch.log_softmax(_numbers(0) * 1e4, -1))
