"""One block against its formula; captures and edits in it."""

import torch
import torch.nn.functional as F
from torch.testing import assert_close

from model.attention import glm_mask
from model.init import normal
from model.layer import ParallelMLP, ParallelTransformerLayer
from mpu import Recorder
from tests.toy import randomize, toy_model_args


def layer(**changes):
    fill = normal(0.02, torch.Generator())
    return randomize(ParallelTransformerLayer(toy_model_args(**changes), fill, fill), seed=5)


def inputs(length=6):
    return torch.randn(2, length, 16, generator=torch.Generator().manual_seed(1))


def norm(module, x):
    return F.layer_norm(x, (16,), module.weight, module.bias, 1e-5)


MASK = glm_mask(torch.tensor([2, 6]), 6, 0, torch.device("cpu"))


def test_mlp_is_the_tanh_form_of_gelu():
    fill = normal(0.02, torch.Generator())
    mlp, x = randomize(ParallelMLP(16, fill, fill)), inputs()
    inner = x @ mlp.dense_h_to_4h.weight.T + mlp.dense_h_to_4h.bias
    gelu = 0.5 * inner * (1 + torch.tanh(0.7978845608028654 * inner * (1 + 0.044715 * inner**2)))
    expected = gelu @ mlp.dense_4h_to_h.weight.T + mlp.dense_4h_to_h.bias
    assert mlp.dense_h_to_4h.weight.shape == (64, 16)
    assert_close(mlp(x), expected)


def test_block_adds_both_sublayers_to_the_residual_stream():
    block, x = layer(), inputs()
    middle = x + block.attention(norm(block.input_layernorm, x), MASK)
    expected = middle + block.mlp(norm(block.post_attention_layernorm, middle))
    assert_close(block(x, MASK), expected)


def test_captures_of_a_block():
    block, x = layer(), inputs()
    names = ("layernorm_output", "post_attention_layernorm", "tf_output")
    recorder = Recorder(dict.fromkeys(names))
    output = block(x, MASK, recorder=recorder)
    captured = {path[0]: tensor for path, tensor in recorder.captured.items()}
    assert list(captured) == list(names)
    assert_close(captured["layernorm_output"], norm(block.input_layernorm, x))
    middle = x + block.attention(captured["layernorm_output"], MASK)
    assert_close(captured["post_attention_layernorm"], norm(block.post_attention_layernorm, middle))
    assert captured["tf_output"] is output
    assert torch.equal(output, block(x, MASK))


def test_an_edited_layernorm_output_is_what_attention_reads_and_the_hook_sees():
    block, x = layer(), inputs()
    recorder = Recorder(
        {"layernorm_output": None},
        {"layernorm_output": lambda layernorm_output: layernorm_output * 2},
    )
    actual = block(x, MASK, recorder=recorder)
    doubled = 2 * norm(block.input_layernorm, x)
    middle = x + block.attention(doubled, MASK)
    expected = middle + block.mlp(norm(block.post_attention_layernorm, middle))
    assert_close(actual, expected)
    assert_close(recorder.captured[("layernorm_output",)], doubled)


def test_an_edited_tf_output_is_what_leaves_the_block_and_the_hook_sees():
    block, x = layer(), inputs()
    recorder = Recorder({"tf_output": None}, {"tf_output": lambda tf_output: tf_output.flip(0)})
    actual = block(x, MASK, recorder=recorder)
    assert_close(actual, block(x, MASK).flip(0))
    assert recorder.captured[("tf_output",)] is actual


def test_memory_goes_through_the_input_layernorm():
    block, x = layer(), inputs()
    causal = glm_mask(0, 6, 0, x.device)
    expected = block(x, causal)[:, 2:]
    assert_close(block(x[:, 2:], glm_mask(0, 4, 2, x.device), x[:, :2]), expected)


def test_dropout_only_while_training():
    block, x = layer(hidden_dropout=0.5), inputs()
    torch.manual_seed(0)
    assert not torch.equal(block(x, MASK), block(x, MASK))
    block.eval()
    assert torch.equal(block(x, MASK), block(x, MASK))
    assert_close(block(x, MASK), layer()(x, MASK))
