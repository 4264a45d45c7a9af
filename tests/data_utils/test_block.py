"""Span corruption against the seed's numbers and its own laws."""

from collections import Counter
from math import exp, factorial
from pathlib import Path
from random import Random

import pytest

from data_utils.block import (
    BERT_RATIO,
    SpanCorruption,
    SpecialIds,
    assemble,
    collate,
    place_spans,
    span_weights,
)
from tests.vector_checks.data import check_block_data, restore

IDS = SpecialIds(eos=0, ENC=1, MASK=2, sop=3, eop=4)
BERT = SpecialIds(eos=0, ENC=101, MASK=103, sop=30522, eop=30523)
GOLDEN = [
    *(101, 1996, 4248, 2829, 4419, 14523, 2058, 1996, 13971, 3899, 1012, 1037, 2117, 6251, 4076),
    *(2182, 999, 1998, 2059, 1037, 2353, 2028, 8480, 2012, 2197, 1025, 1996, 2203, 1997, 2009),
    *(3310, 3254, 1012, 0),
]


def document(length: int, first: int = 10) -> list[int]:
    """ENC, `length` different words, eos."""
    return [1, *range(first, first + length), 0]


def restored(sample, ids: SpecialIds = IDS) -> tuple[list[int], list[tuple[int, int]]]:
    return restore({"text": sample.text, "position": sample.position, "sep": sample.sep}, ids)


def test_vectors(vectors: Path):
    assert [r.status for r in check_block_data(vectors / "block_lm_data")] == ["ok"]


def test_a_wrong_vector_is_noticed(vectors: Path, tmp_path: Path):
    for name in ("args.json", "expected.json"):
        text = (vectors / "block_lm_data" / name).read_text()
        (tmp_path / name).write_text(text.replace('"sep": 12', '"sep": 13'))
    assert check_block_data(tmp_path)[0].status == "FAILED"


def test_golden_batch():
    """The seed's first batch of a sample given twice (toolkit section 10)."""
    rows = SpanCorruption(BERT).like_the_seed([GOLDEN, GOLDEN], Random(0))
    first, second = rows
    masks = [[i for i, t in enumerate(s.text) if t == 103] for s in rows]
    assert masks == [[12, 18], [18, 25]]
    assert first.sep == 31
    assert first.text[31:] == [30522, 1037, 2353, 2028, 30522, 2117, 6251]
    assert first.target[31:] == [1037, 2353, 2028, 30523, 2117, 6251, 30523]
    assert first.position[31:] == [18, 18, 18, 18, 12, 12, 12]
    assert first.block_position[31:] == [1, 2, 3, 4, 1, 2, 3]
    assert second.text[second.sep :] == [30522, 1996, 2203, 1997, 30522, 2059, 1037]


def test_span_lengths_follow_poisson():
    expected = [exp(-3) * 3**k / factorial(k) for k in range(1, 40)]
    assert span_weights(3) == pytest.approx(expected, rel=1e-12)
    lengths = SpanCorruption(IDS).draw_lengths(400_000, Random(1))
    counts = Counter(lengths)
    for k in range(1, 8):
        assert counts[k] / len(lengths) == pytest.approx(expected[k - 1] / sum(expected), abs=0.01)
    assert 0.15 * 400_000 <= sum(lengths) < 0.15 * 400_000 + 39


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_sample_can_be_restored(shuffle: bool):
    corrupt = SpanCorruption(IDS, shuffle=shuffle)
    orders = set()
    for seed in range(200):
        rng = Random(seed)
        tokens = document(rng.randrange(1, 90)) + document(rng.randrange(1, 30), 200)
        sample = corrupt(tokens, Random(seed))
        expected, spans = restored(sample)
        assert expected == tokens
        places = sorted(spans)
        assert all(a[1] < b[0] for a, b in zip(places, places[1:], strict=False))  # a word between
        covered = sum(end - start for start, end in spans)
        assert covered >= int(BERT_RATIO * len(tokens))
        assert sample.sep == len(tokens) - covered + len(spans)
        assert len(sample.text) == len(tokens) + 2 * len(spans)
        for start, end in spans:
            assert not {IDS.eos, IDS.ENC} & set(tokens[start:end])
        orders.add(spans == places)
    assert orders == ({True, False} if shuffle else {True})


def test_one_generator_state_one_sample():
    corrupt = SpanCorruption(IDS)
    samples = [corrupt(document(60), Random(seed)).text for seed in (1, 1, 2)]
    assert samples[0] == samples[1] != samples[2]


def test_single_spans():
    corrupt = SpanCorruption(IDS, single_span_prob=0.25)
    single = sum(len(restored(corrupt(document(60), Random(s)))[1]) == 1 for s in range(2000))
    assert single / 2000 == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    "tokens",
    [
        document(1),
        document(2),
        sum((document(2, 10 * i) for i in range(1, 12)), []),  # GLM's rule finds no room here
        [1, 10, 11],
    ],
)
def test_no_sample_is_dropped(tokens: list[int]):
    for seed in range(50):
        sample = SpanCorruption(IDS)(tokens, Random(seed))
        assert restored(sample)[0] == tokens
        assert len(sample.text) > sample.sep


def test_the_seed_drops_what_does_not_fit():
    tokens = sum((document(2, 10 * i) for i in range(1, 12)), [])
    assert SpanCorruption(IDS).like_the_seed([tokens, GOLDEN], Random(0))[:-1] == []


def test_shorter_documents_take_their_share():
    tokens = document(40) + document(20, 100)
    spans = place_spans(tokens, [1] * 9, Random(0), IDS)
    short = [span for span in spans if span[0] > 41]
    assert (len(short), len(spans)) == (3, 9)  # int(0.15 * 20)


def test_a_document_without_end_keeps_its_last_token():
    for seed in range(100):
        ((start, end),) = place_spans([1, 10, 11, 12], [1], Random(seed), IDS)
        assert 1 <= start < end <= 3


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
