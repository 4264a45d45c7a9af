"""Scores against formulas written out, and text as people write it."""

import pytest

from tasks.seq2seq.metrics import (
    answer_words,
    bleu,
    exact,
    f1,
    mean,
    readable,
    rouge,
    sentences,
)


def test_word_pieces_become_text():
    assert readable("don ' t ( 3 . 5 ) , it ' s state - of - the - art !") == (
        "don't (3.5), it's state-of-the-art!"
    )
    assert (
        readable('he said " go away " at 10 : 30 for $ 5 .') == 'he said "go away" at 10:30 for $5.'
    )
    assert readable("") == ""


def test_rouge_is_the_mean_f_of_ngrams():
    # 2 of 3 words and 1 of 2 pairs found; the second text is right.
    scores = rouge(["the cat ran", "rain"], ["the cat slept quietly", "rain"])
    p, r = 2 / 3, 2 / 4
    one = 2 * p * r / (p + r)
    p, r = 1 / 2, 1 / 3
    two = 2 * p * r / (p + r)
    assert scores["rouge-1"] == pytest.approx(100 * (one + 1) / 2)
    assert scores["rouge-2"] == pytest.approx(100 * (two + 0) / 2)
    assert scores["rouge-l"] == pytest.approx(100 * (one + 1) / 2)
    assert rouge(["running cats"], ["cat runs"])["rouge-1"] == 100.0  # stems


def test_sentences_of_a_summary_match_one_by_one():
    reference = "the old man walked home [SEP] the small dog ran away"
    swapped = "the small dog ran away [SEP] the old man walked home"
    assert rouge([swapped], [reference])["rouge-l"] == 100.0
    flat = [text.replace(" [SEP]", "") for text in (swapped, reference)]
    assert rouge(flat[:1], flat[1:])["rouge-l"] == 50.0


def test_short_and_repeated_sentences_are_left_out_of_several():
    assert sentences("he ran") == ["he ran"]  # the only one stays
    long, other = "a b c d e f", "g h i j k l"
    assert sentences(f"{long} [SEP] x y [SEP] {long} [SEP] {other}") == [long, other]
    assert sentences("a b [SEP] c d") == ["a b"]
    assert sentences("") == []


def test_bleu_of_a_corpus():
    assert bleu(["the cat sat on the mat"], ["the cat sat on the mat"]) == pytest.approx(100.0)
    # n-gram precisions 5/6, 3/5, 1/4 and, smoothed as 1 of 2 x 3, 1/6; equal lengths.
    expected = 100 * (5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25
    actual = bleu(["the cat lay on the mat"], ["the cat sat on the mat"])
    assert actual == pytest.approx(expected)


def test_answers_are_compared_by_words():
    assert exact("The Red-Fox!", ["red fox", "redfox"]) == 1.0
    assert exact("fox", ["foxes"]) == 0.0
    assert f1("a big red fox", ["red fox", "a hen"]) == pytest.approx(2 * 2 / (3 + 2))
    assert f1("", ["the"]) == 1.0
    assert f1("x", [""]) == 0.0
    assert answer_words("\u5317\u4eac\uff0c2008") == ["\u5317", "\u4eac", "2008"]
    assert mean(exact, ["a b", "c"], [["a b"], ["d"]]) == 50.0
