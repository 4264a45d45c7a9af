"""Relative positions: the formula pair by pair, for every p; memory, scale, captures, recomputation."""

import dataclasses
import math

import pytest
import torch

import mpu
from config import ConfigError, parse_args
from mpu import hook_model
from tests.model.reference import PlainGLM, assert_grads_close
from tests.ranks import run_ranks
from tests.toy import merged, rank_grads, toy_glm, toy_lm_batch, toy_model_args

XL = {"transformer_xl": True}


class PlainXL(PlainGLM):
    """The formulas of Transformer-XL, one pair of query and key at a time."""

    def forward(self, ids, positions, sep):
        w = dict(zip(self.names, self.weights, strict=True))
        x = w["word_embeddings.weight"][ids]
        for i in range(self.args.num_layers):
            name = f"transformer.layers.{i}."
            x = x + self.attend(w, name, self._norm(w, name + "input_layernorm.", x), sep)
            x = x + self._mlp(w, name, "post_attention_layernorm.", "mlp.", x, 0.0)
        x = self._norm(w, "transformer.final_layernorm.", x)
        return x @ w["word_embeddings.weight"].T

    def place(self, distance):
        width = self.args.hidden_size
        angles = [distance * 10000 ** (-2 * t / width) for t in range(width // 2)]
        return torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles])

    def attend(self, w, name, x, sep):
        heads, width = self.args.num_attention_heads, self.args.hidden_size
        d, length = width // heads, x.size(1)
        q, k, v = self._linear(w, name + "attention.query_key_value.", x).chunk(3, dim=-1)
        u, r = w["transformer.r_w_bias"], w["transformer.r_r_bias"]
        far = {
            k: self._linear(w, name + "attention.relative.", self.place(k))
            for k in range(1 - length, length)
        }
        samples = []
        for b in range(len(x)):
            rows = []
            for i in range(length):
                parts = []
                for n in range(heads):
                    own = slice(n * d, (n + 1) * d)
                    seen = [j for j in range(length) if j <= i or j < sep[b]]
                    scores = torch.stack(
                        [
                            (q[b, i, own] + u[n]) @ k[b, j, own]
                            + (q[b, i, own] + r[n]) @ far[i - j][own]
                            for j in seen
                        ]
                    )
                    parts.append((scores / math.sqrt(d)).softmax(0) @ v[b, seen][:, own])
                rows.append(torch.cat(parts))
            samples.append(torch.stack(rows))
        return self._linear(w, name + "attention.dense.", torch.stack(samples))


def batch_of(longest=15, number=2):
    batch = toy_lm_batch(number, longest=longest)
    return batch.tokens, batch.position_ids, batch.attention_mask


def run_model(rank, size, options):
    mpu.initialize_model_parallel(size)
    model = toy_glm(**XL, **options)
    logits = model(*batch_of())[0]
    whole = mpu.gather_from_model_parallel_region(logits)
    whole.pow(2).sum().backward()
    return whole.detach(), rank_grads(model)


@pytest.mark.parametrize(
    ("size", "options"),
    [
        *((1, {}), (2, {}), (4, {})),
        (2, {"attention_scale": 8.0}),
        (2, {"checkpoint_activations": True}),
    ],
    ids=str,
)
def test_every_pair_has_the_score_of_its_distance(size, options):
    like = toy_glm(**XL, **options)
    parameters = dict(like.named_parameters())
    plain = PlainXL(like_args(), parameters)
    expected = plain(*batch_of())
    expected.pow(2).sum().backward()
    results = run_ranks(size, run_model, options)
    for actual, _ in results:
        torch.testing.assert_close(actual, expected.detach(), rtol=1e-4, atol=1e-5)
    actual = merged([grads for _, grads in results], like)
    assert float(actual.pop("transformer.position_embeddings.inv_freq").abs().max()) == 0
    # b_r shifts all scores of a query alike, which changes nothing: its gradient is 0.
    for name in [name for name in actual if name.endswith("relative.bias")]:
        torch.testing.assert_close(actual.pop(name), torch.zeros(16), rtol=0, atol=1e-4)
    assert_grads_close(actual, {k: plain.grads()[k] for k in actual})


def like_args():
    return toy_model_args(**XL)


def test_names_and_shapes_are_the_seeds():
    model = toy_glm(**XL)
    state = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert state["transformer.position_embeddings.inv_freq"] == [8]
    assert state["transformer.r_w_bias"] == state["transformer.r_r_bias"] == [4, 4]
    assert state["transformer.layers.1.attention.relative.weight"] == [16, 16]
    assert state["transformer.layers.1.attention.relative.bias"] == [16]
    tables = [n for n in state if "position_embeddings.weight" in n]
    assert tables == []
    fresh = type(model)(like_args())
    assert not fresh.transformer.r_w_bias.any()


@pytest.mark.parametrize("cuts", [(4,), (3, 7)])
def test_remembered_states_are_as_far_away_as_they_were(cuts):
    """Behind the context all is causal: piece by piece with a memory, or at once."""
    model = toy_glm(**XL)
    ids, positions, _ = batch_of()
    expected = model(ids, positions, 0)[0]
    mems, found, length = [], [], ids.size(1)
    for first, last in zip((0, *cuts), (*cuts, length), strict=True):
        logits, *mems = model(
            ids[:, first:last], positions[..., first:last], 0, *mems, return_memory=True
        )
        found.append(logits)
    torch.testing.assert_close(torch.cat(found, dim=1), expected, rtol=1e-4, atol=1e-5)


def test_distances_do_not_depend_on_where_a_sample_begins():
    """Causally, tokens see the same before them whatever their positions are called."""
    model = toy_glm(**XL)
    ids, positions, _ = batch_of()
    shifted = model(ids, positions + 7, 0)[0]
    assert torch.equal(model(ids, positions, 0)[0], shifted)


def test_captures_change_nothing():
    model, inputs = toy_glm(**XL), batch_of()
    hook, found = {"transformer": {"layers": {1: {"attention_scores": None}}}}, []
    captured = hook_model(hook, found, model, *inputs)[0]
    assert torch.equal(captured, model(*inputs)[0])
    assert found[0].shape == (2, 4, inputs[0].size(1), inputs[0].size(1))


def test_what_it_does_not_go_with():
    flags = ["--task=copa", "--data-dir=x", "--cloze-eval", "--epochs=1", "--transformer-xl"]
    with pytest.raises(ConfigError, match="--transformer-xl: .*--fast-decode"):
        parse_args([*flags, "--fast-decode"], program="finetune", methods={})
    assert dataclasses.replace(like_args(), mem_length=3).transformer_xl
