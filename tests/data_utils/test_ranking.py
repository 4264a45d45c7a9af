"""Rankings of a vocabulary: order, the seed's file format, files that do not fit."""

import numpy as np
import pytest

from config.data import TokenizerArgs
from config.errors import ConfigError
from data_utils.ranking import default_path, order_of, read_ranking, write_ranking

COUNTS = np.array([5, 0, 7, 7, 1])


def test_protected_ids_come_first_and_equal_counts_keep_the_order_of_ids():
    assert order_of(COUNTS, {1, 4}).tolist() == [4, 1, 2, 3, 0]
    assert order_of(COUNTS, set()).tolist() == [2, 3, 0, 4, 1]


def test_the_file_has_the_seeds_columns(tmp_path):
    file = tmp_path / "deep" / "r.txt"
    write_ranking(file, np.array([4, 1, 2, 3, 0]), COUNTS, ["a", "b\tb", "c", '"', "e\n"])
    assert file.read_text().splitlines() == [
        "origin_no\tsort_id\ttoken\tnumber\tfrequency",
        "4\t4\te\\n\t1\t0.05",
        "1\t1\tb\\tb\t0\t0",
        "2\t2\tc\t7\t0.35",
        '3\t3\t"\t7\t0.35',
        "0\t0\ta\t5\t0.25",
    ]
    assert [path.name for path in file.parent.iterdir()] == ["r.txt"]
    assert read_ranking(file, 5, "--x").tolist() == [4, 1, 2, 3, 0]


@pytest.mark.parametrize(
    ("flags", "path"),
    [
        ({}, ".pytorch_pretrained_bert/BertWordPieceTokenizer_bert-base-uncased.txt"),
        (
            {"tokenizer_type": "GPT2BPETokenizer"},
            ".pytorch_pretrained_bert/GPT2BPETokenizer_gpt2.txt",
        ),
        (
            {"tokenizer_model_type": "bert-large-uncased"},
            ".pytorch_pretrained_bert/BertWordPieceTokenizer_bert-large-uncased.txt",
        ),
        ({"tokenizer_path": "runs/mine.txt"}, "runs/BertWordPieceTokenizer_mine.txt"),
    ],
)
def test_where_a_ranking_lies(flags, path):
    assert str(default_path(TokenizerArgs(**flags))) == path


def test_a_folder_of_ones_own_has_its_ranking_inside(tmp_path):
    args = TokenizerArgs(tokenizer_path=str(tmp_path))
    assert default_path(args) == tmp_path / "BertWordPieceTokenizer_vocab.txt"


HEAD = "origin_no\tsort_id\ttoken\tnumber\tfrequency\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, r"--x=.*r\.txt: no ranking of the vocabulary there; write one with scripts/count_t"),
        (b"\xff\xfe", "is not UTF-8"),
        ("a\tb\n0\t1\n", "its first line must name the columns .*; origin_no and sort_id missing"),
        (HEAD + "1\t1\ta\t1\t1\nx\t0\tb\t0\t0\n", r"r\.txt:3: has no origin_no and sort_id"),
        (HEAD + "0\n", r"r\.txt:2: has no origin_no and sort_id"),
        (HEAD + "0\t0\ta\t1\t1\n", "ranks 1 ids, the tokenizer has 2; write one .* for it"),
        (HEAD + "0\t0\ta\t1\t1\n1\t0\ta\t1\t1\n", "sort_id must have every id from 0 to 1 once"),
        (HEAD + "0\t1\ta\t1\t1\n1\t0\ta\t1\t1\n", "origin_no is not the rank that sort_id gives"),
    ],
)
def test_files_that_do_not_fit(tmp_path, text, words):
    file = tmp_path / "r.txt"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=words):
        read_ranking(file, 2, "--x")
