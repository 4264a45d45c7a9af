"""Plain PyTorch and ZeRO 0, 1, 2: one training, whatever the engine and the processes."""

import pytest
import torch

import mpu
from distill.engine.wrap import poison_unless_finite
from tests.distill.engine import small
from tests.ranks import run_ranks
from tests.toy import toy_glm, toy_lm_batch

ENGINES = (None, 0, 1, 2, 3)  # plain, ZeRO stages
NAN, INF = float("nan"), float("inf")


def records(world_size, run, **options):
    """Of every rank."""
    return run_ranks(world_size, small.losses, run, options, preload="deepspeed")


@pytest.fixture(scope="module")
def reference():
    """20 steps by hand: the whole batch, torch's AdamW and clipping, no engine."""
    net = small.Net(dropout=0.0)
    decayed = [p for n, p in net.named_parameters() if "bias" not in n and "norm" not in n]
    rest = [p for n, p in net.named_parameters() if "bias" in n or "norm" in n]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=small.LR)
    losses, norms = [], []
    for x in small.global_batches():
        (output,), captured = net(x, hook={"hidden": None})
        adapted = net.adapter(captured["hidden",])
        loss = (output - x[:, :4]).square().mean() + (adapted - 1).square().mean()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, norms


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("stage", ENGINES)
@pytest.mark.parametrize("world_size", [1, 2])
def test_all_engines_train_alike(reference, world_size, stage, accumulation):
    run = small.make_run(stage, accumulation=accumulation)
    expected_losses, expected_norms = reference
    for rank in records(world_size, run):
        assert [r["loss"] for r in rank] == pytest.approx(expected_losses, rel=1e-5)
        assert [r["norm"] for r in rank] == pytest.approx(expected_norms, rel=1e-4)
        assert all(r["applied"] and r["changed"] for r in rank)


@pytest.mark.parametrize("stage", ENGINES)
def test_bf16_follows_fp32(reference, stage):
    (rank,) = records(1, small.make_run(stage, precision="bf16"))
    assert [r["loss"] for r in rank] == pytest.approx(reference[0], rel=0.02)


def test_fp16_scales_its_loss(reference):
    (rank,) = records(1, small.make_run(precision="fp16"))
    assert [r["loss"] for r in rank] == pytest.approx(reference[0], rel=0.02)
    assert rank[0]["scale"] == 65536.0
    assert [r["norm"] for r in rank] == pytest.approx(reference[1], rel=0.02)


@pytest.mark.parametrize(
    ("stage", "precision"),
    [(stage, precision) for stage in ENGINES for precision in ("fp32", "bf16")] + [(None, "fp16")],
)
def test_what_is_not_finite_is_skipped_on_every_rank(stage, precision):
    """Weights, moments and step counts stay bit for bit; the next step is a real one."""
    run = small.make_run(stage, accumulation=2, precision=precision)
    bad = {3: NAN, 4: INF}
    for rank in records(2, run, poison=bad, poison_weights=6, stop=9):
        skipped = [not r["applied"] for r in rank]
        assert skipped == [i in (3, 4, 6) for i in range(9)]
        assert [r["changed"] for r in rank] == [not s for s in skipped]


def test_a_skip_changes_nothing_that_follows():
    """The steps after it are those of a run that never saw it."""
    with_bad = records(1, small.make_run(), poison={0: NAN}, stop=6)[0]
    without = records(1, small.make_run(), start=1, stop=6)[0]
    assert [r["loss"] for r in with_bad[1:]] == [r["loss"] for r in without]


def test_fp16_overflow_halves_the_scale():
    rank = records(1, small.make_run(precision="fp16"), poison={2: INF}, stop=5)[0]
    assert [r["scale"] for r in rank] == [65536.0] * 3 + [32768.0] * 2


def static_scale(rank, world_size, run):
    import dataclasses

    run = dataclasses.replace(run, precision=dataclasses.replace(run.precision, loss_scale=512.0))
    engine = small.make_engine(rank, world_size, run, dropout=0.0)
    return small.train(engine, rank, world_size, 1, stop=5, poison={2: INF})


def test_a_static_loss_scale_stays():
    (rank,) = run_ranks(1, static_scale, small.make_run(precision="fp16"))
    assert [r["scale"] for r in rank] == pytest.approx([512.0] * 5, rel=1e-5)
    assert [r["applied"] for r in rank] == [True, True, False, True, True]


def uses_parts_in_turn(rank, world_size, run):
    """Rank 0 never uses the adapter, rank 1 uses it in odd steps: nobody hangs."""
    engine = small.make_engine(rank, world_size, run, dropout=0.0)
    for iteration in range(4):
        x = torch.ones(2, small.WIDTH)
        (output,), captured = engine(x, hook={"hidden": None})
        loss = output.square().mean()
        if rank == 1 and iteration % 2:
            loss = loss + engine.module.adapter(captured["hidden",]).square().mean()
        engine.backward(loss)
        engine.step(small.LR)
    return {k: v.detach().clone() for k, v in engine.module.state_dict().items()}


@pytest.mark.parametrize("stage", [None, 0])  # ZeRO 1 and 2 want the same use on all ranks
def test_ranks_may_use_different_parameters(stage):
    first, second = run_ranks(2, uses_parts_in_turn, small.make_run(stage), preload="deepspeed")
    assert all(torch.equal(first[k], second[k]) for k in first)
    start = small.Net().state_dict()
    assert not torch.equal(first["adapter.weight"], start["adapter.weight"])


def test_a_constant_loss_is_a_step_without_gradient():
    engine = small.make_engine(0, 1, small.make_run())
    engine.backward(torch.zeros(()))
    result = engine.step(small.LR)
    assert bool(result.applied)
    assert result.grad_norm.item() == 0.0
    mpu.destroy_model_parallel()


def test_a_poisoned_loss_makes_every_gradient_nan():
    x = torch.ones(3, requires_grad=True)
    (poison_unless_finite(x.sum() * 0 + torch.inf)).backward()
    assert x.grad.isnan().all()
    y = torch.ones(3, requires_grad=True)
    poison_unless_finite(y.sum()).backward()
    assert torch.equal(y.grad, torch.ones(3))


def train_glm(rank, world_size, run, p):
    """A toy GLM cut in p: 5 steps; losses and gradient norms."""
    from distill.engine.wrap import wrap

    mpu.initialize_model_parallel(p)
    engine = wrap(toy_glm(seed=3), run, small.runtime(rank, world_size))
    found = []
    for iteration in range(5):
        batch = toy_lm_batch(seed=iteration)
        logits, *_ = engine(batch.tokens, batch.position_ids, batch.attention_mask)
        losses = mpu.vocab_parallel_cross_entropy(logits, batch.labels) * batch.loss_mask
        loss = losses.sum() / batch.loss_mask.sum()
        engine.backward(loss)
        result = engine.step(small.LR)
        found.append((loss.item(), result.grad_norm.item()))
    return found


@pytest.mark.parametrize("stage", ENGINES)
def test_training_does_not_depend_on_the_model_parallel_size(stage):
    run = small.make_run(stage)
    (expected,) = run_ranks(1, train_glm, small.make_run(), 1)
    for actual in run_ranks(2, train_glm, run, 2, preload="deepspeed"):
        torch.testing.assert_close(torch.tensor(actual), torch.tensor(expected), rtol=2e-4, atol=0)


def resume(rank, world_size, run, folder):
    """10 steps at once, and 5 + save + new engine + 5; dropout is on."""
    accumulation = run.train.gradient_accumulation_steps
    whole = small.make_engine(rank, world_size, run)
    expected = small.train(whole, rank, world_size, accumulation, stop=10)
    half = small.make_engine(rank, world_size, run)
    small.train(half, rank, world_size, accumulation, stop=5)
    folder.mkdir(exist_ok=True)
    if world_size > 1:
        torch.distributed.barrier()
    half.save(folder, {"iteration": 5, "note": "five"})
    if world_size > 1:
        torch.distributed.barrier()
    torch.manual_seed(99)
    again = small.make_engine(rank, world_size, run)
    with torch.no_grad():
        for parameter in again.module.parameters():
            parameter.add_(1)
    client = again.load(folder)
    actual = small.train(again, rank, world_size, accumulation, start=5, stop=10)
    equal = small.same(small.snapshot(whole), small.snapshot(again))
    return expected[5:] == actual, equal, (client["iteration"], client["note"])


@pytest.mark.parametrize(
    ("stage", "precision"),
    [(None, "fp32"), (0, "fp32"), (1, "fp32"), (2, "fp32"), (None, "bf16"), (0, "bf16")]
    + [(1, "bf16"), (2, "bf16"), (None, "fp16"), (3, "fp32"), (3, "bf16")],
)
@pytest.mark.parametrize("world_size", [1, 2])
def test_resuming_is_bitwise_invisible(tmp_path, world_size, stage, precision):
    run = small.make_run(stage, accumulation=2, precision=precision)
    for ranks in run_ranks(world_size, resume, run, tmp_path / "5", preload="deepspeed"):
        assert ranks == (True, True, (5, "five"))
