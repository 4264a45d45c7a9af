"""Score records against what the seed's published logs say."""

import json

import pytest

from config import ConfigError
from distill.tune.scores import best_scores, mean_score, read_records, staged, table


def record(task: str, negative: bool = False, **best: dict) -> dict:
    scores = {name: {"epoch": 1, "score_dict": entry} for name, entry in best.items()}
    args = {"task": task, "wsc_negative": negative}
    return {"args": args, "max_score_dict": scores, "epoch": -1}


def test_the_best_evaluation_is_the_one_with_the_largest_sum():
    first, second = {"EM": 62.0, "F1": 64.0}, {"EM": 62.5, "F1": 63.2}
    assert best_scores(record("ReCoRD", EM=second, F1=first)) == first


def test_scores_of_different_units_are_compared_in_percent():
    # MultiRC: f1a and em from 0 to 1, acc in percent; CB: f1-macro from 0 to 1.
    assert mean_score({"acc": 70.0, "em": 0.259, "f1a": 0.709}) == pytest.approx(48.4)
    assert mean_score({"accuracy": 92.9, "f1-macro": 0.905}) == pytest.approx(91.7)


def test_a_low_perplexity_is_the_better_one():
    low, high = {"ppl": 12.0}, {"ppl": 40.0}
    assert best_scores(record("lm", a=high, b=low)) == low


def test_a_task_that_comes_again_is_a_further_stage():
    rows = [record("WSC", a={"accuracy": 75.0}), record("WSC", True, a={"accuracy": 64.0})]
    rows.append(record("WSC", a={"accuracy": 76.0}))
    assert [row[:2] for row in staged(rows)] == [("WSC", 0), ("WSC-negative", 0), ("WSC", 1)]
    lines = [line.split() for line in table(rows).splitlines()]
    assert lines[4:] == [
        ["mean", "of", "2", "tasks", "0", "69.50"],
        ["mean", "of", "1", "tasks", "1", "76.00"],
    ]


@pytest.mark.parametrize("content", ["{", "[1]", '[{"args": {}}]'])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "log.json").write_text(content)
    with pytest.raises(ConfigError, match="--show_tune=.*log.json"):
        read_records(tmp_path / "log.json", "--show_tune")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_records(tmp_path / "none.json", "--show_tune")


def test_a_single_record_is_a_list_of_one(tmp_path):
    (tmp_path / "log.json").write_text(json.dumps(record("COPA", a={"accuracy": 70.0})))
    assert len(read_records(tmp_path / "log.json", "x")) == 1
