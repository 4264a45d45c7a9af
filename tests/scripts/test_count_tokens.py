"""scripts/count_tokens.py: frequencies of a corpus, and which ids come first whatever they are."""

from collections import Counter

import pytest

from config.data import BlockLMArgs, TokenizerArgs
from data_utils.build_tokenizer import build_tokenizer
from data_utils.ranking import default_path, read_ranking
from scripts.count_tokens import label_words, main, protected_ids
from tests.e2e.world import make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("count"))


def flags(world, *more):
    return [
        *("--train-data", str(world / "corpus.txt"), "--cache-dir", str(world / "cache")),
        *("--tokenizer-path", str(world / "vocab.txt"), *more),
    ]


def test_the_ranking_is_that_of_the_text(world, capsys):
    main(flags(world))
    args = TokenizerArgs(tokenizer_path=str(world / "vocab.txt"))
    tokenizer, path = build_tokenizer(args, BlockLMArgs()), default_path(args)
    told = capsys.readouterr().out
    expected = Counter(tokenizer.encode((world / "corpus.txt").read_text()))
    assert f"{path}: {tokenizer.num_tokens} ids by {sum(expected.values())} tokens" in told
    order = read_ranking(path, tokenizer.num_tokens, "--x").tolist()
    first = protected_ids(tokenizer)
    assert set(order[: len(first)]) == first
    rest = [expected[i] for i in order[len(first) :]]
    assert rest == sorted(rest, reverse=True)
    rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    assert [int(row[3]) for row in rows] == [expected[int(row[1])] for row in rows]
    assert sum(float(row[4]) for row in rows) == pytest.approx(1.0, abs=1e-6)


def test_command_tokens_and_label_words_are_protected(world):
    args = TokenizerArgs(tokenizer_path=str(world / "vocab.txt"))
    tokenizer = build_tokenizer(args, BlockLMArgs())
    found = protected_ids(tokenizer)
    assert {command.Id for command in tokenizer.commands.values()} <= found
    for word in ("yes", "no"):  # of the vocabulary's words those that some task answers with
        assert tokenizer.token_id(word) in found
        assert {f" {word.capitalize()}", f" {word}"} <= set(label_words())
    assert tokenizer.token_id("house") not in found


def refused(capsys, argv):
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_bad_input_is_one_line(world, tmp_path, capsys):
    there = tmp_path / "there.txt"
    there.write_text("old")
    told = refused(capsys, flags(world, "--output", str(there)))
    assert told == f"--output={there}: exists; give another, or --overwrite\n"
    assert there.read_text() == "old"
    assert "is a folder" in refused(capsys, flags(world, "--output", str(tmp_path)))
    told = refused(capsys, ["--train-data", "nowhere", "--output", str(tmp_path / "x.txt")])
    assert "--train-data=nowhere: neither a corpus of corpora.json" in told
    argv = ["--train-data", "demo", "--tokenizer-path", str(tmp_path / "none.txt")]
    assert "none.txt: no such vocabulary file" in refused(capsys, argv)
    main(flags(world, "--output", str(there), "--overwrite"))
    assert there.read_text().startswith("origin_no\t")
