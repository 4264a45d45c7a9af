"""Samples and batches: fillers, padding, choices, positions; nothing depends on the padding."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from config.model import ModelArgs
from model.build import add_head, build_model
from tasks.superglue.data import Example
from tasks.superglue.dataset import Collator, EncodedDataset, majority_class_accuracy
from tasks.superglue.encode import MASK, Layout, Row, encode
from tests.tasks.common import COPA, SST2, bert, task_of, write_lines
from tests.toy import randomize


@pytest.fixture
def folder(tmp_path):
    for name in ("train", "val"):
        write_lines(tmp_path / f"{name}.jsonl", SST2)
    return tmp_path


@pytest.fixture
def copa(tmp_path):
    write_lines(tmp_path / "train.jsonl", COPA)
    return tmp_path


def test_a_negative_index_is_the_same_sample_with_weight_0(folder):
    task = task_of("sst2", folder)
    dataset = task.dataset("train")
    batch = task.collate([dataset[1], dataset[~1]])
    assert batch.weight.tolist() == [1.0, 0.0]
    assert batch.sample_ids.tolist() == [1, 1]
    assert torch.equal(batch.tokens[0], batch.tokens[1])
    assert batch.labels.tolist() == [0, 0]


def test_an_index_past_the_end_is_an_error(folder):
    dataset = task_of("sst2", folder).dataset("train")
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_a_split_is_encoded_once(folder):
    task = task_of("sst2", folder)
    assert task.dataset("train") is task.dataset("train")
    assert task.dataset("train") is not task.dataset("val")


def test_batches_are_as_long_as_their_longest_row_and_int64(folder):
    task = task_of("sst2", folder)
    dataset = task.dataset("train")
    short, both = task.collate([dataset[2]]), task.collate([dataset[1], dataset[2]])
    assert short.tokens.shape[1] == int(short.attention_mask[0]) + 1
    assert both.tokens.shape[1] == int(both.attention_mask.max()) + 1
    assert {t.dtype for n, t in both.tensors().items() if n != "weight"} == {torch.int64}
    n = short.tokens.shape[1]
    assert torch.equal(both.tokens[1, :n], short.tokens[0])
    assert both.tokens[1, n:].eq(0).all()
    assert both.position_ids[1, :, n:].eq(0).all()
    assert both.logit_mask.sum(-1).tolist() == [1, 1]


def test_several_tokens_share_the_position_of_the_mask(copa):
    task = task_of("copa", copa)
    batch = task.collate([task.dataset("train")[0]])
    sep = int(batch.attention_mask[0, 0])
    scored = batch.logit_mask[0, 0].bool()
    mask_at = batch.tokens[0, 0].tolist().index(103)
    k = int(scored.sum())
    assert batch.position_ids[0, 0, 0, scored].tolist() == [mask_at] * k
    assert batch.position_ids[0, 0, 1, scored].tolist() == list(range(1, k + 1))
    assert batch.position_ids[0, 0, 0, :sep].tolist() == list(range(sep))
    without = task_of("copa", copa, block_position=False)
    batch = without.collate([without.dataset("train")[0]])
    assert batch.position_ids[0, 0, 1, scored].tolist() == [1] * k


def test_missing_choices_are_copies_of_choice_0_that_do_not_count():
    rows = [[Row([w, MASK], answer=w) for w in choices] for choices in ("abc", "d")]
    encoded = encode(rows, ["", ""], bert(), Layout(seq_length=16))
    dataset = EncodedDataset([Example("x-0", "", (), 2), Example("x-1", "", (), 0)], encoded)
    collate = Collator(eos=0, sop=30522, cloze=True, several_rows=True)
    batch = collate([dataset[0], dataset[1]])
    assert batch.tokens.shape[:2] == (2, 3)
    assert batch.choice_mask.tolist() == [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]
    assert torch.equal(batch.tokens[1, 2], batch.tokens[1, 0])
    assert torch.equal(batch.target_ids[1, 1], batch.target_ids[1, 0])
    assert collate([dataset[0]]).choice_mask is None
    fixed = collate([dataset[1]], dataset.max_choices)  # --fix_variable_num_choices
    assert fixed.choice_mask.tolist() == [[1.0, 0.0, 0.0]]


def test_the_majority_class():
    encoded = encode([[Row(["a"])]] * 4, [""] * 4, bert(), Layout(seq_length=9, cloze=False))
    dataset = EncodedDataset([Example("", "", (), y) for y in (1, 0, 1, 1)], encoded)
    assert majority_class_accuracy(dataset) == 75.0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sst2", {}),
        ("sst2", {"multi_token": True}),
        ("sst2", {"multi_token": True, "fast_decode": True}),
        *(("sst2", {"cloze": False, "pool_token": pool}) for pool in ("cls", "start", "pad")),
        ("copa", {}),
        ("copa", {"fast_decode": True}),
        ("copa", {"cloze": False}),
    ],
)
def test_scores_do_not_depend_on_padding_or_on_the_rest_of_the_batch(tmp_path, name, options):
    write_lines(tmp_path / "train.jsonl", COPA if name == "copa" else SST2)
    task = task_of(name, tmp_path, **options)
    args = ModelArgs(
        num_layers=2, hidden_size=16, num_attention_heads=4, vocab_size=bert().padded_size(),
        max_position_embeddings=64, attention_dropout=0.0, hidden_dropout=0.0, output_dropout=0.0,
    )  # fmt: skip
    module = randomize(add_head(build_model(args, task.head), task.head, args)).eval()
    dataset = task.dataset("train")
    everyone = range(len(dataset))
    together = task.collate([dataset[i] for i in everyone])
    padded = dataclasses.replace(together, **{
        key: F.pad(value, (0, 7)) for key, value in together.tensors().items()
        if key in ("tokens", "position_ids", "target_ids", "logit_mask") and value.shape[-1] > 2
    })  # fmt: skip
    with torch.no_grad():
        expected = torch.cat(
            [module(*task.inputs(task.collate([dataset[i]])))[0] for i in everyone]
        )
        for batch in (together, padded):
            actual = module(*task.inputs(batch))[0]
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert task.hard_loss(expected, together).shape == (len(dataset),)
    assert expected.std() > 0
