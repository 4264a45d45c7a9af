"""Laws that every shape of GLM keeps: against a plain implementation, on ranks, when recomputed."""

import pytest
import torch
from torch.testing import assert_close

import mpu
from model.glm import GLMModel
from tests.model.reference import PlainGLM, assert_grads_close, is_table
from tests.model.test_relative import PlainXL
from tests.model.test_transformer import EXPLICIT, LAYER, hook_of, run, same
from tests.ranks import run_ranks
from tests.toy import SHAPES, merged, rank_grads, toy_glm, toy_lm_batch, toy_model_args

EACH = pytest.mark.parametrize("shape", SHAPES)


def loss_of(logits):
    return logits.logsumexp(-1).pow(2).mean() + logits[..., ::3].pow(2).mean()


def proper(grads):
    """Without tables, and relative biases, which shift all scores of a query: rounding errors."""
    names = (name for name in grads if not (is_table(name) or name.endswith("relative.bias")))
    return {name: grads[name] for name in names}


@EACH
def test_logits_and_gradients_equal_a_plain_implementation(shape):
    args = toy_model_args(**SHAPES[shape])
    size = {"batch": 2, "longest": 15} if args.transformer_xl else {}  # pair by pair
    model, batch = toy_glm(args), toy_lm_batch(**size)
    plain = (PlainXL if args.transformer_xl else PlainGLM)(args, model.state_dict())
    inputs = (batch.tokens, batch.position_ids, batch.attention_mask)
    expected, (actual, *_) = plain(*inputs), model(*inputs)
    assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    loss_of(expected).backward()
    loss_of(actual).backward()
    assert_grads_close(proper(rank_grads(model)), proper(plain.grads()))


def on_shards(rank, size, shape, recompute):
    """Logits, captures and gradients on one rank; initial weights too."""
    mpu.initialize_model_parallel(size)
    options = SHAPES[shape] | {"checkpoint_activations": recompute}
    model, batch = toy_glm(**options), toy_lm_batch(seed=3)
    names = dict.fromkeys(("post_attention_layernorm", "context_layer", "tf_output"))
    hook = {"words_embeddings": None, "transformer": {"output": None, "layers": {1: names}}}
    mpu.seed_step(0, 0, 0, 0)
    inputs = (batch.tokens, batch.position_ids, batch.attention_mask)
    (logits, *_), captured = model(*inputs, hook=hook)
    logits = mpu.gather_from_model_parallel_region(logits)
    (loss_of(logits) + captured[("transformer", "output")].pow(2).mean()).backward()
    fresh = GLMModel(toy_model_args(**options)).state_dict()
    tensors = {path[-1]: tensor.detach() for path, tensor in captured.items()}
    return logits.detach(), tensors, rank_grads(model), {k: t.clone() for k, t in fresh.items()}


@EACH
@pytest.mark.parametrize("size", [2, 4])
def test_nothing_depends_on_the_model_parallel_size(shape, size):
    expected, expected_captures, expected_grads, fresh = on_shards(0, 1, shape, False)
    mpu.get_rng_tracker().reset()
    results = run_ranks(size, on_shards, shape, size == 2)
    for logits, _, _, _ in results:
        assert_close(logits, expected)
    for name, tensor in expected_captures.items():
        shards = [captured[name] for _, captured, _, _ in results]
        actual = torch.cat(shards, -1) if name == "context_layer" else shards[-1]
        assert_close(actual, tensor, msg=name)
    like = toy_glm(**SHAPES[shape])
    actual_grads = proper(merged([grads for _, _, grads, _ in results], like))
    assert_grads_close(actual_grads, proper(expected_grads))
    for name, tensor in merged([weights for *_, weights in results], like).items():
        assert torch.equal(tensor, fresh[name]), name


@EACH
@pytest.mark.parametrize("names", [LAYER, EXPLICIT])
def test_recomputation_changes_no_bit_of_captures_and_gradients(shape, names):
    options = SHAPES[shape] | {"attention_dropout": 0.2, "hidden_dropout": 0.2}
    plain = toy_glm(**options)
    recomputing = toy_glm(**options, checkpoint_activations=True, checkpoint_num_layers=2)
    batch, layers = toy_lm_batch(), range(options.get("num_layers", 2))
    expected = run(plain, batch, hook_of(layers, names))
    actual = run(recomputing, batch, hook_of(layers, names))
    assert torch.equal(actual[0], expected[0])
    assert len(actual[1]) == 5 + len(layers) * len(names)
    same(actual[1], expected[1])
    same(actual[2], expected[2])


@EACH
def test_state_dict_round_trip(shape):
    first, second = toy_glm(**SHAPES[shape], seed=1), toy_glm(**SHAPES[shape], seed=2)
    batch = toy_lm_batch()
    inputs = (batch.tokens, batch.position_ids, batch.attention_mask)
    expected, *_ = first(*inputs)
    assert not torch.allclose(second(*inputs)[0], expected)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second(*inputs)[0], expected)


@EACH
def test_shards_join_to_the_whole_and_split_again(shape):
    model = toy_glm(**SHAPES[shape])
    for name, parameter in model.state_dict(keep_vars=True).items():
        partition = mpu.partition_of(parameter)
        shards = [mpu.split(parameter.detach(), partition, rank, 4) for rank in range(4)]
        assert torch.equal(mpu.merge(shards, partition), parameter.detach()), name


@EACH
def test_a_remembered_prefix_gives_the_same_logits(shape):
    if SHAPES[shape].get("ib_word_emb"):
        pytest.skip("words behind a memory are not known")
    model, batch = toy_glm(**SHAPES[shape]), toy_lm_batch(longest=20)
    cut = int(batch.attention_mask.min())
    whole, *_ = model(batch.tokens, batch.position_ids, cut)
    start = (batch.tokens[:, :cut], batch.position_ids[..., :cut], cut)
    prefix, *mems = model(*start, return_memory=True)
    rest, *_ = model(batch.tokens[:, cut:], batch.position_ids[..., cut:], 0, *mems)
    assert_close(torch.cat((prefix, rest), dim=1), whole)


def test_initial_weights_of_every_part():
    options = SHAPES["everything"] | {"hidden_size": 128, "ib_hidden_size": 96, "num_layers": 8}
    options |= {"compress_word_emb": 64, "ib_word_emb": 32, "vocab_size": 512}
    for name, tensor in GLMModel(toy_model_args(**options)).state_dict().items():
        if "layernorm" in name:
            assert bool((tensor == float(name.endswith("weight"))).all()), name
        elif name.endswith("bias"):
            assert not tensor.any(), name
        else:
            ends = name.endswith(("attention.dense.weight", "dense_4h_to_h.weight"))
            expected = 0.02 / (4.0 if ends else 1.0)  # sqrt(2 * 8), all applications of the layer
            assert abs(tensor.std().item() / expected - 1) < 0.05, name


def test_a_shared_layer_is_stored_once_and_trained_by_every_application():
    model, batch = toy_glm(**SHAPES["shared"]), toy_lm_batch()
    assert {k.split(".")[2] for k in model.state_dict() if ".layers." in k} == {"0"}
    separate = toy_glm(num_layers=3)
    state = model.state_dict()
    for name in list(separate.state_dict()):
        head, dot, rest = name.partition(".layers.")
        state.setdefault(name, state[f"{head}{dot}0.{rest.partition('.')[2]}"] if dot else None)
    separate.load_state_dict(state)
    inputs = (batch.tokens, batch.position_ids, batch.attention_mask)
    expected, (actual, *_) = separate(*inputs)[0], model(*inputs)
    assert torch.equal(actual, expected)
    loss_of(actual).backward()
    loss_of(expected).backward()
    weights = [layer.mlp.dense_h_to_4h.weight for layer in separate.transformer.layers]
    shared = model.transformer.layers[0].mlp.dense_h_to_4h.weight
    assert_close(shared.grad, sum(w.grad for w in weights))


def test_an_edit_of_the_layers_sees_every_application():
    model, batch, seen = toy_glm(**SHAPES["shared"]), toy_lm_batch(), []

    def fewer(self_layers):
        seen.extend(self_layers)
        return self_layers[1:]

    two = toy_glm(**SHAPES["shared"] | {"num_layers": 2})
    two.load_state_dict(model.state_dict())
    expected, _, _ = run(two, batch)
    actual, _, _ = run(model, batch, hook_op={"transformer": {"self_layers": fewer}})
    assert torch.equal(actual, expected)
    assert seen == [model.transformer.layers[0]] * 3


@EACH
def test_autocast_trains_in_bfloat16(shape):
    model, batch = toy_glm(**SHAPES[shape]), toy_lm_batch()
    inputs = (batch.tokens, batch.position_ids, batch.attention_mask)
    expected, *_ = model(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        actual, *_ = model(*inputs)
    assert actual.dtype == torch.bfloat16
    assert (actual.float() - expected).norm() < 0.05 * expected.norm()
    loss_of(actual.float()).backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
