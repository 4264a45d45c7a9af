"""Which spans are cut out: short ones, sentences, crops."""

from collections import Counter
from math import exp, factorial
from random import Random

import numpy as np
import pytest

from data_utils.spans import (
    draw_crop,
    draw_lengths,
    draw_sentences,
    place_spans,
    sentence_spans,
    span_weights,
)
from tests.data_utils.samples import document

EOS, ENC, DOT = 0, 1, 99
ENDS = np.arange(300) == DOT


def test_span_lengths_follow_poisson():
    expected = [exp(-3) * 3**k / factorial(k) for k in range(1, 40)]
    assert span_weights(3) == pytest.approx(expected, rel=1e-12)
    lengths = draw_lengths(400_000, Random(1))
    counts = Counter(lengths)
    for k in range(1, 8):
        assert counts[k] / len(lengths) == pytest.approx(expected[k - 1] / sum(expected), abs=0.01)
    assert 0.15 * 400_000 <= sum(lengths) < 0.15 * 400_000 + 39


def test_shorter_documents_take_their_share():
    tokens = document(40) + document(20, 100)
    spans = place_spans(tokens, [1] * 9, Random(0), EOS, ENC)
    short = [span for span in spans if span[0] > 41]
    assert (len(short), len(spans)) == (3, 9)  # int(0.15 * 20)


def test_a_document_without_end_keeps_its_last_token():
    for seed in range(100):
        ((start, end),) = place_spans([1, 10, 11, 12], [1], Random(seed), EOS, ENC)
        assert 1 <= start < end <= 3


def test_sentences():
    words = [1, 10, DOT, 11, 12, DOT, 13, 0, 1, 14, DOT, DOT, 15]
    expected = [(1, 3), (3, 6), (9, 11), (11, 12), (12, 13)]  # [13] is cut off by the eos
    assert sentence_spans(words, ENDS, EOS, ENC) == expected
    assert sentence_spans([1, 10, 11, 0], ENDS, EOS, ENC) == []


def test_sentences_are_drawn_until_they_cover_their_part():
    spans = [(i, i + 5) for i in range(0, 100, 5)]
    orders = set()
    for seed in range(30):
        drawn = draw_sentences(spans, 100, 0.22, Random(seed))
        assert len(drawn) == 5
        assert set(drawn) <= set(spans)
        orders.add(tuple(drawn))
    assert len(orders) == 30
    assert len(draw_sentences(spans, 100, 0.0, Random(0))) == 1


def test_crops_go_from_sentence_to_sentence():
    words = [10] * 200
    words[9::10] = [DOT] * 20
    words[49] = EOS
    for seed in range(100):
        start, end = draw_crop(words, 64, ENDS, EOS, Random(seed))
        assert start % 10 == 0
        assert end % 10 == 0
        assert 32 <= end - start <= 64
    plain = [10] * 200
    for seed in range(20):
        start, end = draw_crop(plain, 64, ENDS, EOS, Random(seed))
        assert (start, end) == (0, 64)  # no end anywhere: the document's start, and the whole
    assert draw_crop(words[:64], 64, ENDS, EOS, Random(0)) == (0, 64)
