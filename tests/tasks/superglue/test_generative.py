"""Answers that are written: right if every token is the likeliest, on one process and on shards."""

import torch

import mpu
from data_utils.batch import Batch
from model.build import HeadSpec, build_model
from tasks.superglue.generative import GenerativeTask
from tests.ranks import run_ranks
from tests.tasks.common import task_of, write_lines
from tests.toy import randomize, toy_lm_batch, toy_model_args

LINE = {
    "text": "Mark told Pete many lies about himself",
    "target": {"span1_index": 2, "span1_text": "Pete", "span2_index": 6, "span2_text": "himself"},
    "label": True,
}


def predictions(rank, size):
    """(predictions, which answers a dense argmax writes)"""
    if size > 1:
        mpu.initialize_model_parallel(size)
    lm = randomize(build_model(toy_model_args(), HeadSpec("lm")))
    batch = toy_lm_batch(8)
    with torch.no_grad():
        logits, *_ = lm(batch.tokens, batch.position_ids, batch.attention_mask)
        whole = mpu.gather_from_model_parallel_region(logits) if size > 1 else logits
        # Half of the answers are what the model would write; of one of them the last token is not.
        labels = batch.labels.clone()
        labels[::2] = whole.argmax(-1)[::2]
        last = batch.loss_mask[2].nonzero()[-1]
        labels[2, last] = (labels[2, last] + 1) % whole.size(-1)
        batch = Batch(
            tokens=batch.tokens, position_ids=batch.position_ids,
            attention_mask=batch.attention_mask, labels=labels, loss_mask=batch.loss_mask,
        )  # fmt: skip
        right = (whole.argmax(-1) == labels) | (batch.loss_mask == 0)
        task = GenerativeTask.__new__(GenerativeTask)
        actual = task.predict(logits, batch)
        assert task.answers(lm, batch) == actual
        return actual, right.all(-1).int().tolist()


def test_an_answer_is_right_if_all_its_tokens_are():
    actual, expected = predictions(0, 1)
    assert actual == expected
    assert actual[0] == 1
    assert actual[2] == 0
    assert 0 < sum(actual) < len(actual)


def test_on_shards_too():
    _, expected = predictions(0, 1)
    for actual, dense in run_ranks(2, predictions):
        assert actual == dense == expected


def test_a_batch_is_a_language_model_s(tmp_path):
    write_lines(tmp_path / "train.jsonl", [LINE, LINE | {"text": "And " + LINE["text"] + " ."}])
    second = LINE["target"] | {"span2_index": 7}
    lines = [LINE, LINE | {"text": "And " + LINE["text"] + " .", "target": second}]
    write_lines(tmp_path / "train.jsonl", lines)
    task = task_of("wsc", tmp_path)
    dataset = task.dataset("train")
    batch = task.collate([dataset[0], dataset[~1]])
    assert batch.tokens.shape == batch.labels.shape == batch.loss_mask.shape
    assert batch.weight.tolist() == [1.0, 0.0]
    assert task.row_masks(batch)["targets"].sum(-1).tolist() == [2.0, 0.0]
    first = batch.loss_mask[0].nonzero().flatten().tolist()
    assert batch.tokens[0, first].tolist() == [30522, 6969]
    assert batch.labels[0, first].tolist() == [6969, 30523]
    assert batch.position_ids[0, 1, first].tolist() == [1, 2]
