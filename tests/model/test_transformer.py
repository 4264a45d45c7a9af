"""Memory, recomputed chunks, and the law that capturing changes nothing."""

import copy

import pytest
import torch
from torch.testing import assert_close

import mpu
from mpu import hook_model
from tests.ranks import run_ranks
from tests.toy import rank_grads, toy_glm, toy_lm_batch

LAYER = ("layernorm_output", "mixed_query_layer", "mixed_key_layer", "mixed_value_layer")
LAYER += (
    "query_layer",
    "key_layer",
    "value_layer",
    "context_layer",
    "post_attention_layernorm",
    "tf_output",
)
EXPLICIT = ("attention_scores", "attention_probs")


def hook_of(layers, names=LAYER):
    """Everything, with these names in each of the layers."""
    return {
        "words_embeddings": None,
        "position_ids": None,
        "logits_parallel": None,
        "transformer": {
            "embeddings": None,
            "output": None,
            "layers": {i: dict.fromkeys(names) for i in layers},
        },
    }


def flat(hook, variables, path=()):
    """Path -> captured tensor."""
    found = {}
    for key, value in hook.items():
        if isinstance(value, dict):
            found |= flat(value, variables, (*path, key))
        else:
            found[(*path, key)] = variables[value]
    return found


def run(model, batch, hook=None, hook_op=None, seed=7):
    """Outputs, captures and gradients of a loss over the logits and every captured tensor."""
    mpu.seed_step(seed, 0, 0, 0)
    model.zero_grad()
    variables = []
    inputs = (batch.tokens, batch.position_ids, batch.attention_mask)
    logits, *_ = hook_model(hook, variables, model, *inputs, hook_op=hook_op)
    captured = flat(hook, variables) if hook else {}
    loss = logits.pow(2).mean()
    for tensor in captured.values():
        if tensor.requires_grad:
            loss = loss + tensor.clamp(min=-30).pow(2).mean()
    loss.backward()
    mpu.get_rng_tracker().reset()
    return logits.detach(), captured, rank_grads(model)


def same(actual, expected):
    assert list(actual) == list(expected)
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name


DROPOUT = pytest.mark.parametrize("dropout", [0.0, 0.2])


@DROPOUT
def test_capturing_changes_no_bit_of_the_outputs(dropout):
    model, batch = (
        toy_glm(num_layers=3, attention_dropout=dropout, hidden_dropout=dropout),
        toy_lm_batch(),
    )
    expected, _, _ = run(model, batch)
    actual, captured, _ = run(model, batch, hook_of([0, 2]))
    assert torch.equal(actual, expected)
    assert len(captured) == 5 + 2 * len(LAYER)


def test_capturing_scores_changes_the_outputs_by_rounding_only():
    model, batch = toy_glm(num_layers=3), toy_lm_batch()
    expected, _, _ = run(model, batch)
    actual, captured, _ = run(model, batch, hook_of([1], EXPLICIT))
    assert_close(actual, expected)
    assert captured[("transformer", "layers", 1, "attention_scores")].shape == (
        4,
        4,
        *2 * batch.tokens.shape[1:],
    )


@DROPOUT
@pytest.mark.parametrize("chunk", [1, 2, 5])
@pytest.mark.parametrize("names", [LAYER, EXPLICIT])
def test_recomputation_changes_no_bit_of_captures_and_gradients(chunk, names, dropout):
    options = {"num_layers": 3, "attention_dropout": dropout, "hidden_dropout": dropout}
    plain = toy_glm(**options)
    recomputing = toy_glm(**options, checkpoint_activations=True, checkpoint_num_layers=chunk)
    batch = toy_lm_batch()
    expected = run(plain, batch, hook_of(range(3), names))
    actual = run(recomputing, batch, hook_of(range(3), names))
    assert torch.equal(actual[0], expected[0])
    same(actual[1], expected[1])
    same(actual[2], expected[2])


def test_recomputation_without_hooks():
    batch = toy_lm_batch()
    expected = run(toy_glm(hidden_dropout=0.2), batch)
    actual = run(toy_glm(hidden_dropout=0.2, checkpoint_activations=True), batch)
    assert torch.equal(actual[0], expected[0])
    same(actual[2], expected[2])


def test_a_capture_inside_a_recomputed_chunk_has_its_own_gradient():
    # The loss is on the capture alone: lost gradients would be zero everywhere.
    model, batch = toy_glm(checkpoint_activations=True, checkpoint_num_layers=2), toy_lm_batch()
    hook, variables = {"transformer": {"layers": {1: {"attention_probs": None}}}}, []
    hook_model(hook, variables, model, batch.tokens, batch.position_ids, batch.attention_mask)
    assert len(variables) == 1
    variables[0].pow(2).sum().backward()
    assert model.transformer.layers[0].mlp.dense_h_to_4h.weight.grad.abs().max() > 1e-4
    assert model.transformer.layers[1].mlp.dense_h_to_4h.weight.grad is None


@pytest.mark.parametrize("recompute", [False, True])
def test_edits_reach_layers_and_outputs(recompute):
    model = toy_glm(checkpoint_activations=recompute)
    batch, seen = toy_lm_batch(), {}

    def embeddings(hidden_states, this):
        seen["this"] = this
        return hidden_states * 0.5

    hook_op = {
        "transformer": {
            "embeddings": embeddings,
            "layers": {1: {"layernorm_output": lambda layernorm_output: layernorm_output.flip(0)}},
            "output": lambda output: output + 1,
        }
    }
    hook = {
        "transformer": {
            "embeddings": None,
            "output": None,
            "layers": {1: {"layernorm_output": None}},
        }
    }
    _, edited, _ = run(model, batch, hook, hook_op)
    _, plain, _ = run(model, batch, hook_of([1], ("layernorm_output",)))
    assert seen["this"] is model.transformer
    key = ("transformer", "embeddings")
    assert_close(edited[key], plain[key] * 0.5)

    last = {"transformer": {"output": lambda output: output + 1}}
    _, shifted, _ = run(model, batch, {"transformer": {"output": None}}, last)
    assert_close(shifted[("transformer", "output")], plain[("transformer", "output")] + 1)
    flip = {
        "transformer": {
            "layers": {1: {"layernorm_output": lambda layernorm_output: layernorm_output.flip(0)}}
        }
    }
    _, flipped, _ = run(
        model, batch, {"transformer": {"layers": {1: {"layernorm_output": None}}}}, flip
    )
    key = ("transformer", "layers", 1, "layernorm_output")
    assert_close(flipped[key], plain[key].flip(0))


@pytest.mark.parametrize("recompute", [False, True])
def test_an_edited_block_output_goes_on_to_the_next_block(recompute):
    model, batch = toy_glm(num_layers=2, checkpoint_activations=recompute), toy_lm_batch()
    names, hook = ("layernorm_output", "tf_output"), {"transformer": {"output": None}}
    hook["transformer"]["layers"] = {i: dict.fromkeys(names) for i in range(2)}
    _, plain, _ = run(model, batch, copy.deepcopy(hook))
    halve = {0: {"tf_output": lambda tf_output: tf_output / 2}}
    _, edited, _ = run(model, batch, hook, {"transformer": {"layers": halve}})
    first = plain[("transformer", "layers", 0, "tf_output")] / 2
    assert_close(edited[("transformer", "layers", 0, "tf_output")], first)
    norm = model.transformer.layers[1].input_layernorm
    assert_close(edited[("transformer", "layers", 1, "layernorm_output")], norm(first))


def test_edits_work_without_a_hook():
    model, batch = toy_glm(), toy_lm_batch()
    inputs = (batch.tokens, batch.position_ids, batch.attention_mask)
    expected, *_ = model(batch.tokens.flip(1), *inputs[1:])
    actual, *_ = model(*inputs, hook_op={"input_ids": lambda input_ids: input_ids.flip(1)})
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("recompute", [False, True])
def test_another_list_of_layers_runs_in_its_place(recompute):
    model, batch = toy_glm(num_layers=3, checkpoint_activations=recompute), toy_lm_batch()
    short = toy_glm(num_layers=2)
    short.load_state_dict({k: v for k, v in model.state_dict().items() if ".layers.2." not in k})
    hook_op = {"transformer": {"self_layers": lambda self_layers: [self_layers[0], self_layers[1]]}}
    expected, _, _ = run(short, batch)
    actual, _, _ = run(model, batch, hook_op=hook_op)
    assert torch.equal(actual, expected)


def parts(batch, start, end):
    return batch.tokens[:, start:end], batch.position_ids[..., start:end]


@pytest.mark.parametrize("recompute", [False, True])
def test_a_remembered_prefix_gives_the_same_logits(recompute):
    model, batch = toy_glm(checkpoint_activations=recompute), toy_lm_batch(longest=20)
    cut = int(batch.attention_mask.min())
    whole, *_ = model(batch.tokens, batch.position_ids, torch.tensor([cut]))
    prefix, *mems = model(*parts(batch, 0, cut), torch.tensor([cut]), return_memory=True)
    middle, *mems = model(*parts(batch, cut, cut + 3), 0, *mems, return_memory=True)
    rest, *none = model(*parts(batch, cut + 3, None), 0, *mems)
    assert [len(mems), mems[0].size(1), none] == [3, cut + 3, []]
    assert_close(torch.cat((prefix, middle, rest), dim=1), whole)


def test_memory_is_what_each_layer_read():
    model, batch = toy_glm(), toy_lm_batch()
    hook, variables = hook_of([0, 1], ("tf_output",)), []
    inputs = (batch.tokens, batch.position_ids, batch.attention_mask)
    _, *mems = hook_model(hook, variables, model, *inputs, return_memory=True)
    captured = flat(hook, variables)
    assert torch.equal(mems[0], captured[("transformer", "embeddings")])
    assert torch.equal(mems[1], captured[("transformer", "layers", 0, "tf_output")])
    assert torch.equal(mems[2], captured[("transformer", "layers", 1, "tf_output")])
    assert not any(memory.requires_grad for memory in mems)
    _, *live = model(*inputs, return_memory=True, detach_memory=False)
    assert all(memory.requires_grad for memory in live)


def test_mem_length_keeps_the_last_states():
    model, batch = toy_glm(mem_length=5), toy_lm_batch()
    _, *every = model(*parts(batch, 0, 9), 0, return_memory=True)
    _, *first = model(*parts(batch, 0, 3), 0)
    assert first[0].size(1) == 3
    _, *second = model(*parts(batch, 3, 9), 0, *first)
    assert [memory.size(1) for memory in second] == [5, 5, 5]
    for actual, expected in zip(second, every, strict=True):
        assert_close(actual, expected[:, -5:])


def test_no_graph_no_recomputation(monkeypatch):
    model, batch = toy_glm(checkpoint_activations=True), toy_lm_batch()
    monkeypatch.setattr(mpu, "checkpoint", lambda *_: pytest.fail("recomputed"))
    with torch.no_grad():
        model(batch.tokens, batch.position_ids, batch.attention_mask)


def kinds_of_recomputation(rank, size):
    """Results of `run` with dropout on this many shards: plain, then recomputed in every way."""
    mpu.initialize_model_parallel(size)
    options = {"num_layers": 3, "attention_dropout": 0.2, "hidden_dropout": 0.2}
    found = {}
    for names in (LAYER, EXPLICIT, ()):
        hook = hook_of(range(3), names) if names else None
        ways = {"plain": None, "recomputed": mpu.Keep(), "on the host": mpu.Keep(on_cpu=True)}
        if hook is None:
            ways["cut"] = mpu.Keep(partition=True)
            ways["cut, on the host"] = mpu.Keep(partition=True, on_cpu=True)
        for way, keep in ways.items():
            model = toy_glm(**options, checkpoint_activations=keep is not None)
            model.transformer.keep = keep or mpu.Keep()
            result = run(model, toy_lm_batch(), copy.deepcopy(hook))
            found[names, way] = [dict(part) if isinstance(part, dict) else part for part in result]
            found[names, way][1] = {k: v.detach() for k, v in result[1].items()}
    return found


@pytest.mark.parametrize("size", [1, 2])
def test_every_kind_of_recomputation_changes_no_bit_on_shards(size):
    for found in run_ranks(size, kinds_of_recomputation):
        for (names, way), actual in found.items():
            expected = found[names, "plain"]
            assert torch.equal(actual[0], expected[0]), way
            same(actual[1], expected[1])
            same(actual[2], expected[2])
        assert len(found) == 3 + 3 + 5
