"""Batch: fields, defaults, moving."""

import pickle

import pytest
import torch

from data_utils.batch import Batch


def batch(**more: torch.Tensor) -> Batch:
    return Batch(
        tokens=torch.arange(6).view(2, 3),
        position_ids=torch.zeros(2, 2, 3, dtype=torch.long),
        attention_mask=torch.tensor([1, 2]),
        labels=torch.tensor([0, 1]),
        **more,
    )


def test_rows_count_fully_by_default():
    assert batch().weight.tolist() == [1, 1]
    assert batch().sample_ids.tolist() == [0, 1]
    assert len(batch()) == 2


def test_only_set_fields_are_listed_moved_and_pickled():
    original = batch(logit_mask=torch.ones(2, 3))
    assert set(original.tensors()) == {
        "tokens",
        "position_ids",
        "attention_mask",
        "labels",
        "weight",
        "sample_ids",
        "logit_mask",
    }
    for copy in (original.to("cpu"), pickle.loads(pickle.dumps(original))):
        assert copy.loss_mask is None
        for name, tensor in original.tensors().items():
            torch.testing.assert_close(getattr(copy, name), tensor, rtol=0, atol=0)
    moved = original.to("meta")
    assert {t.device.type for t in moved.tensors().values()} == {"meta"}
    assert original.tokens.device.type == "cpu"


def test_a_weight_a_row():
    with pytest.raises(AssertionError):
        batch(weight=torch.ones(3))
