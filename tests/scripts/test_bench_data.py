"""The data benchmark measures what it says: the slow tokenizer is right, every part gives rows."""

import pytest

from data_utils.tokenization import ASSETS, BertWordPieceTokenizer
from scripts import bench_data
from scripts.slow_wordpiece import SlowWordPiece

VOCABULARY = ASSETS / "bert-base-uncased-vocab.txt"


def test_the_slow_tokenizer_gives_the_same_ids():
    fast, slow = BertWordPieceTokenizer(VOCABULARY), SlowWordPiece(VOCABULARY)
    for text in (
        "Hello, world! It's 3.14 o'clock - unaffable na\u00efve caf\u00e9.",
        "\u4f60\u597d  world\t\n x" + "y" * 120 + " \u201cquoted\u201d $1 #hashtag",
        "",
    ):
        assert slow.encode(text) == fast.encode(text)


def test_chunks_hold_every_text():
    texts = ["abc"] * 10
    assert bench_data.chunks(texts, 7) == [["abc"] * 3] * 3 + [["abc"]]


@pytest.mark.slow
def test_every_part_runs(capsys, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("\n".join(f"the cat number {i} sat there." for i in range(900)))
    text = str(tmp_path / "a.txt")
    bench_data.main(["--text", text, "--gigabytes=0.001", "--steps=3"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines[2:]] == ["| tokenise"] * 4 + [
        "| loader",
        "| memory",
    ]
