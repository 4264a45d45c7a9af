"""Models for heads, and parameter groups."""

import json

import pytest
import torch
from torch import nn

from model.build import HeadSpec, add_head, build_model, parameter_groups
from model.downstream import (
    GLMForMultiTokenCloze,
    GLMForMultiTokenClozeFast,
    GLMForSequenceClassification,
    GLMForSingleTokenCloze,
)
from tests.check_vectors import find_check
from tests.toy import toy_glm, toy_model_args
from tests.vector_checks.common import FAILED, NOT_IMPLEMENTED, OK

HEADS = {
    "single_token": GLMForSingleTokenCloze,
    "multi_token": GLMForMultiTokenCloze,
    "multi_token_fast": GLMForMultiTokenClozeFast,
    "classification": GLMForSequenceClassification,
}


@pytest.mark.parametrize(
    ("kind", "sharded", "predicts"),
    [("lm", True, True), ("single_token", False, True), ("multi_token", False, True)]
    + [("multi_token_fast", False, True), ("classification", False, False)],
)
def test_a_head_gets_the_model_it_needs(kind, sharded, predicts):
    args, spec = toy_model_args(), HeadSpec(kind, num_classes=2)
    lm = build_model(args, spec)
    assert (lm.parallel_output, lm.output_predict) == (sharded, predicts)
    assert lm.word_embeddings.weight.shape == (64, 16)
    head = add_head(lm, spec, args)
    if kind == "lm":
        assert head is lm
    else:
        assert type(head) is HEADS[kind]
        assert head.model is lm


def test_the_head_has_the_options_of_its_spec():
    args = toy_model_args(output_dropout=0.3)
    lm = toy_glm(args)
    assert add_head(lm, HeadSpec("single_token", take_softmax=True), args).take_softmax
    assert add_head(lm, HeadSpec("multi_token", length_penalty=0.7), args).length_penalty == 0.7
    spec = HeadSpec("classification", num_classes=5, pool_token="pad")
    head = add_head(lm, spec, args)
    assert (head.pool_token, head.multichoice_head.out_features, head.dropout.p) == ("pad", 5, 0.3)


def names_of(groups, module):
    names = {parameter: name for name, parameter in module.named_parameters()}
    return [{names[p] for p in group["params"]} for group in groups]


def test_biases_and_layernorms_are_not_decayed():
    model = toy_glm()
    groups = parameter_groups(model, 0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    decayed, plain = names_of(groups, model)
    assert plain == {
        n for n, _ in model.named_parameters() if n.endswith("bias") or "layernorm" in n
    }
    assert decayed | plain == {n for n, _ in model.named_parameters()}
    assert not decayed & plain


def test_frozen_parameters_are_left_out_and_shared_ones_count_once():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "frozen": nn.LayerNorm(2)})
    model["b"].weight = model["a"].weight
    model["frozen"].requires_grad_(False)
    decayed, plain = parameter_groups(model, 0.5)
    assert len(decayed["params"]) == 1
    assert decayed["params"][0] is model["a"].weight
    assert names_of([plain], model) == [{"a.bias", "b.bias"}]


def test_empty_groups_are_left_out():
    groups = parameter_groups(nn.LayerNorm(3), 0.1)
    assert [group["weight_decay"] for group in groups] == [0.0]
    assert len(groups[0]["params"]) == 2


def test_a_parameter_of_a_module_itself_is_decayed():
    class Method(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixing = nn.Parameter(torch.ones(3))

    assert parameter_groups(Method(), 0.1)[0]["weight_decay"] == 0.1


VECTORS = {
    "fwd_basic": 1,
    "fwd_attention_scale": 1,
    "fwd_no_block_position": 1,
    "fwd_memory": 1,
    "fwd_cloze_heads": 1,
    "fwd_compress_word_emb": 1,
    "fwd_cross_layer_sharing": 1,
    "fwd_albert": 1,
    "fwd_ib_word_emb_only": 1,
    "fwd_inverted_bottleneck": 1,
    "fwd_inverted_bottleneck_teacher": 1,
    "hooks_all": 1,
    "hooks_all_ib": 1,
    "hooks_all_shared": 1,
    "hooks_cloze_wrapper": 1,
    "param_groups": 4,  # the case and its three parts
}


@pytest.mark.parametrize("case", VECTORS)
def test_vectors_of_the_model(vectors, case):
    results = find_check(vectors / case)(vectors / case)
    assert [(r.status, r.message) for r in results] == [(OK, "")] * VECTORS[case]


def test_a_part_that_fails_fails_the_case(vectors, tmp_path):
    case = tmp_path / "param_groups"
    case.mkdir()
    parts = json.loads((vectors / "param_groups/expected.json").read_text())
    parts["compress"]["no_weight_decay"].reverse()
    parts["ib"]["kwargs"]["option_of_later"] = 16
    (case / "expected.json").write_text(json.dumps(parts))
    results = {r.name: r.status for r in find_check(case)(case)}
    assert results == {
        "param_groups": FAILED,
        "param_groups/plain": OK,
        "param_groups/ib": NOT_IMPLEMENTED,
        "param_groups/compress": FAILED,
    }
