"""Gradient norm and clipping: the same at p = 1, 2, 4."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import mpu
from tests.ranks import run_ranks


class Model(nn.Module):
    """Sharded and replicated parameters, one of them unused."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.embedding = mpu.VocabParallelEmbedding(12, 8)
        self.norm = nn.LayerNorm(8)
        self.column = mpu.ColumnParallelLinear(8, 16)
        self.row = mpu.RowParallelLinear(16, 8)
        self.unused = nn.Linear(8, 8)

    def forward(self, ids):
        return self.row(self.column(self.norm(self.embedding(ids))).tanh())


def _gradients(model):
    ids = torch.arange(12).view(2, 6)
    model(ids).square().sum().backward()


def _norm_and_clip(rank, size):
    """The norm before, and every gradient after clipping to 0.5 (with its partition)."""
    mpu.initialize_model_parallel(size)
    model = Model()
    _gradients(model)
    norm = mpu.grad_norm(model.parameters())
    before = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    mpu.clip_grads(model.parameters(), 0.5, norm)
    after = {n: (p.grad, mpu.partition_of(p)) for n, p in model.named_parameters() if n in before}
    return norm, before, after, mpu.grad_norm(model.parameters())


@pytest.mark.parametrize("size", [1, 2, 4])
def test_norm_and_clipped_gradients_do_not_depend_on_the_size(size):
    model = Model()
    _gradients(model)
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    expected = torch.cat([g.flatten() for g in gradients.values()]).norm()
    assert expected > 1  # so that clipping does something
    ranks = run_ranks(size, _norm_and_clip)
    for norm, _, _, clipped in ranks:
        assert_close(norm, expected)
        assert norm.shape == ()
        assert_close(clipped, torch.tensor(0.5))
        assert torch.equal(norm, ranks[0][0])  # the same bits, or replicas drift apart
    for name, gradient in gradients.items():
        shards, partition = [r[2][name][0] for r in ranks], ranks[0][2][name][1]
        assert_close(mpu.merge(shards, partition), gradient * (0.5 / expected))


def _forgotten_mark(rank, size):
    mpu.initialize_model_parallel(size)
    model = Model()
    _gradients(model)
    del model.column.weight.model_partition
    return mpu.grad_norm(model.parameters())


def test_the_check_notices_a_shard_that_is_not_marked():
    right, wrong = run_ranks(2, _norm_and_clip)[0][0], run_ranks(2, _forgotten_mark)[0]
    assert abs(right - wrong) > 1e-3


def test_a_small_norm_is_not_scaled():
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.tensor([0.1, 0.2, 0.2])
    mpu.clip_grads([weight], 1.0, mpu.grad_norm([weight]))
    assert_close(weight.grad, torch.tensor([0.1, 0.2, 0.2]))


def test_no_gradients_have_norm_zero():
    assert mpu.grad_norm([]) == 0
    assert mpu.grad_norm([nn.Parameter(torch.ones(2))]) == 0


def test_half_precision_gradients_give_an_fp32_norm():
    weight = nn.Parameter(torch.zeros(64, dtype=torch.bfloat16))
    weight.grad = torch.ones(64, dtype=torch.bfloat16)
    norm = mpu.grad_norm([weight])
    assert norm.dtype == torch.float32
    assert norm == 8


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_gradient_shows_in_the_norm(bad):
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.tensor([1.0, bad, 1.0])
    assert not torch.isfinite(mpu.grad_norm([weight]))
