"""Pretraining's task against plain torch."""

import dataclasses
import math

import torch
import torch.nn.functional as F

from tasks.block_lm import BlockLM
from tests.toy import VOCAB, toy_glm, toy_lm_batch

TASK = BlockLM()


def logits_for(batch) -> torch.Tensor:
    return toy_glm()(*TASK.inputs(batch))[0].detach()


def test_hard_loss_is_the_cross_entropy_of_every_position():
    batch = toy_lm_batch(3)
    logits = logits_for(batch)
    expected = F.cross_entropy(logits.reshape(-1, VOCAB), batch.labels.flatten(), reduction="none")
    torch.testing.assert_close(TASK.hard_loss(logits, batch), expected.view_as(batch.labels))


def test_row_masks_leave_out_padding_and_fillers():
    batch = toy_lm_batch(3, pad_to=40)
    batch = dataclasses.replace(batch, weight=torch.tensor([1.0, 1.0, 0.0]))
    masks = TASK.row_masks(batch)
    torch.testing.assert_close(masks["targets"][:2], batch.loss_mask[:2])
    ends = (batch.loss_mask * torch.arange(1, 41)).amax(-1)  # the target part ends a row
    assert masks["tokens"].sum(-1).tolist() == [ends[0], ends[1], 0.0]
    assert masks["targets"][2].sum() == 0


def test_row_masks_of_positions_without_blocks():
    batch = toy_lm_batch(2)
    flat = dataclasses.replace(batch, position_ids=batch.position_ids[:, 0])
    torch.testing.assert_close(TASK.row_masks(flat)["tokens"], TASK.row_masks(batch)["tokens"])


def test_metrics_weigh_targets_not_samples():
    batch = toy_lm_batch(4)
    logits = logits_for(batch)
    losses, mask = TASK.hard_loss(logits, batch), batch.loss_mask
    expected = float((losses * mask).sum() / mask.sum())
    halves = [
        dataclasses.replace(batch, **{k: v[part] for k, v in batch.tensors().items()})
        for part in (slice(0, 1), slice(1, 4))
    ]
    predictions = {}
    for half in halves:
        predictions |= dict(
            zip(half.sample_ids.tolist(), TASK.predict(logits_for(half), half), strict=True)
        )
    actual = TASK.metrics(predictions)
    assert math.isclose(actual["loss"], expected, rel_tol=1e-5)
    assert math.isclose(actual["ppl"], math.exp(expected), rel_tol=1e-4)
    assert tuple(actual) == TASK.metric_names
