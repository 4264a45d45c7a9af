"""A bottleneck's block against its formula."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from model.attention import glm_mask
from model.bottleneck import BottleneckLayer
from model.init import normal
from mpu import Recorder
from tests.toy import randomize, toy_model_args

MASK = glm_mask(torch.tensor([2, 6]), 6, 0, torch.device("cpu"))


def layer(inner=8, ffns=3, **changes):
    fill = normal(0.02, torch.Generator())
    args = toy_model_args(
        inverted_bottleneck_mode=True, ib_hidden_size=inner, ib_ffn_num=ffns, **changes
    )
    return randomize(BottleneckLayer(args, fill, fill), seed=5)


def inputs(length=6):
    return torch.randn(2, length, 16, generator=torch.Generator().manual_seed(1))


def norm(module, x):
    return F.layer_norm(x, x.shape[-1:], module.weight, module.bias, 1e-5)


def linear(module, x):
    return x @ module.weight.T + module.bias


def formula(block, x, normed=None):
    normed = norm(block.input_layernorm, x) if normed is None else normed
    y = linear(block.ib_linear_in, x) + block.attention(normed, MASK)
    y = y + block.mlp(norm(block.post_attention_layernorm, y))
    for k in range(len(block.ib_mlp)):
        y = y + block.ib_mlp[k](norm(block.ib_mlp_layernorm[k], y))
    return x + linear(block.ib_linear_out, norm(block.ib_linear_out_layernorm, y))


@pytest.mark.parametrize(("inner", "ffns"), [(8, 3), (24, 1), (16, 2)])
def test_block_is_its_formula(inner, ffns):
    block, x = layer(inner, ffns), inputs()
    assert len(block.ib_mlp) == ffns - 1
    assert block.attention.query_key_value.weight.shape == (3 * inner, 16)
    assert block.attention.dense.weight.shape == (inner, inner)
    assert block.mlp.dense_h_to_4h.weight.shape == (4 * inner, inner)
    assert_close(block(x, MASK), formula(block, x))


def test_captures_are_those_of_a_plain_block():
    block, x = layer(), inputs()
    names = ("layernorm_output", "context_layer", "post_attention_layernorm", "tf_output")
    recorder = Recorder(dict.fromkeys(names))
    output = block(x, MASK, recorder=recorder)
    captured = {path[0]: tensor for path, tensor in recorder.captured.items()}
    assert {name: t.size(-1) for name, t in captured.items()} == {
        "layernorm_output": 16,
        "context_layer": 8,
        "post_attention_layernorm": 8,
        "tf_output": 16,
    }
    assert_close(captured["layernorm_output"], norm(block.input_layernorm, x))
    assert captured["tf_output"] is output
    assert torch.equal(output, block(x, MASK))


def test_an_edited_layernorm_output_leaves_the_residual_base():
    block, x = layer(), inputs()
    edit = {"layernorm_output": lambda layernorm_output: layernorm_output * 2}
    actual = block(x, MASK, recorder=Recorder(None, edit))
    assert_close(actual, formula(block, x, 2 * norm(block.input_layernorm, x)))


def test_an_edited_tf_output_is_what_leaves_the_block_and_the_hook_sees():
    block, x = layer(), inputs()
    recorder = Recorder({"tf_output": None}, {"tf_output": lambda tf_output: tf_output.flip(0)})
    actual = block(x, MASK, recorder=recorder)
    assert_close(actual, formula(block, x).flip(0))
    assert recorder.captured[("tf_output",)] is actual


def test_memory_is_read_at_the_outer_width():
    block, x = layer(), inputs()
    expected = block(x, glm_mask(0, 6, 0, x.device))[:, 2:]
    assert_close(block(x[:, 2:], glm_mask(0, 4, 2, x.device), x[:, :2]), expected)


def test_dropout_after_attention_and_every_mlp(monkeypatch):
    block, x, widths = layer(hidden_dropout=0.5), inputs(), []
    monkeypatch.setattr(F, "dropout", lambda x, *_: widths.append(x.size(-1)) or x)
    block(x, MASK)
    assert widths == [8, 8, 8, 8]
