"""Scores of a split, verbalizers, and the recorded encodings and scores of the seed."""

import json

import pytest

from config.errors import ConfigError
from tasks.choice import ChoiceTask
from tests.tasks.common import SST2, bert, gpt2, task_of, write_lines
from tests.vector_checks.common import NOT_IMPLEMENTED
from tests.vector_checks.tasks import check_encodings, check_metrics

CB = [{"premise": "p", "hypothesis": "h", "label": y} for y in ("entailment", "neutral", "neutral")]


def test_metrics_gather_predictions_by_sample(tmp_path):
    write_lines(tmp_path / "val.jsonl", CB)
    task = task_of("cb", tmp_path)
    actual = task.metrics({2: 2, 0: 0, 1: 0}, "val")
    assert list(actual) == ["accuracy", "f1-macro"]
    # entailment: P 1/2, R 1; neutral: P 1, R 1/2
    assert actual == pytest.approx({"accuracy": 200 / 3, "f1-macro": 200 / 3})
    actual = task_of("cb", tmp_path, w29=True).metrics({2: 2, 0: 0, 1: 0}, "val")
    assert actual == pytest.approx({"accuracy": 200 / 3, "f1-macro": 2 / 3})  # the seed's units


def test_every_sample_needs_a_prediction(tmp_path):
    write_lines(tmp_path / "val.jsonl", CB)
    with pytest.raises(AssertionError, match="1 of 3 predictions of val are missing"):
        task_of("cb", tmp_path).metrics({0: 0, 2: 1}, "val")


def test_predictions_are_written_with_the_file_s_own_numbers(tmp_path):
    write_lines(tmp_path / "val.jsonl", CB)
    name, lines = task_of("cb", tmp_path).submission({1: 0, 0: 1, 2: 1}, "val")
    assert name == "CB.jsonl"
    assert [json.loads(line) for line in lines] == [
        {"idx": 0, "label": "contradiction"},
        {"idx": 1, "label": "entailment"},
        {"idx": 2, "label": "contradiction"},
    ]
    write_lines(tmp_path / "val.jsonl", SST2)
    actual = task_of("sst2", tmp_path).submission({1: 0, 0: 1, 2: 1}, "val")
    assert actual == ("SST-2.tsv", ["index\tprediction", "0\t1", "1\t0", "2\t1"])


def test_a_task_without_data_has_no_scores(tmp_path):
    task = task_of("cb", tmp_path)
    assert ChoiceTask.metrics(task, {0: 0}) == {}
    with pytest.raises(ConfigError, match="--data-dir"):
        task_of("cb", tmp_path, data_dir=None).dataset("train")


def test_byte_level_verbalizers_keep_their_space_and_lose_it_in_the_seed(tmp_path):
    # ` No`, ` Yes`: 1400, 3363; `No`, `Yes`: 2949, 5297
    assert task_of("wic", tmp_path, tokenizer=gpt2()).collator.verbalizers == (1400, 3363)
    assert task_of("wic", tmp_path, tokenizer=gpt2(), w14=True).collator.verbalizers == (2949, 5297)


def test_a_verbalizer_of_several_tokens_is_an_error_that_says_what_to_do(tmp_path):
    assert len(task_of("cb", tmp_path, pattern_id=4, tokenizer=gpt2()).collator.verbalizers) == 3
    with pytest.raises(ConfigError, match=r"--pattern-id=4: .*neither.*--multi-token"):
        task_of("cb", tmp_path, pattern_id=4, tokenizer=gpt2(), w14=True)


def test_truncation_is_reported_once_a_split(tmp_path, caplog):
    write_lines(tmp_path / "train.jsonl", SST2)
    with caplog.at_level("INFO"):
        task_of("sst2", tmp_path, seq_length=12, tokenizer=bert()).dataset("train")
    (line,) = [r.getMessage() for r in caplog.records if r.name.startswith("tasks")]
    assert "3 examples; 2 of 3 rows cut to --seq-length=12" in line


def test_fast_decode_without_long_answers_warns(tmp_path, caplog):
    task = task_of("sst2", tmp_path, fast_decode=True)
    assert task.head.kind == "single_token"
    assert "--fast-decode: has no effect" in caplog.text


def test_a_length_penalty_without_long_answers_warns(tmp_path, caplog):
    task_of("sst2", tmp_path, length_penalty=1.0)
    assert "--length-penalty: has no effect without answers of several tokens" in caplog.text
    caplog.clear()
    task_of("sst2", tmp_path, length_penalty=1.0, multi_token=True)
    task_of("sst2", tmp_path, length_penalty=1.0, cloze=False)  # config has told
    assert caplog.text == ""


def test_the_seeds_encodings(vectors):
    results = {r.name.split("/", 1)[1]: r for r in check_encodings(vectors / "superglue_encodings")}
    tasks = ("boolq", "cb", "copa", "rte", "wic", "wsc", "record", "multirc", "ax-b", "ax-g")
    for name in (*tasks, "record_collate", "other_glue_patterns/sst2"):
        assert results[name].status == "ok", results[name].message
    assert all(r.status in ("ok", NOT_IMPLEMENTED) for r in results.values())


def test_the_seeds_scores(vectors):
    (result,) = check_metrics(vectors / "metrics")
    assert result.status == "ok", result.message


def test_a_wrong_encoding_fails_the_check(vectors, monkeypatch):
    from tasks.superglue.pvp.nli import RTE

    monkeypatch.setattr(RTE, "verbalizers", lambda self: (" No", " Yes"))
    results = {r.name.split("/", 1)[1]: r for r in check_encodings(vectors / "superglue_encodings")}
    assert results["rte"].status == "FAILED"
    assert "target" in results["rte"].message
    assert results["wic"].status == "ok"
