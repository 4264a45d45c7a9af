"""Random streams of a step, and activation checkpointing that replays them bit for bit."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mpu
import mpu.random
from tests.ranks import RankError, run_ranks


def _draws(rank, size, model_parallel_size, key):
    """Numbers of the default stream, of the forked one, and of the default one after it."""
    mpu.initialize_model_parallel(model_parallel_size)
    mpu.seed_step(*key, dp_rank=mpu.get_data_parallel_rank())
    default = torch.rand(4)
    with mpu.get_rng_tracker().fork():
        forked = torch.rand(4)
    return default, forked, torch.rand(4)


def test_streams_of_a_grid_of_two_by_two():
    ranks = run_ranks(4, _draws, 2, (1234, 7, 0))
    default, forked, after = (torch.stack(x) for x in zip(*ranks, strict=True))
    for replica in ((0, 1), (2, 3)):  # a model-parallel group
        assert torch.equal(default[replica[0]], default[replica[1]])
        assert torch.equal(after[replica[0]], after[replica[1]])
    assert not torch.equal(default[0], default[2])
    assert len({tuple(row.tolist()) for row in forked}) == 4


def masks_of_streams(rank, world_size):
    """What dropout keeps (1 or 0) of 40,000 numbers in each stream of a 2 x 2 grid, twice."""
    mpu.initialize_model_parallel(2)
    found = []
    for _ in range(2):
        mpu.seed_step(5, 17, 1, mpu.get_data_parallel_rank())
        replicated = F.dropout(torch.ones(40_000), 0.5) > 0
        with mpu.get_rng_tracker().fork():
            sharded = F.dropout(torch.ones(40_000), 0.5) > 0
        found.append(torch.stack([replicated, sharded]).float())
    assert torch.equal(*found)
    return found[0]


def test_dropout_is_equal_where_it_must_be_and_independent_elsewhere():
    """Two fair masks of n numbers agree on n / 2 of them, give or take sqrt(n) / 2."""
    ranks = run_ranks(4, masks_of_streams)  # ranks 0, 1 are one model-parallel group; 2, 3 another
    assert torch.equal(ranks[0][0], ranks[1][0])
    assert torch.equal(ranks[2][0], ranks[3][0])
    apart = [ranks[0][0], ranks[2][0], *(rank[1] for rank in ranks)]
    for number, one in enumerate(apart):
        assert abs(float(one.mean()) - 0.5) < 4 * 0.5 / 40_000**0.5
        for other in apart[:number]:
            agree = float((one == other).float().mean())
            assert abs(agree - 0.5) < 4 * 0.5 / 40_000**0.5


def test_the_default_stream_stands_still_while_forked():
    [(default, _, after)] = run_ranks(1, _draws, 1, (1, 2, 3))
    mpu.seed_step(1, 2, 3, dp_rank=0)
    try:
        assert torch.equal(torch.rand(8), torch.cat([default, after]))
    finally:
        mpu.get_rng_tracker().reset()


def test_a_step_is_a_pure_function_of_its_key():
    keys = [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4), (1, 3, 2)]
    first = [run_ranks(1, _draws, 1, key)[0] for key in keys]
    again = [run_ranks(1, _draws, 1, key)[0] for key in keys]
    for a, b in zip(first, again, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert len({tuple(default.tolist()) for default, _, _ in first}) == len(keys)
    assert len({tuple(forked.tolist()) for _, forked, _ in first}) == len(keys)


def test_derived_seeds_are_apart():
    keys = list(itertools.product(range(3), range(40), range(4), range(4), range(3)))
    seeds = {mpu.derive_seed(*key) for key in keys}
    assert len(seeds) == len(keys)
    # torch's CPU generator uses the low 32 bits: few of n seeds may meet there, n^2 / 2^33
    assert len({s % 2**32 for s in seeds}) >= len(keys) - 2
    bits = torch.tensor([[s >> i & 1 for i in range(63)] for s in seeds], dtype=torch.float64)
    assert (bits.mean(0) - 0.5).abs().max() < 0.06  # 5760 keys: sigma 0.0066


def test_derived_seeds_of_names_and_large_numbers():
    seeds = [
        mpu.derive_seed(*key)
        for key in (
            (),
            (0,),
            (0, 0),
            (1, 2),
            (2, 1),
            ("a",),
            ("b",),
            ("a", "b"),
            ("ab",),
            (-5,),
            (2**64,),
            (2**64 + 1,),
        )
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**63 for s in seeds)
    assert mpu.derive_seed("x", 3) == mpu.derive_seed("x", 3)


def _unseeded_fork(rank, size):
    mpu.initialize_model_parallel(size)
    with mpu.get_rng_tracker().fork():
        return torch.rand(1)


def test_a_fork_before_the_first_seed():
    run_ranks(1, _unseeded_fork)
    with pytest.raises(RankError, match="seed_step comes before the first dropout"):
        run_ranks(2, _unseeded_fork)


def _fork_and_fail(rank, size):
    mpu.seed_step(1, 2, 3, 0)
    expected = torch.get_rng_state()
    try:
        with mpu.get_rng_tracker().fork():
            torch.rand(3)
            raise KeyError("inside")
    except KeyError:
        return torch.equal(torch.get_rng_state(), expected)


def test_an_error_inside_a_fork_gives_the_default_stream_back():
    assert run_ranks(1, _fork_and_fail) == [True]


# Activation checkpointing


class Block(nn.Module):
    """Dropout of the default stream and, inside a fork, of the model-parallel one; a capture."""

    def __init__(self, width):
        super().__init__()
        self.column = mpu.ColumnParallelLinear(width, 2 * width)
        self.row = mpu.RowParallelLinear(2 * width, width)

    def forward(self, x):
        inner = self.column(x)
        with mpu.get_rng_tracker().fork():
            inner = F.dropout(inner.tanh(), 0.3)
        captured = inner * 2
        return x + F.dropout(self.row(inner), 0.2), {"inner": captured}


def _run_blocks(rank, size, way, passes=1):
    """Gradients of a loss on the output and on captures, and the states of both streams after."""
    mpu.initialize_model_parallel(size)
    if way == "tracker not restored":
        mpu.recompute._Replay.__enter__ = lambda self: None
        mpu.recompute._Replay.__exit__ = lambda self, *_: None
    torch.manual_seed(0)
    blocks = nn.ModuleList(Block(6) for _ in range(3))
    x = torch.randn(4, 6).requires_grad_()
    mpu.seed_step(11, 5, 0, 0)
    y, loss = x, 0.0
    for block in blocks:
        y, captures = block(y) if way == "plain" else mpu.checkpoint(block, y)
        loss = loss + mpu.sum_last(captures["inner"].square(), mpu.Layout.SHARD_LAST).sum()
    loss = loss + y.square().sum()
    for i in range(passes):
        loss.backward(retain_graph=i + 1 < passes)
    gradients = [x.grad, *(p.grad for p in blocks.parameters())]
    states = torch.get_rng_state(), *mpu.get_rng_tracker().get_states()
    return gradients, states


@pytest.mark.parametrize("passes", [1, 2], ids=["one backward", "two backwards"])
@pytest.mark.parametrize("size", [1, 2])
def test_checkpointing_changes_no_bit(size, passes):
    plain = run_ranks(size, _run_blocks, "plain", passes)
    checkpointed = run_ranks(size, _run_blocks, "checkpointed", passes)
    for (expected, states), (actual, states_after) in zip(plain, checkpointed, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(states_after, states, strict=True))


def test_the_check_notices_a_tracker_that_is_not_restored():
    [(expected, _)] = run_ranks(1, _run_blocks, "plain")
    [(actual, _)] = run_ranks(1, _run_blocks, "tracker not restored")
    assert not all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.gpu
def test_streams_and_checkpointing_on_cuda():
    device = torch.device("cuda")
    results = []
    try:
        for way in ("plain", "checkpointed", "checkpointed"):
            torch.manual_seed(0)
            block = Block(6).to(device)
            x = torch.randn(4, 6, device=device).requires_grad_()
            mpu.seed_step(11, 5, 0, 0)
            y, _ = block(x) if way == "plain" else mpu.checkpoint(block, x)
            y.square().sum().backward()
            results.append([y.detach(), x.grad, *(p.grad for p in block.parameters())])
    finally:
        mpu.get_rng_tracker().reset()
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
