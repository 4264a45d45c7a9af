"""Reading task files, and what a message says of a wrong one."""

import json

import pytest

from tasks.superglue.data import find_split, read_records
from tests.tasks.common import COPA, SST2, task_of, write_lines

RTE = {"premise": "It rained.", "hypothesis": "It was wet.", "label": "entailment"}


def test_lines_are_read_in_order_with_their_own_numbers(tmp_path):
    write_lines(tmp_path / "train.jsonl", [SST2[0], "", SST2[1]])
    dataset = task_of("sst2", tmp_path).dataset("train")
    assert dataset.guids == ["train-7", "train-3"]
    assert dataset.labels.tolist() == [1, 0]


def test_text_quotes_and_dashes_become_ascii(tmp_path):
    write_lines(tmp_path / "f.jsonl", [{"x": "\u201cWe won\u2019t\u201d \u2013 \u2018no\u2019"}])
    (record,) = read_records(tmp_path / "f.jsonl")
    assert record.text("x") == "\"We won't\" - 'no'"


def test_the_tsv_files_of_glue(tmp_path):
    (tmp_path / "train.tsv").write_text(
        'sentence\tlabel\na "quoted joy\t1\nbad \t0\n', encoding="utf-8"
    )
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nfine\t1\n", encoding="utf-8")
    (tmp_path / "test.tsv").write_text("index\tsentence\n0\tso so\n1\tmeh\n", encoding="utf-8")
    task = task_of("SST-2", tmp_path)
    assert task.dataset("train").labels.tolist() == [1, 0]
    assert task.dataset("val").labels.tolist() == [1]
    assert task.dataset("test").labels.tolist() == [-1, -1]


def test_jsonl_comes_before_tsv(tmp_path):
    write_lines(tmp_path / "val.jsonl", SST2)
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nfine\t1\n", encoding="utf-8")
    assert find_split(tmp_path, ("val.jsonl", "dev.tsv"), "sst-2", "val").name == "val.jsonl"


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_split_names_folder_and_file(tmp_path, split):
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}: no {split}.jsonl") as error:
        task_of("rte", tmp_path).dataset(split)
    assert "rte" in str(error.value)


def test_a_missing_test_file_is_no_error(tmp_path):
    assert task_of("rte", tmp_path).dataset("test") is None


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        task_of("rte", tmp_path / "nowhere").dataset("train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"sentence": "x", "label": 1', r"train.jsonl, line 3: not JSON"),
        ("[1, 2]", r"train.jsonl, line 3: must be an object"),
        ({"label": 1}, r"train.jsonl, line 3: no field 'sentence'; there are \['label'\]"),
        (
            {"sentence": 5, "label": 1},
            r"train.jsonl, line 3: field 'sentence' is 5; must be a text",
        ),
        (
            '{"sentence": "x \\udc00 y", "label": 1}',
            r"train.jsonl, line 3: field 'sentence' holds half a surrogate pair",
        ),
        ({"sentence": "x"}, r"train.jsonl, line 3: no field 'label'; it is one of 0, 1"),
        (
            {"sentence": "x", "label": 2},
            r"train.jsonl, line 3: field 'label' is 2; must be one of 0, 1",
        ),
        ({"sentence": "x", "label": None}, r"train.jsonl, line 3: field 'label' is None"),
    ],
)
def test_a_wrong_line_is_named_with_its_field(tmp_path, line, message):
    write_lines(tmp_path / "train.jsonl", [SST2[0], "", line])
    with pytest.raises(ValueError, match=message):
        task_of("sst2", tmp_path).dataset("train")


def test_a_whole_surrogate_pair_is_a_character(tmp_path):
    write_lines(tmp_path / "f.jsonl", ['{"x": "\\ud83d\\ude00"}'])
    (record,) = read_records(tmp_path / "f.jsonl")
    assert record.text("x") == "\U0001f600"


def test_bytes_that_are_not_utf8_name_the_file(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b'{"sentence": "caf\xe9", "label": 1}\n')
    with pytest.raises(ValueError, match=r"train.jsonl, line 1: not UTF-8"):
        task_of("sst2", tmp_path).dataset("train")


def test_a_tsv_row_with_a_column_too_many(tmp_path):
    (tmp_path / "train.tsv").write_text("sentence\tlabel\nfine\t1\tx\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"train.tsv, line 2: 3 columns, the header has 2"):
        task_of("sst2", tmp_path).dataset("train")


def test_an_empty_file_is_an_error(tmp_path):
    write_lines(tmp_path / "train.jsonl", [])
    with pytest.raises(ValueError, match="holds no examples"):
        task_of("sst2", tmp_path).dataset("train")


def test_copa_asks_for_cause_or_effect(tmp_path):
    write_lines(tmp_path / "train.jsonl", [COPA[0] | {"question": "why"}])
    with pytest.raises(
        ValueError, match=r"line 1: field 'question' is 'why'; must be one of cause, effect"
    ):
        task_of("copa", tmp_path).dataset("train")


def test_labels_of_json_booleans(tmp_path):
    line = {"passage": "Cats are animals.", "question": "are cats animals", "label": True}
    write_lines(tmp_path / "train.jsonl", [line, line | {"label": False}])
    assert task_of("boolq", tmp_path).dataset("train").labels.tolist() == [1, 0]


def test_a_test_file_may_have_no_labels_and_then_has_no_scores(tmp_path):
    write_lines(
        tmp_path / "test.jsonl",
        [RTE | {"label": None}, {k: RTE[k] for k in ("premise", "hypothesis")}],
    )
    task = task_of("rte", tmp_path)
    assert task.dataset("test").labels.tolist() == [-1, -1]
    assert task.metrics({0: 1, 1: 0}, "test") == {}


def test_the_diagnostic_sets_test_what_rte_trained(tmp_path):
    write_lines(tmp_path / "train.jsonl", [RTE])
    write_lines(
        tmp_path / "AX-b.jsonl",
        [{"sentence1": "A b.", "sentence2": "C.", "label": "not_entailment"}],
    )
    task = task_of("ax-b", tmp_path)
    assert task.dataset("train").labels.tolist() == [0]
    assert task.dataset("test").labels.tolist() == [1]


def test_copa_trains_on_mirrored_examples_too(tmp_path):
    for name in ("train", "val"):
        write_lines(tmp_path / f"{name}.jsonl", COPA)
    task = task_of("copa", tmp_path)
    assert task.dataset("train").guids == ["train-0", "train-1", "train-0m", "train-1m"]
    assert task.dataset("train").labels.tolist() == [0, 0, 1, 1]
    assert task.dataset("val").guids == ["dev-0", "dev-1"]


def test_empty_texts_and_labels_of_another_kind_say_what_to_do(tmp_path):
    write_lines(tmp_path / "train.jsonl", [SST2[0], {"sentence": "  ", "label": 1}])
    with pytest.raises(ValueError, match=r"line 2: field 'sentence' is empty; .*mend the line, or"):
        task_of("sst2", tmp_path).dataset("train")


def test_bad_lines_are_skipped_and_reported(tmp_path, caplog):
    lines = [json.dumps(SST2[0]), "{torn", json.dumps({"sentence": "", "label": 1})]
    lines += ['{"sentence": "x", "label": 7}', json.dumps(SST2[1])]
    data = "\n".join(lines).encode() + b'\n{"sentence": "caf\xe9", "label": 1}\n'
    (tmp_path / "train.jsonl").write_bytes(data)
    task = task_of("sst2", tmp_path, skip_bad_lines=True)
    assert task.dataset("train").guids == ["train-7", "train-3"]
    (told,) = (r.getMessage() for r in caplog.records if "lines skipped" in r.getMessage())
    assert told.startswith(f"{tmp_path / 'train.jsonl'}: 4 bad lines skipped (--skip-bad-lines)")
    assert "line 2: not JSON" in told
    assert told.endswith("and 1 more")
    write_lines(tmp_path / "train.jsonl", ["{torn"])
    with pytest.raises(ValueError, match="holds no examples that can be used"):
        task_of("sst2", tmp_path, skip_bad_lines=True).dataset("train")


def test_a_line_of_which_one_part_is_bad_is_skipped_whole(tmp_path):
    answers = [{"idx": 0, "text": "Yes", "label": 1}, {"idx": 1, "text": "No", "label": 2}]
    asked = {"idx": 0, "question": "Who?", "answers": answers}
    bad = {"idx": 0, "passage": {"text": "A.", "questions": [asked]}}
    good = {"idx": 1, "passage": {"text": "A.", "questions": [asked | {"answers": answers[:1]}]}}
    write_lines(tmp_path / "train.jsonl", [bad, good])
    with pytest.raises(
        ValueError, match=r"field 'passage.questions\[0\].answers\[1\].label' is 2; must be one of"
    ):
        task_of("multirc", tmp_path).dataset("train")
    task = task_of("multirc", tmp_path, skip_bad_lines=True)
    assert task.dataset("train").guids == ["train-p1-q0-a0"]


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(SST2[0]).encode())
    assert task_of("sst2", tmp_path).dataset("train").guids == ["train-7"]
