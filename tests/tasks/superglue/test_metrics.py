"""Scores against numbers worked out by hand."""

import pytest

from tasks.superglue import metrics


def test_accuracy_is_in_percent():
    assert metrics.accuracy([0, 1, 1, 0], [0, 1, 0, 0]) == 75.0


def test_f1_macro_averages_the_classes():
    # class 0: P 1, R 1, F1 1; class 1: P 2/3, R 1, F1 0.8; class 2: F1 0
    actual = metrics.f1_macro([0, 1, 1, 1], [0, 1, 2, 1])
    assert actual == pytest.approx((1 + 0.8 + 0) / 3)


def test_multirc_counts_answers_and_whole_questions():
    # question 7 is right as a whole, 8 has one wrong answer; tp 1, fp 1, fn 0
    actual = metrics.multirc([1, 0, 1], [1, 0, 0], [7, 7, 8])
    assert actual == pytest.approx({"f1a": 2 / 3, "em": 0.5, "acc": 200 / 3})


def test_record_takes_the_best_answer_and_ignores_case_articles_and_punctuation():
    actual = metrics.record(
        [0, 1], [["the  Red-Fox!"], ["x", "New York City"]], [["cat", "A redfox"], ["New York"]]
    )
    # 1 exact; "new york city" against "new york": P 2/3, R 1
    assert actual == pytest.approx({"em": 50.0, "f1": 100 * (1 + 0.8) / 2})


def test_record_without_answers_scores_nothing():
    assert metrics.record([0], [["x"]], [[]]) == {"em": 0.0, "f1": 0.0}


def test_normal_form_drops_accents():
    assert metrics.normalize_answer("The Caf\u00e9, an  \u00c9t\u00e9") == "cafe ete"
