"""Where a run is, and what a loss may know."""

import dataclasses
import json

import pytest

from distill.context import LossContext, TrainState
from mpu.layout import Layout


def test_the_state_survives_a_checkpoint():
    state = TrainState(iteration=7, epoch=2, best=81.5, bad_steps=1)
    saved = json.loads(json.dumps(state.state_dict()))
    assert TrainState().load_state_dict(saved | {"of a later version": 1}) == state


def test_a_context_becomes_keywords_and_back():
    context = LossContext(t_no=1, keep_batch=True, layout=Layout.SHARD_LAST)
    assert LossContext(**context.keywords()) == context
    assert context.keywords().keys() == {f.name for f in dataclasses.fields(LossContext)}


def test_a_context_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        LossContext().t_no = 1
