"""The data benchmark measures what it says: the slow tokenizer is right, every part gives rows."""

import pytest

from data_utils.tokenization import ASSETS, BertWordPieceTokenizer
from scripts import bench_data, bench_record
from scripts.slow_encode import slow_sample
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


def test_the_slow_encoder_gives_the_same_rows(tmp_path, monkeypatch):
    """Of passages that fit and of such that are cut: what is compared does the same work."""
    monkeypatch.setattr(bench_record, "SEQ_LENGTH", 64)
    text = "When Ann met the unaffable Mr. Darcy, she found that he was not at all proud."
    words = text.split()
    for length in (20, 90):
        bench_record.write_examples(tmp_path / "val.jsonl", words * 30, (3, length, 5))
        task, slow = bench_record.record_task(str(tmp_path)), SlowWordPiece(VOCABULARY)
        dataset = task.dataset("val")
        assert dataset.num_truncated == (0 if length == 20 else 3 * 5)
        for i, x in enumerate(task.pvp.read(tmp_path / "val.jsonl", "val")):
            expected = slow_sample(task.pvp.cloze_rows(x, True), slow, 64)
            actual = task.collate([dataset[i]])
            width = actual.tokens.size(-1)
            assert actual.attention_mask[0].tolist() == expected["sep"].tolist()
            for name, tensor in (
                ("tokens", actual.tokens),
                ("positions", actual.position_ids),
                ("targets", actual.target_ids),
                ("logit_mask", actual.logit_mask),
            ):
                assert tensor[0].tolist() == expected[name][..., :width].tolist(), name
                assert (expected[name][..., width:] == 0).all()


def test_chunks_hold_every_text():
    texts = ["abc"] * 10
    assert bench_data.chunks(texts, 7) == [["abc"] * 3] * 3 + [["abc"]]


@pytest.mark.slow
def test_every_part_runs(capsys, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("\n".join(f"the cat number {i} sat there." for i in range(900)))
    text = str(tmp_path / "a.txt")
    monkeypatch.setattr(bench_data, "RECORD_SIZES", ((9, 400, 3),))
    bench_data.main(["--text", text, "--gigabytes=0.001", "--steps=3"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines[2:]] == ["| tokenise"] * 4 + [
        "| loader",
        "| memory",
        *["| ReCoRD-like"] * 3,
    ]
