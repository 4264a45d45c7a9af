"""Points, and the seed's two spellings of them."""

import pytest
import torch

from distill import capture
from distill.capture import Captured, Point, hidden, logits, merge_hooks, to_hook
from mpu import hook_model
from mpu.layout import Layout
from tests.toy import toy_glm, toy_lm_batch


def test_the_hidden_state_after_block_i_is_what_block_i_plus_1_normalises():
    assert hidden(0, 4).path == ("transformer", "layers", 0, "layernorm_output")
    assert hidden(3, 4).path == ("transformer", "layers", 3, "layernorm_output")
    assert hidden(4, 4) == capture.output()
    assert capture.attention_scores(1).path == ("transformer", "layers", 0, "attention_scores")


def test_to_hook_spells_the_seeds_nested_dict():
    hook = to_hook([hidden(0, 2), capture.attention_scores(1), hidden(2, 2), logits()])
    assert hook == {
        "transformer": {
            "layers": {0: {"layernorm_output": None, "attention_scores": None}},
            "output": None,
        },
        "logits_parallel": None,
    }
    assert to_hook([]) == {}


def test_merge_asks_for_everything_and_leaves_its_arguments_alone():
    first, second = to_hook([hidden(1, 2)]), to_hook([capture.query(2), logits()])
    first["transformer"]["layers"][1]["layernorm_output"] = 7
    merged = merge_hooks(first, second, None)
    assert merged == to_hook([hidden(1, 2), capture.query(2), logits()])
    assert first["transformer"]["layers"][1] == {"layernorm_output": 7}
    assert second == to_hook([capture.query(2), logits()])


def test_a_point_that_was_not_captured_spells_its_path():
    captured = Captured(to_hook([logits()]), [])
    for point in (hidden(1, 2), logits()):
        assert point not in captured
        with pytest.raises(KeyError, match=str(point)):
            captured[point]


POINTS = [
    capture.embeddings(),
    *(hidden(i, 2) for i in range(3)),
    *(
        point(i)
        for i in (1, 2)
        for point in (
            capture.attention_scores,
            capture.attention_probs,
            capture.query,
            capture.key,
            capture.value,
            capture.mixed_query,
            capture.mixed_key,
            capture.mixed_value,
            capture.block_output,
        )
    ),
    capture.position_ids(),
    logits(),
]


def test_every_point_is_in_the_model_with_the_shape_it_names():
    model, batch = toy_glm(), toy_lm_batch(2)
    hook, inter_vars = to_hook(POINTS), []
    hook_model(hook, inter_vars, model, batch.tokens, batch.position_ids, batch.attention_mask)
    captured = Captured(hook, inter_vars)
    b, s = batch.tokens.shape
    for point in POINTS:
        tensor = captured[point]
        if point.layout is Layout.SHARD_HEADS:
            assert tensor.shape[:3] == (b, 4, s), point
        elif point == capture.position_ids():
            assert torch.equal(tensor, batch.position_ids)
        else:
            assert tensor.shape == (b, s, 64 if point == logits() else 16), point


def test_points_compare_by_value():
    assert Point(("transformer", "output")) == capture.output()
    assert len({hidden(2, 2), capture.output()}) == 1
