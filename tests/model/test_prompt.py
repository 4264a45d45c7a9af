"""Continuous prompts: vectors by formula, their place, shards, official keys, their start."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import mpu
from model.build import HeadSpec, add_head, build_model
from model.partition import partition_for
from model.prompt import PromptSpec, draw_words
from tests.model.reference import assert_grads_close
from tests.ranks import run_ranks
from tests.toy import merged, randomize, rank_grads, toy_cloze_batch, toy_model_args

LENGTH = 3
PLACES = (1, 4, 5)


def glm_with(function="none", **changes):
    spec = HeadSpec("multi_token", prompts=PromptSpec(LENGTH, function))
    args = toy_model_args(**changes)
    return randomize(build_model(args, spec)), args, spec


def batch_with(*ids):
    """A multi-token batch whose contexts have these ids at PLACES."""
    batch = toy_cloze_batch(4, choices=3, multi_token=True)
    tokens = batch.tokens.clone()
    for place, number in zip(PLACES, ids, strict=True):
        tokens[..., place] = number
    return dataclasses.replace(batch, tokens=tokens)


def scores_of(lm, args, spec, batch):
    inputs = (batch.tokens, batch.position_ids, batch.attention_mask, batch.target_ids)
    return add_head(lm, spec, args)(*inputs, batch.logit_mask)[0]


@pytest.mark.parametrize("compressed", [0, 8])
def test_a_prompt_is_a_word_with_a_vector_of_its_own(compressed):
    lm, args, spec = glm_with("none", compress_word_emb=compressed)
    if not compressed:
        words = [60, 61, 62]  # given the prompts' vectors, they are the same
        with torch.no_grad():
            lm.word_embeddings.weight[words] = lm.prompt_spell.spell_embeddings.weight
        expected = scores_of(lm, args, spec, batch_with(*words))
        assert_close(scores_of(lm, args, spec, batch_with(-1, -2, -3)), expected)
    first, second = (
        scores_of(lm, args, spec, batch_with(*x)) for x in ((-1, -2, -3), (-2, -1, -3))
    )
    assert (first - second).abs().max() > 1e-3


def test_vectors_by_formula():
    lm, args, _ = glm_with("mlp")
    w = {k.removeprefix("prompt_spell."): v for k, v in lm.state_dict().items() if "prompt" in k}
    hidden = F.relu(w["spell_embeddings.weight"] @ w["mlp_head.0.weight"].T + w["mlp_head.0.bias"])
    expected = hidden @ w["mlp_head.2.weight"].T + w["mlp_head.2.bias"]
    assert_close(lm.prompt_spell.vectors(), expected)
    lm, args, _ = glm_with("lstm")
    w = {k.removeprefix("prompt_spell."): v for k, v in lm.state_dict().items() if "prompt" in k}
    x = w["spell_embeddings.weight"]
    for layer in (0, 1):
        x = torch.cat([lstm(x, w, layer, back) for back in (False, True)], -1)
    hidden = F.relu(x @ w["mlp_head.0.weight"].T + w["mlp_head.0.bias"])
    expected = hidden @ w["mlp_head.2.weight"].T + w["mlp_head.2.bias"]
    assert_close(lm.prompt_spell.vectors(), expected)


def lstm(x, w, layer, back):
    """One direction of one layer, gate by gate."""
    tail = f"_l{layer}" + ("_reverse" if back else "")
    width = x.size(-1) if layer == 0 else x.size(-1) // 2
    h = c = torch.zeros(width)
    outputs = []
    for row in x.flip(0) if back else x:
        gates = w[f"lstm_head.weight_ih{tail}"] @ row + w[f"lstm_head.bias_ih{tail}"]
        gates = gates + w[f"lstm_head.weight_hh{tail}"] @ h + w[f"lstm_head.bias_hh{tail}"]
        i, f, g, o = gates.chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs).flip(0) if back else torch.stack(outputs)


def test_keys_are_the_official_ones_and_whole_on_every_rank():
    keys = [key for key in glm_with("lstm")[0].state_dict() if key.startswith("prompt_spell")]
    gates = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
    tails = ["_l0", "_l0_reverse", "_l1", "_l1_reverse"]
    expected = ["spell_embeddings.weight"]
    expected += [f"lstm_head.{gate}{tail}" for tail in tails for gate in gates]
    expected += [f"mlp_head.{k}.{name}" for k in (0, 2) for name in ("weight", "bias")]
    assert keys == ["prompt_spell." + key for key in expected]
    assert {partition_for(key) for key in keys} == {None}


def test_without_prompts_a_negative_id_is_an_error():
    lm, args, spec = glm_with()
    bare = randomize(build_model(args, HeadSpec("multi_token")))
    assert not any(key.startswith("prompt") for key in bare.state_dict())
    with pytest.raises(IndexError):
        scores_of(bare, args, spec, batch_with(-1, -2, -3))


def test_building_prompts_changes_nothing_else():
    args = toy_model_args()
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    with_prompts = build_model(args, HeadSpec("multi_token", prompts=PromptSpec(2, "lstm")))
    assert torch.equal(torch.random.get_rng_state(), before)
    for key, value in build_model(args, HeadSpec("multi_token")).state_dict().items():
        assert torch.equal(with_prompts.state_dict()[key], value), key


def scores_and_grads(rank, world_size):
    if world_size > 1:
        mpu.initialize_model_parallel(world_size)
    lm, args, spec = glm_with("lstm", vocab_size=64)
    scores = scores_of(lm, args, spec, batch_with(-1, -2, -3))
    (scores * torch.arange(scores.numel()).view_as(scores)).sum().backward()
    return scores.detach(), rank_grads(lm)


def test_two_model_parallel_ranks_are_one():
    expected, expected_grads = scores_and_grads(0, 1)
    assert expected_grads["prompt_spell.spell_embeddings.weight"].abs().max() > 0
    results = run_ranks(2, scores_and_grads)
    for scores, _ in results:
        assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    like = glm_with("lstm", vocab_size=64)[0]
    assert_grads_close(merged([grads for _, grads in results], like), expected_grads)


def test_what_prompts_start_from():
    draw = torch.Generator().manual_seed(0)
    first, second, share = draw_words(400, 9000, (7, 8), draw)
    assert int(first.max()) < 5000
    assert set(second.tolist()) == {7, 8}
    assert 0 <= float(share.min()) < 0.1 < 0.9 < float(share.max()) <= 1
    first, _, share = draw_words(5, 30, (), draw)
    assert int(first.max()) < 30
    assert share.tolist() == [1.0] * 5


def test_a_model_with_prompts_can_be_built_without_weights():
    with torch.device("meta"):  # as frozen teachers are, before each tensor is read
        model = build_model(toy_model_args(), HeadSpec("lm", prompts=PromptSpec(2, "lstm")))
    assert {p.device.type for p in model.parameters()} == {"meta"}
