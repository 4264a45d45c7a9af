"""Samples from given spans, against the seed's and by hand."""

from pathlib import Path
from random import Random

import pytest

from data_utils.block import (
    SpecialIds,
    assemble,
    collate,
    continue_text,
    hide_context,
    hide_inputs,
    mask_in_place,
)
from tests.vector_checks.data import check_block_data

IDS = SpecialIds(eos=0, ENC=1, MASK=2, sop=3, eop=4)


def test_vectors(vectors: Path):
    assert [r.status for r in check_block_data(vectors / "block_lm_data")] == ["ok"]


def test_a_wrong_vector_is_noticed(vectors: Path, tmp_path: Path):
    for name in ("args.json", "expected.json"):
        text = (vectors / "block_lm_data" / name).read_text()
        (tmp_path / name).write_text(text.replace('"sep": 12', '"sep": 13'))
    assert check_block_data(tmp_path)[0].status == "FAILED"


def test_an_end_of_document_in_a_span_is_an_error():
    with pytest.raises(ValueError, match="end of a document"):
        assemble([1, 5, 0, 6], [(1, 3)], IDS)


def test_collate_pads_with_zero_to_the_longest():
    samples = [
        assemble([1, 5, 6, 7, 0], [(3, 4), (1, 2)], IDS),
        assemble([1, 8, 0], [(1, 2)], IDS, block_position=False),
    ]
    samples[1].index, samples[1].weight = 7, 0.0
    batch = collate(samples)
    assert batch.tokens.tolist() == [[1, 2, 6, 2, 0, 3, 7, 3, 5], [1, 2, 0, 3, 8, 0, 0, 0, 0]]
    assert batch.labels.tolist() == [[1, 2, 6, 2, 0, 7, 4, 5, 4], [1, 2, 0, 8, 4, 0, 0, 0, 0]]
    assert batch.loss_mask.tolist() == [[0] * 5 + [1] * 4, [0, 0, 0, 1, 1, 0, 0, 0, 0]]
    assert batch.position_ids.tolist() == [
        [[0, 1, 2, 3, 4, 3, 3, 1, 1], [0, 0, 0, 0, 0, 1, 2, 1, 2]],
        [[0, 1, 2, 1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0, 0, 0]],
    ]
    assert batch.attention_mask.tolist() == [5, 3]
    assert batch.sample_ids.tolist() == [0, 7]
    assert batch.weight.tolist() == [1, 0]


def test_every_kind_has_its_mask():
    ids = SpecialIds(0, 1, 2, 3, 4, gMASK=7, sMASK=8)
    for kind, expected in (("bert", 2), ("gpt", 7), ("sentence", 8)):
        sample = assemble([1, 5, 6, 0], [(1, 2)], ids, kind=kind)
        assert sample.text == [1, expected, 6, 0, 3, 5]
        assert assemble([1, 5, 6, 0], [(1, 2)], IDS, kind=kind).text[1] == 2


def test_sentinels():
    ids = SpecialIds(0, 1, 2, 3, 4, sMASK=8, sentinels=((20, 30), (21, 31)))
    spans = [(3, 4), (1, 2)]  # the second place comes first
    sample = assemble([1, 5, 6, 7, 0], spans, ids, sentinel_position=64)
    assert sample.text == [1, 20, 6, 2, 0, 3, 7, 30, 5]
    assert sample.target == [1, 20, 6, 2, 0, 7, 4, 5, 4]
    assert sample.position == [0, 1, 2, 3, 4, 64, 64, 64, 64]
    sentences = assemble([1, 5, 6, 7, 0], spans, ids, kind="sentence", sentinel_position=64)
    assert sentences.text == [1, 8, 6, 8, 0, 3, 7, 30, 5]


def test_positions_can_start_anywhere():
    sample = assemble([1, 5, 6, 0], [(1, 2)], IDS, shift=5)
    assert sample.position == [5, 6, 7, 8, 6, 6]


@pytest.mark.parametrize("block_position", [True, False])
def test_the_rest_of_a_sample(block_position: bool):
    ids = SpecialIds(0, 1, 2, 3, 4, gMASK=7)
    tokens, mask = [1, 5, 6, 0, 1, 8, 0], [0, 1, 1, 1, 0, 1, 1]
    sample = continue_text(tokens, 4, ids, mask, block_position=block_position)
    assert sample.text == [1, 5, 6, 7, 3, 0, 1, 8]
    assert sample.target == [1, 5, 6, 7, 0, 1, 8, 0]
    assert sample.loss == [0, 0, 0, 0, 1, 0, 1, 1]  # an ENC is given, not guessed
    assert sample.position == [0, 1, 2, 3, 3, 3, 3, 3]
    assert sample.block_position == [0, 0, 0, 0, *([1, 2, 3, 4] if block_position else [1] * 4)]
    assert sample.sep == 4


def test_masked_language_model():
    sample = mask_in_place([1, 5, 6, 7, 0], [(1, 2), (3, 4)], IDS, [0, 1, 1, 0, 1])
    assert (sample.text, sample.target) == ([1, 2, 6, 2, 0], [1, 5, 6, 7, 0])
    assert (sample.loss, sample.sep, sample.block_position) == ([0, 1, 0, 0, 0], 5, None)
    batch = collate([sample])
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4]]


def test_hidden_inputs_are_words_of_spans_only():
    ids, spans = SpecialIds(0, 1, 2, 3, 4, dBLOCK=9), [(3, 5), (1, 2)]
    sample = assemble([1, 5, 6, 7, 8, 0], spans, ids)
    before = sample.target.copy()
    hide_inputs(sample, spans, ids, 1.0, Random(0))
    assert sample.text == [1, 2, 6, 2, 0, 3, 9, 9, 3, 9]
    assert sample.target == before
    sample = assemble([1, *range(10, 410), 0], [(1, 400)], ids)
    hide_inputs(sample, [(1, 400)], ids, 0.25, Random(0))
    assert sample.text.count(9) == pytest.approx(100, abs=30)


def test_hidden_context_lies_near_spans():
    ids, spans = SpecialIds(0, 1, 2, 3, 4, dBLOCK=9), [(14, 16), (4, 5)]
    near = set()
    for seed in range(200):
        sample = assemble([1, *range(10, 29), 0], spans, ids)
        hide_context(sample, spans, ids, 2, Random(seed))
        hidden = [i for i, token in enumerate(sample.text) if token == 9]
        assert len(hidden) == 2
        near |= set(hidden)
    masks = (4, 14)
    assert near == {m + d for m in masks for d in (-3, -2, -1, 1, 2, 3)}
    hide_context(sample, spans, ids, 100, Random(0))
    assert sample.text.count(9) == 12
    assert sample.text.count(2) == 2
