"""Masks, fused and explicit attention, scale, dropout."""

import pytest
import torch
from torch.testing import assert_close

import mpu
from model.attention import MASKED, ParallelSelfAttention, glm_mask
from model.init import normal
from mpu import Recorder
from tests.model.reference import dense_attention
from tests.toy import randomize, toy_model_args

CPU = torch.device("cpu")


def visible(sep, length, memory=0):
    """The definition, entry by entry."""
    rows = [
        [
            [j < memory or j - memory <= i or j - memory < one for j in range(memory + length)]
            for i in range(length)
        ]
        for one in sep
    ]
    return torch.tensor(rows)[:, None]


def attention(**changes):
    args = toy_model_args(**changes)
    fill = normal(0.02, torch.Generator())
    return randomize(ParallelSelfAttention(args, fill, fill), seed=3)


def inputs(batch=3, length=7, width=16, seed=0):
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(seed))


def record(module, *args, names=("attention_scores", "attention_probs", "context_layer")):
    recorder = Recorder(dict.fromkeys(names))
    output = module(*args, recorder=recorder)
    return output, {path[-1]: tensor for path, tensor in recorder.captured.items()}


@pytest.mark.parametrize("memory", [0, 3])
def test_mask_follows_the_separator_of_each_sample(memory):
    expected = visible([0, 2, 5], 5, memory)
    actual = glm_mask(torch.tensor([0, 2, 5]), 5, memory, CPU)
    assert actual.dtype == torch.bool
    assert actual.tolist() == expected.tolist()


@pytest.mark.parametrize("sep", [3, torch.tensor(3), torch.tensor([3])])
def test_mask_of_one_separator_serves_the_batch(sep):
    assert glm_mask(sep, 5, 2, CPU).tolist() == visible([3], 5, 2).tolist()


@pytest.mark.parametrize("dtype", [torch.float, torch.long, torch.bool])
def test_ready_mask_is_used_up_to_its_last_columns(dtype):
    expected = torch.rand(2, 1, 4, 7, generator=torch.Generator().manual_seed(0)) > 0.5
    wider = torch.cat((torch.ones(2, 1, 4, 2), expected.float()), dim=-1).to(dtype)
    assert glm_mask(wider, 4, 3, CPU).tolist() == expected.tolist()


def test_fused_and_explicit_attention_equal_the_formula():
    module, x, mask = attention(), inputs(), glm_mask(torch.tensor([0, 3, 7]), 7, 0, CPU)
    q, k, v = (
        part.view(3, 7, 4, 4).transpose(1, 2)
        for part in (x @ module.query_key_value.weight.T + module.query_key_value.bias).chunk(3, -1)
    )
    scores, probs, context = dense_attention(q, k, v, mask)
    context = context.transpose(1, 2).reshape(3, 7, 16)
    expected = context @ module.dense.weight.T + module.dense.bias

    explicit, captured = record(module, x, mask)
    assert_close(module(x, mask), expected)
    assert_close(explicit, expected)
    assert_close(captured["attention_scores"], scores)
    assert_close(captured["attention_probs"], probs)
    assert_close(captured["context_layer"], context)
    assert (captured["attention_scores"][~mask.expand_as(scores)] == MASKED).all()


def test_only_scores_and_probabilities_make_attention_explicit(monkeypatch):
    module, x, mask = attention(), inputs(), glm_mask(2, 7, 0, CPU)
    calls = []
    monkeypatch.setattr(
        module, "_scores", lambda *a: calls.append(1) or ParallelSelfAttention._scores(module, *a)
    )
    record(module, x, mask, names=("context_layer", "query_layer", "mixed_value_layer"))
    assert calls == []
    record(module, x, mask, names=("attention_probs",))
    assert calls == [1]


@pytest.mark.parametrize("explicit", [False, True])
def test_scale_changes_nothing_but_the_range_of_the_products(explicit):
    x, mask = inputs(), glm_mask(torch.tensor([1, 3, 7]), 7, 0, CPU)
    plain, scaled = attention(), attention(attention_scale=8.0)
    expected = plain(x, mask)
    if not explicit:
        assert torch.equal(scaled(x, mask), expected)
        return
    actual, captured = record(scaled, x, mask)
    assert_close(actual, expected)
    seen, hidden = mask.expand(3, 4, 7, 7), ~mask.expand(3, 4, 7, 7)
    # Shifted by each row's largest masked product; an invisible key counts as 0 there.
    scores = record(plain, x, mask)[1]["attention_scores"].masked_fill(hidden, 0.0)
    shifted = scores - scores.amax(-1, keepdim=True)
    assert_close(captured["attention_scores"][seen], shifted[seen])
    assert (captured["attention_scores"][hidden] == MASKED).all()


def test_memory_gives_keys_and_values_but_no_queries():
    module, x = attention(), inputs(length=9)
    expected = module(x, glm_mask(0, 9, 0, CPU))[:, 4:]
    actual, captured = record(
        module, x[:, 4:], glm_mask(0, 5, 4, CPU), x[:, :4], names=("mixed_query_layer", "key_layer")
    )
    assert_close(actual, expected)
    assert captured["mixed_query_layer"].shape == (3, 5, 16)
    assert captured["key_layer"].shape == (3, 4, 9, 4)


def test_gradients_of_fused_and_explicit_attention_agree():
    module, mask = attention(), glm_mask(torch.tensor([0, 3, 7]), 7, 0, CPU)
    grads = []
    for names in ((), ("attention_probs",)):
        x = inputs().requires_grad_()
        output, _ = record(module, x, mask, names=names)
        output.pow(2).sum().backward()
        grads.append(x.grad)
    assert_close(grads[1], grads[0])


@pytest.mark.parametrize("explicit", [False, True])
def test_dropout_draws_from_the_model_parallel_stream(explicit):
    module, x, mask = attention(attention_dropout=0.5), inputs(), glm_mask(7, 7, 0, CPU)
    names = ("attention_probs",) if explicit else ()
    tracker = mpu.get_rng_tracker()
    try:
        mpu.seed_step(1, 2, 3, 0)
        before = torch.get_rng_state()
        first, captured = record(module, x, mask, names=names)
        assert torch.equal(torch.get_rng_state(), before)  # the default stream stood still
        second, _ = record(module, x, mask, names=names)
        mpu.seed_step(1, 2, 3, 0)
        again, _ = record(module, x, mask, names=names)
    finally:
        tracker.reset()
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    if explicit:  # captured before dropout
        assert_close(captured["attention_probs"].sum(-1), torch.ones(3, 4, 7))
    module.eval()
    assert_close(record(module, x, mask, names=names)[0], record(module, x, mask)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_half_precision_stays_finite_and_close(dtype, scale):
    module, x, mask = (
        attention(attention_scale=scale),
        inputs(),
        glm_mask(torch.tensor([0, 3, 7]), 7, 0, CPU),
    )
    expected, reference = record(module, x, mask)
    half = module.to(dtype)
    for names in ((), ("attention_scores", "attention_probs")):
        actual, captured = record(half, x.to(dtype), mask, names=names)
        assert actual.dtype == dtype
        assert_close(actual.float(), expected, rtol=0.05, atol=0.05)
    assert captured["attention_scores"].isfinite().all()
    assert_close(
        captured["attention_probs"].float(), reference["attention_probs"], rtol=0.05, atol=0.02
    )
