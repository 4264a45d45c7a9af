"""GLM against golden numbers, against a plain implementation, and at model-parallel sizes 1, 2, 4."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import mpu
from model.downstream import GLMForMultiTokenCloze, GLMForSingleTokenCloze
from model.glm import GLMModel
from mpu import hook_model
from tests.model.reference import PlainGLM, assert_grads_close
from tests.ranks import run_ranks
from tests.toy import merged, rank_grads, toy_glm, toy_lm_batch, toy_model_args

LAYER_SHAPES = {
    "input_layernorm.weight": ["h"],
    "input_layernorm.bias": ["h"],
    "attention.query_key_value.weight": ["3h", "h"],
    "attention.query_key_value.bias": ["3h"],
    "attention.dense.weight": ["h", "h"],
    "attention.dense.bias": ["h"],
    "post_attention_layernorm.weight": ["h"],
    "post_attention_layernorm.bias": ["h"],
    "mlp.dense_h_to_4h.weight": ["4h", "h"],
    "mlp.dense_h_to_4h.bias": ["4h"],
    "mlp.dense_4h_to_h.weight": ["h", "4h"],
    "mlp.dense_4h_to_h.bias": ["h"],
}


def expected_shapes(layers, blocks=True):
    """Keys and shapes of the official checkpoints, in their order."""
    shapes = {
        "word_embeddings.weight": ["v", "h"],
        "transformer.position_embeddings.weight": ["rows", "h"],
    }
    if blocks:
        shapes["transformer.block_position_embeddings.weight"] = ["rows", "h"]
    for i in range(layers):
        shapes |= {f"transformer.layers.{i}.{name}": shape for name, shape in LAYER_SHAPES.items()}
    return shapes | {
        "transformer.final_layernorm.weight": ["h"],
        "transformer.final_layernorm.bias": ["h"],
    }


@pytest.mark.parametrize("blocks", [True, False])
def test_state_dict_has_the_official_keys_in_order(blocks):
    model = toy_glm(num_layers=3, block_position_encoding=blocks)
    sizes = {"v": 64, "h": 16, "3h": 48, "4h": 64, "rows": 40 + blocks}
    expected = [
        (name, [sizes[s] for s in shape]) for name, shape in expected_shapes(3, blocks).items()
    ]
    assert [(name, list(tensor.shape)) for name, tensor in model.state_dict().items()] == expected


def golden():
    """The model and inputs of the toolkit's golden logits."""
    model = GLMModel(
        toy_model_args(vocab_size=32, max_position_embeddings=15), parallel_output=False
    )
    state = model.state_dict()
    for j, (name, tensor) in enumerate(state.items()):
        i = torch.arange(tensor.numel(), dtype=torch.double)
        value = 0.08 * torch.sin(0.7 * i + 0.3 * j) + name.endswith("layernorm.weight")
        tensor.copy_(value.view_as(tensor).float())
    ids = torch.tensor([[3, 9, 5, 7, 1, 2, 11, 0], [3, 6, 5, 1, 2, 13, 14, 0]])
    positions = torch.tensor([[0, 1, 2, 3, 4, 2, 2, 0], [0, 1, 2, 3, 2, 2, 2, 0]])
    blocks = torch.tensor([[0, 0, 0, 0, 0, 1, 2, 0], [0, 0, 0, 0, 1, 2, 3, 0]])
    return model.eval(), ids, torch.stack((positions, blocks), dim=1), torch.tensor([5, 4])


def test_golden_logits():
    model, ids, positions, sep = golden()
    logits, *mems = model(ids, positions, sep)
    expected = {
        (0, 0): [-0.295762, -0.795795, -0.027339, 0.784696, 0.345933, -0.644243],
        (0, 4): [-0.415348, -0.516311, 0.205721, 0.599835, 0.037818, -0.584481],
        (0, 6): [-0.833356, -0.077396, 0.801932, 0.402989, -0.638315, -0.662151],
        (1, 3): [-0.625360, -0.488334, 0.427091, 0.661738, -0.158420, -0.726057],
        (1, 6): [-0.733174, -0.403699, 0.569268, 0.634828, -0.311522, -0.761308],
    }
    for place, values in expected.items():
        assert_close(logits[place][:6], torch.tensor(values), rtol=0, atol=2e-6)
    assert_close(logits.abs().sum(), torch.tensor(222.79938), rtol=0, atol=1e-4)
    assert mems == []


def test_golden_scores_of_single_token_cloze():
    model, ids, positions, sep = golden()
    scores, *_ = GLMForSingleTokenCloze(model)(ids, positions, sep, torch.tensor([[4, 8, 12]] * 2))
    expected = torch.tensor([[-0.550819, 0.041866, 0.608082], [-0.552861, 0.038791, 0.605920]])
    assert_close(scores, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("penalty", "expected"), [(0.0, [-6.711104, -12.421044]), (1.0, [-3.355552, -4.140348])]
)
def test_golden_scores_of_multi_token_cloze(penalty, expected):
    model, ids, positions, sep = golden()
    targets, mask = torch.zeros(2, 8, dtype=torch.long), torch.zeros(2, 8, dtype=torch.long)
    targets[0, 5:7], mask[0, 5:7] = torch.tensor([11, 1]), 1
    targets[1, 4:7], mask[1, 4:7] = torch.tensor([13, 14, 1]), 1
    one = [x.unsqueeze(1) for x in (ids, positions, sep, targets, mask)]
    scores, *_ = GLMForMultiTokenCloze(model, length_penalty=penalty)(*one)
    assert_close(scores[:, 0], torch.tensor(expected), rtol=0, atol=1e-5)


def hard_loss(logits, batch):
    losses = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none")
    return (losses * batch.loss_mask.flatten()).sum() / batch.loss_mask.sum()


@pytest.mark.parametrize("blocks", [True, False])
def test_logits_and_gradients_equal_a_plain_implementation(blocks):
    args = toy_model_args(num_layers=3, block_position_encoding=blocks)
    model, batch = toy_glm(args), toy_lm_batch()
    plain = PlainGLM(args, model.state_dict())
    positions = batch.position_ids if blocks else batch.position_ids[:, 0]
    expected = plain(batch.tokens, positions, batch.attention_mask)
    actual, *_ = model(batch.tokens, positions, batch.attention_mask)
    assert_close(actual, expected)
    hard_loss(expected, batch).backward()
    hard_loss(actual, batch).backward()
    assert_grads_close(rank_grads(model), plain.grads())


def test_padding_behind_a_sample_changes_nothing():
    model, batch, wider = toy_glm(), toy_lm_batch(), toy_lm_batch(pad_to=33)
    expected, *_ = model(batch.tokens, batch.position_ids, batch.attention_mask)
    actual, *_ = model(wider.tokens, wider.position_ids, wider.attention_mask)
    assert actual.size(1) == 33
    assert_close(actual[:, : expected.size(1)], expected)


def test_without_prediction_the_hidden_states_come_out():
    model, bare, batch = toy_glm(), toy_glm(output_predict=False), toy_lm_batch()
    inputs = (batch.tokens, batch.position_ids, batch.attention_mask)
    hidden, *_ = bare(*inputs)
    assert_close(hidden @ bare.word_embeddings.weight.T, model(*inputs)[0])
    hook, variables = {"transformer": {"output": None}, "logits_parallel": None}, []
    output, *_ = hook_model(hook, variables, bare, *inputs)
    assert variables[hook["transformer"]["output"]] is output
    assert hook["logits_parallel"] is None


@pytest.mark.parametrize("predict", [True, False])
def test_output_rows_are_rows_of_the_whole_output(predict):
    model, batch = toy_glm(output_predict=predict), toy_lm_batch()
    inputs = (batch.tokens, batch.position_ids, batch.attention_mask)
    rows = torch.tensor([3, 0, 40])
    whole, *_ = model(*inputs)
    expected = whole.flatten(0, 1)[rows]
    actual, *_ = model(*inputs, output_rows=rows)
    assert_close(actual, expected)
    expected.pow(2).sum().backward()
    expected_grads = rank_grads(model)
    model.zero_grad()
    actual.pow(2).sum().backward()
    assert_grads_close(rank_grads(model), expected_grads)


def test_a_captured_vocabulary_has_all_positions_whatever_rows_are_asked_for():
    model, batch = toy_glm(), toy_lm_batch()
    inputs, rows = (batch.tokens, batch.position_ids, batch.attention_mask), torch.tensor([5, 1])
    hook, variables = {"logits_parallel": None}, []
    actual, *_ = hook_model(hook, variables, model, *inputs, output_rows=rows)
    expected, *_ = model(*inputs)
    assert torch.equal(variables[0], expected)
    assert torch.equal(actual, expected.flatten(0, 1)[rows])


def test_initial_weights():
    model = GLMModel(toy_model_args(hidden_size=128, num_layers=8, vocab_size=512))
    for name, tensor in model.state_dict().items():
        if "layernorm" in name:
            assert torch.equal(tensor, torch.full_like(tensor, float(name.endswith("weight")))), (
                name
            )
        elif name.endswith("bias"):
            assert torch.equal(tensor, torch.zeros_like(tensor)), name
        else:
            ends = name.endswith(("attention.dense.weight", "dense_4h_to_h.weight"))
            expected = 0.02 / (4.0 if ends else 1.0)  # sqrt(2 * 8)
            assert abs(tensor.std().item() / expected - 1) < 0.05, name
            assert abs(tensor.mean().item()) < 0.05 * expected, name


def test_initial_weights_depend_on_the_seed_alone():
    args = toy_model_args()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = GLMModel(args, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again, other = GLMModel(args, seed=1).state_dict(), GLMModel(args, seed=2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["word_embeddings.weight"], other["word_embeddings.weight"])
    weights = [t.flatten()[:8].tolist() for n, t in first.items() if t.dim() == 2]
    assert len({tuple(w) for w in weights}) == len(weights)  # no two parameters share their draws


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_forward(dtype):
    model, batch = toy_glm(), toy_lm_batch()
    inputs = (batch.tokens, batch.position_ids, batch.attention_mask)
    expected, *_ = model(*inputs)
    actual, *_ = model.to(dtype)(*inputs)
    assert actual.dtype == dtype
    assert (actual.float() - expected).norm() < 0.05 * expected.norm()


def test_autocast_trains_in_bfloat16():
    model, batch = toy_glm(), toy_lm_batch()
    inputs = (batch.tokens, batch.position_ids, batch.attention_mask)
    expected, *_ = model(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        actual, *_ = model(*inputs)
    assert actual.dtype == torch.bfloat16
    assert (actual.float() - expected).norm() < 0.05 * expected.norm()
    hard_loss(actual.float(), batch).backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gpu_forward_and_gradients_follow_the_cpu(dtype):
    model, batch = toy_glm(hidden_size=64, num_layers=4), toy_lm_batch()
    inputs = (batch.tokens, batch.position_ids, batch.attention_mask)
    expected, *_ = model(*inputs)
    hard_loss(expected, batch).backward()
    expected_grads = rank_grads(model)
    model.zero_grad()
    there = batch.to("cuda")
    model.to("cuda", dtype)
    actual, *_ = model(there.tokens, there.position_ids, there.attention_mask)
    hard_loss(actual.float(), there).backward()
    limit = 1e-3 if dtype == torch.float32 else 0.05
    assert (actual.float().cpu() - expected).norm() < limit * expected.norm()
    for name, grad in rank_grads(model).items():
        difference = (grad.float().cpu() - expected_grads[name]).norm()
        assert difference < 2 * limit * expected_grads[name].norm() + 1e-6, name


# Model-parallel sizes --------------------------------------------------------------------------------

CAPTURES = {
    "logits_parallel": -1,
    ("transformer", "output"): None,
    ("transformer", "layers", 1, "attention_probs"): 1,
    ("transformer", "layers", 1, "attention_scores"): 1,
    ("transformer", "layers", 0, "context_layer"): -1,
    ("transformer", "layers", 0, "mixed_key_layer"): -1,
    ("transformer", "layers", 0, "value_layer"): 1,
}


def on_shards(rank, size, options, gather, rows):
    """Output, captures and gradients on one rank; the loss is over outputs and captures."""
    mpu.initialize_model_parallel(size)
    model, batch = toy_glm(parallel_output=not gather, **options), toy_lm_batch(seed=3)
    hook = {
        "logits_parallel": None,
        "transformer": {
            "output": None,
            "layers": {
                0: {"context_layer": None, "mixed_key_layer": None, "value_layer": None},
                1: {"attention_probs": None, "attention_scores": None},
            },
        },
    }
    mpu.seed_step(0, 0, 0, 0)
    inputs = (batch.tokens, batch.position_ids, batch.attention_mask)
    kept = None if rows is None else torch.tensor(rows)
    outputs, captured = model(*inputs, output_rows=kept, hook=hook)
    whole = mpu.gather_from_model_parallel_region
    output = outputs[0] if gather else whole(outputs[0])
    loss = output.logsumexp(-1).pow(2).mean() + captured[("transformer", "output")].pow(2).mean()
    loss.backward()
    tensors = {name[-1] if len(name) == 1 else name: t.detach() for name, t in captured.items()}
    return output.detach(), tensors, rank_grads(model)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(
    ("options", "gather", "rows"),
    [
        ({}, False, None),
        ({"attention_scale": 4.0, "checkpoint_activations": True}, True, None),
        ({}, True, [1, 30, 2]),
    ],
)
def test_nothing_depends_on_the_model_parallel_size(size, options, gather, rows):
    expected, expected_captures, expected_grads = on_shards(0, 1, options, gather, rows)
    mpu.get_rng_tracker().reset()
    results = run_ranks(size, on_shards, options, gather, rows)
    for output, _, _ in results:
        assert_close(output, expected)
    for name, dim in CAPTURES.items():
        shards = [captured[name] for _, captured, _ in results]
        actual = shards[0] if dim is None else torch.cat(shards, dim)
        assert_close(actual, expected_captures[name], msg=str(name))
    like = toy_glm(**options)
    assert_grads_close(merged([grads for _, _, grads in results], like), expected_grads)


def hidden_with_dropout(rank, size):
    mpu.initialize_model_parallel(size)
    model, batch = toy_glm(hidden_dropout=0.3, attention_dropout=0.3), toy_lm_batch()
    mpu.seed_step(5, 0, 0, 0)
    hook = {"transformer": {"output": None, "layers": {0: {"context_layer": None}}}}
    _, captured = model(batch.tokens, batch.position_ids, batch.attention_mask, hook=hook)
    state = {
        name: tensor.clone() for name, tensor in GLMModel(toy_model_args()).state_dict().items()
    }
    return [t.detach() for t in captured.values()], state


def test_dropout_leaves_hidden_states_equal_and_initial_weights_do_not_depend_on_p():
    first, second = run_ranks(2, hidden_with_dropout)
    (context, output), (other_context, other_output) = first[0], second[0]
    assert torch.equal(output, other_output)
    assert not torch.equal(context == 0, other_context == 0) or not torch.equal(
        context, other_context
    )
    like = GLMModel(toy_model_args())
    for name, tensor in merged([first[1], second[1]], like).items():
        assert torch.equal(tensor, like.state_dict()[name]), name
