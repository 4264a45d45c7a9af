"""scripts/train_tokenizer.py: a WordPiece vocabulary, the same in every process."""

import subprocess
import sys
from pathlib import Path

import pytest

from data_utils.corpora import clean_text
from data_utils.tokenization import BertWordPieceTokenizer
from scripts.train_tokenizer import COMMANDS, main

ROOT = Path(__file__).parents[2]
TEXT = (
    "The cats sat on the mats.\nCaf\u00e9s \u2013 no caf\u00e9! Sitting cats, sitting mats; 1931.\n"
)


def test_it_trains_a_vocabulary(tmp_path: Path):
    corpus = tmp_path / "a.txt"
    corpus.write_text(TEXT, encoding="utf-8")
    main(["--train-data", str(corpus), "--vocab-size", "60", "--output", str(tmp_path)])
    tokens = (tmp_path / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert tokens[:5] == COMMANDS
    assert len(tokens) == len(set(tokens)) == 60
    tokenizer = BertWordPieceTokenizer(tmp_path)
    unknown = tokenizer.get_command("unk").Id
    ids = tokenizer.encode(clean_text(TEXT))
    assert unknown not in ids
    assert tokenizer.decode(ids).startswith("the cats sat on the mats .")
    assert len(ids) < len("".join(TEXT.split())) / 1.5  # it learned more than characters


def test_it_is_deterministic_across_processes(tmp_path: Path):
    command = [sys.executable, str(ROOT / "scripts/train_tokenizer.py"), "--vocab-size", "400"]
    command += ["--train-data", str(ROOT / "data/demo/WiC/val.jsonl"), "--text-key", "sentence1"]
    outputs = [tmp_path / f"{i}.txt" for i in range(2)]
    for output in outputs:
        subprocess.run([*command, "--output", str(output)], check=True, capture_output=True)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert len(outputs[0].read_text(encoding="utf-8").splitlines()) == 400


@pytest.mark.parametrize(
    ("data", "size", "message"),
    [
        ("nowhere", "60", "--train-data=nowhere: neither a corpus of corpora.json"),
        ("a.txt", "10", "--vocab-size=10: characters and commands alone are"),
        ("empty.txt", "60", "--train-data=empty.txt: no text"),
    ],
)
def test_mistakes(data: str, size: str, message: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(SystemExit) as caught:
        main(["--train-data", data, "--vocab-size", size, "--output", str(tmp_path / "v.txt")])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(message)
    assert not (tmp_path / "v.txt").exists()


def test_a_vocabulary_is_not_overwritten(tmp_path: Path, capsys):
    corpus, output = tmp_path / "a.txt", tmp_path / "v.txt"
    corpus.write_text(TEXT, encoding="utf-8")
    output.write_text("mine\n")
    argv = ["--train-data", str(corpus), "--vocab-size", "60", "--output", str(output)]
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"--output={output}: exists; give another, or --overwrite\n"
    assert output.read_text() == "mine\n"
    main([*argv, "--overwrite"])
    assert output.read_text(encoding="utf-8").startswith("[PAD]\n")


@pytest.mark.parametrize("place", ["a.txt/v.txt", "/proc/nothing/v.txt", "folder.txt"])
def test_an_output_that_cannot_be_written(place: str, tmp_path: Path, capsys):
    corpus = tmp_path / "a.txt"
    corpus.write_text(TEXT, encoding="utf-8")
    (tmp_path / "folder.txt").mkdir()
    argv = ["--train-data", str(corpus), "--vocab-size", "60", "--output", str(tmp_path / place)]
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"--output={tmp_path / place}: ")
