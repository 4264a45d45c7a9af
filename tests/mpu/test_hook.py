"""Captures and edits through the Recorder and through the seed's functions."""

import pytest
import torch
from torch import nn

import mpu
from mpu import Recorder
from mpu.hook import merge_ops


class Layer(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x, hook=None, hook_op=None):
        recorder = Recorder(hook, hook_op)
        x = recorder.edit("layernorm_output", layernorm_output=x)
        recorder.add("layernorm_output", x)
        x = x * self.factor
        recorder.add("tf_output", x)
        return recorder.result(x)


class Stack(nn.Module):
    """Two layers; opens a recorder of its own for "layers"."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Layer(2.0), Layer(3.0)])

    def forward(self, x, hook=None, hook_op=None):
        recorder = Recorder(hook, hook_op)
        x = recorder.edit("embeddings", hidden_states=x, this=self)
        layers = recorder.edit("self_layers", self_layers=self.layers)
        for i, layer in enumerate(layers):
            x = recorder.child("layers").run(i, layer, x)
        recorder.add("output", x)
        return recorder.result((x, x.sum()))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer = Stack()

    def forward(self, ids, hook=None, hook_op=None):
        recorder = Recorder(hook, hook_op)
        ids = recorder.edit("input_ids", input_ids=ids)
        recorder.add("position_ids", ids)
        x, total = recorder.run("transformer", self.transformer, ids)
        recorder.add("logits_parallel", x + 1)
        return recorder.result((x + 1, total))


def _hook():
    return {
        "transformer": {
            "layers": {1: {"layernorm_output": None}, 0: {"tf_output": None}},
            "output": None,
        },
        "logits_parallel": None,
        "nowhere": None,
    }


def test_the_door_writes_indices_into_the_hook():
    x, hook, inter_vars = torch.tensor([1.0, 2.0]), _hook(), ["already there"]
    outputs = mpu.hook_model(hook, inter_vars, Model(), x)
    torch.testing.assert_close(outputs, (6 * x + 1, (6 * x).sum()))
    layers = hook["transformer"]["layers"]
    found = {
        "input of layer 1": inter_vars[layers[1]["layernorm_output"]],
        "output of layer 0": inter_vars[layers[0]["tf_output"]],
        "output": inter_vars[hook["transformer"]["output"]],
        "logits": inter_vars[hook["logits_parallel"]],
    }
    expected = {
        "input of layer 1": 2 * x,
        "output of layer 0": 2 * x,
        "output": 6 * x,
        "logits": 6 * x + 1,
    }
    torch.testing.assert_close(found, expected)
    assert hook["nowhere"] is None  # never reached
    assert len(inter_vars) == 5


def test_a_hook_can_be_used_again():
    hook, inter_vars = _hook(), []
    model, x = Model(), torch.tensor([1.0])
    mpu.hook_model(hook, inter_vars, model, x)
    mpu.hook_model(hook, inter_vars, model, 10 * x)
    assert len(inter_vars) == 8
    assert inter_vars[hook["transformer"]["output"]].item() == 60


def test_without_a_hook_nothing_is_returned_but_the_outputs():
    x = torch.tensor([1.0])
    assert mpu.hook_model(None, [], Model(), x)[0].item() == 7
    recorder = Recorder()
    assert not recorder
    assert recorder.child("transformer") is recorder
    assert recorder.result(x) is x


def test_an_empty_hook_is_still_a_hook():
    x, inter_vars = torch.tensor([1.0]), []
    assert Model()(x, hook={})[1] == {}
    assert mpu.hook_model({}, inter_vars, Model(), x)[0].item() == 7
    assert inter_vars == []


def test_capturing_changes_nothing():
    x, model = torch.randn(3, generator=torch.Generator().manual_seed(0)), Model()
    assert torch.equal(mpu.hook_model(_hook(), [], model, x)[0], model(x)[0])


def test_captured_tensors_keep_their_gradient():
    x, hook, inter_vars = torch.tensor([1.0], requires_grad=True), _hook(), []
    mpu.hook_model(hook, inter_vars, Model(), x)
    inter_vars[hook["transformer"]["layers"][1]["layernorm_output"]].sum().backward()
    assert x.grad.item() == 2


def test_edits_replace_tensors_and_modules():
    calls = []

    def embeddings(this, hidden_states):
        calls.append(type(this).__name__)
        return hidden_states + 1

    hook_op = {
        "input_ids": lambda input_ids: input_ids * 10,
        "transformer": {
            "embeddings": embeddings,
            "self_layers": lambda self_layers: [self_layers[1], self_layers[1]],
            "layers": {0: {"layernorm_output": lambda layernorm_output: layernorm_output - 1}},
            "output": None,  # not callable: ignored
        },
    }
    hook, inter_vars = _hook(), []
    outputs = mpu.hook_model(hook, inter_vars, Model(), torch.tensor([2.0]), hook_op=hook_op)
    assert outputs[0].item() == (2 * 10 + 1 - 1) * 3 * 3 + 1
    assert calls == ["Stack"]
    # a capture comes after its edit
    assert inter_vars[hook["transformer"]["layers"][0]["tf_output"]].item() == 60
    # edits alone change no return value's form
    assert Model()(torch.tensor([2.0]), hook_op=hook_op)[0].item() == 181


def test_what_a_recorder_knows():
    recorder = Recorder({"a": None, "b": {"c": None}}, {"a": lambda a: a, "b": {"c": None}})
    assert recorder.wants("a")
    assert not recorder.wants("b")
    assert not recorder.wants("z")
    assert recorder.wants_any("z", "a")
    assert not recorder.wants_any("z", "b")
    assert recorder.edits("a")
    assert not recorder.child("b").edits("c")
    assert recorder.child("b").wants("c")
    assert not recorder.child("a")  # a leaf has no parts
    recorder.child("b").add("c", torch.ones(1))
    recorder.child("b").absorb({("d", 3): torch.zeros(1)})
    assert list(recorder.captured) == [("b", "c"), ("b", "d", 3)]


def test_a_capture_nobody_asked_for_is_noticed():
    def model(x, hook=None):
        return x, {("unasked",): x}

    with pytest.raises(AssertionError, match="unasked"):
        mpu.hook_model({"asked": None}, [], model, torch.ones(1))


class SeedStyle(nn.Module):
    """A module written for the seed: list, add, child, return."""

    def __init__(self):
        super().__init__()
        self.inner = Stack()

    def forward(self, x, hook=None):
        inter_vars = []
        mpu.hook_add(hook, inter_vars, "entry", x)
        mpu.hook_add(hook, inter_vars, "not asked", x)
        outputs = mpu.hook_model(mpu.hook_child(hook, "inner"), inter_vars, self.inner, x)
        return mpu.hook_return(hook, inter_vars, outputs)


def test_modules_written_for_the_seed():
    x = torch.tensor([1.0])
    hook = {"entry": None, "inner": {"output": None, "nowhere": None}}
    inter_vars = []
    outputs = mpu.hook_model(hook, inter_vars, SeedStyle(), x)
    assert outputs[0].item() == 6
    assert inter_vars[hook["entry"]].item() == 1
    assert inter_vars[hook["inner"]["output"]].item() == 6
    assert hook["inner"]["nowhere"] is None
    assert SeedStyle()(x)[0].item() == 6


def test_reduce_gives_the_tree_of_tensors():
    hook = {"a": 1, "b": {"c": 0, "d": None}}
    inter_vars = [torch.tensor(5.0), torch.tensor(7.0)]
    assert mpu.hook_reduce(hook, inter_vars, filter=lambda t: t.item()) == {
        "a": 7.0,
        "b": {"c": 5.0, "d": None},
    }
    assert mpu.hook_reduce(hook, inter_vars)["b"]["c"] is inter_vars[0]


def test_edits_of_several_are_all_done_and_follow_each_other():
    first = {
        "embeddings": lambda hidden_states, this: hidden_states + len(this.layers),
        "layers": {0: {"layernorm_output": lambda layernorm_output: layernorm_output + 1}},
    }
    second = {
        "embeddings": lambda hidden_states, this: hidden_states * 10,
        "layers": {1: {"layernorm_output": lambda layernorm_output: layernorm_output - 5}},
        "ignored": None,
    }
    x = torch.tensor([1.0])
    expected = (((1 + 2) * 10 + 1) * 2 - 5) * 3
    edited = merge_ops(first, {}, None, second)
    assert Stack()(x, hook_op=edited)[0].item() == expected
    other = merge_ops(second, first)
    assert Stack()(x, hook_op=other)[0].item() == ((1 * 10 + 2 + 1) * 2 - 5) * 3
    assert set(first["layers"]) == {0}, "what is given stays as it is"
    assert merge_ops() == merge_ops(None, {}) == {}
