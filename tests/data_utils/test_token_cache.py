"""The token cache: what it holds, its key, restarts, and what a dying builder leaves."""

import json
import logging
import multiprocessing
import os
import pickle
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from data_utils import token_cache
from data_utils.corpora import Corpus, clean_text, find_corpus
from data_utils.documents import Documents
from data_utils.token_cache import cache_key, load_documents
from data_utils.tokenization import BertWordPieceTokenizer, Tokenizer
from tests.data_utils.samples import jsonl, sentence, small_tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return small_tokenizer(tmp_path)


def test_documents_are_what_the_tokenizer_makes_of_them(tmp_path: Path, tokenizer: Tokenizer):
    rows = [sentence(i, words=1 + i % 7) for i in range(50)] + ["\u201cThe cat\u201d"]
    corpus = find_corpus(str(jsonl(tmp_path / "a.jsonl", rows)))
    documents = load_documents([corpus], tokenizer, str(tmp_path / "cache"))
    expected = [tokenizer.encode(clean_text(row)) for row in rows if row]
    assert [d.tolist() for d in documents] == expected
    assert documents.lengths().tolist() == [len(e) for e in expected]
    assert documents.num_tokens == sum(map(len, expected))
    again = pickle.loads(pickle.dumps(documents))
    assert [d.tolist() for d in again] == expected
    assert documents[3].dtype == np.uint16


def test_many_chunks_processes_and_corpora(tmp_path: Path, tokenizer: Tokenizer, monkeypatch):
    rows = [sentence(i, words=i % 20) for i in range(400)]
    one = find_corpus(str(jsonl(tmp_path / "a.jsonl", rows)))
    two = find_corpus(str(jsonl(tmp_path / "b.jsonl", rows[:7])))
    expected = [tokenizer.encode(row) for row in rows + rows[:7]]
    monkeypatch.setattr(token_cache, "CHUNK", 1000)
    monkeypatch.setattr(token_cache, "SHARD", 3000)
    for small in (token_cache.SMALL, 0):  # in this process; in a pool of two
        monkeypatch.setattr(token_cache, "SMALL", small)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
        documents = load_documents([one, two], tokenizer, str(tmp_path / f"cache{small}"))
        assert [d.tolist() for d in documents] == expected
        assert len(documents._corpora[0]._values) > 5


def test_hugging_face_datasets_opens_the_cache(tmp_path: Path, tokenizer: Tokenizer):
    from datasets import Dataset

    corpus = find_corpus(str(jsonl(tmp_path / "a.jsonl", ["the cat", "a dog"])))
    documents = load_documents([corpus], tokenizer, str(tmp_path / "cache"))
    dataset = Dataset.from_file(str(documents.caches[0] / "00000.arrow"))
    assert dataset["tokens"][:] == [d.tolist() for d in documents]


def test_the_cache_is_used_and_keyed(tmp_path: Path, tokenizer: Tokenizer, caplog):
    caplog.set_level(logging.INFO)
    cache = tmp_path / "cache"
    file = jsonl(tmp_path / "a.jsonl", ["the cat", "a dog"])
    corpus = find_corpus(str(file))

    def builds(corpus: Corpus, tokenizer: Tokenizer) -> int:
        caplog.clear()
        load_documents([corpus], tokenizer, str(cache))
        return sum(" documents, " in r.getMessage() for r in caplog.records)

    assert builds(corpus, tokenizer) == 1
    assert builds(corpus, tokenizer) == 0
    moved = file.rename(tmp_path / "b.jsonl")
    corpus = find_corpus(str(moved))
    assert builds(corpus, tokenizer) == 0  # the content counts
    assert builds(corpus, BertWordPieceTokenizer(tmp_path, task_mask=True)) == 1
    keys = {
        cache_key(Corpus("x", (moved,), *more), tokenizer)
        for more in ((), ("body",), ("text", "lines"))
    }
    assert len(keys) == 3
    jsonl(moved, ["the cat", "a cat"])
    assert builds(corpus, tokenizer) == 1
    assert sorted(p.suffix for p in cache.iterdir()) == [""] * 3 + [".lock"] * 3
    names = {tuple(sorted(p.name for p in d.iterdir())) for d in cache.iterdir() if d.is_dir()}
    assert names == {("00000.arrow", "ends.npy", "info.json")}


def test_large_files_are_keyed_by_size_time_and_ends(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch
):
    monkeypatch.setattr(token_cache, "MIB", 8)
    file = tmp_path / "a.txt"

    def key(content: str, time: int) -> str:
        file.write_text(content)
        os.utime(file, ns=(time, time))
        return cache_key(Corpus("x", (file,)), tokenizer)

    text = "x" * 1000
    keys = [
        key(text, 1),
        key(text, 2),
        key("y" + text[1:], 1),
        key(text[1:] + "y", 1),
        key(text + "x", 1),
    ]
    assert len(set(keys)) == 5
    assert key(text, 1) == keys[0]


@pytest.mark.parametrize("content", ["", "\n \n\n"])
def test_empty_data_is_an_error_and_leaves_nothing(
    tmp_path: Path, tokenizer: Tokenizer, content: str
):
    file = tmp_path / "a.txt"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"^--train-data=.*: no text in .*a.txt"):
        load_documents([find_corpus(str(file))], tokenizer, str(tmp_path / "cache"))
    assert list((tmp_path / "cache").glob("*/info.json")) == []
    assert list((tmp_path / "cache").glob("*/*.tmp")) == []


def test_a_broken_file_leaves_nothing(tmp_path: Path, tokenizer: Tokenizer):
    file = jsonl(tmp_path / "a.jsonl", ["the cat"])
    file.write_text(file.read_text() + "oops\n")
    for small in (0, token_cache.SMALL):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(token_cache, "SMALL", small)
            with pytest.raises(ValueError, match=r"a.jsonl:2"):
                load_documents([find_corpus(str(file))], tokenizer, str(tmp_path / "cache"))
    assert list((tmp_path / "cache").glob("*/info.json")) == []
    assert list((tmp_path / "cache").glob("*/*.tmp")) == []


def _load(path: str, folder: str, barrier, results) -> None:
    tokenizer = BertWordPieceTokenizer(Path(folder))
    barrier.wait()
    documents = load_documents([find_corpus(path)], tokenizer, folder + "/cache")
    results.put((os.getpid(), documents.num_tokens, int(sum(int(d.sum()) for d in documents))))


def test_processes_that_build_at_once_agree(tmp_path: Path, tokenizer: Tokenizer):
    rows = [sentence(i) for i in range(3000)]
    path = jsonl(tmp_path / "a.jsonl", rows)
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    arguments = (str(path), str(tmp_path), barrier, results)
    processes = [context.Process(target=_load, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    expected = [i for row in rows for i in tokenizer.encode(row)]
    assert {values[1:] for values in found} == {(len(expected), sum(expected))}
    assert len(list((tmp_path / "cache").glob("*/*.arrow"))) == 1
    assert list((tmp_path / "cache").glob("**/*.tmp")) == []


def test_without_documents():
    assert len(Documents([])) == 0


def test_prompts_are_part_of_their_documents(tmp_path: Path, tokenizer: Tokenizer):
    file = tmp_path / "a.jsonl"
    rows = [{"prompt": "the cat", "text": "sat on"}, {"prompt": "", "text": "a dog"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = Corpus("x", (file,), format="prompt")
    plain = find_corpus(str(jsonl(tmp_path / "b.jsonl", ["mat"])))
    documents = load_documents([plain, corpus], tokenizer, str(tmp_path / "cache"))
    assert [tokenizer.decode(d.tolist()) for d in documents] == ["mat", "the cat sat on", "a dog"]
    assert [documents.prompt(i) for i in range(3)] == [0, 2, 0]


def test_bad_lines_are_told_each_time(tmp_path: Path, tokenizer: Tokenizer, caplog):
    file = jsonl(tmp_path / "a.jsonl", ["the cat", "a dog"])
    file.write_text(file.read_text() + "oops\n" + '{"text": ""}\n')
    corpus, cache = find_corpus(str(file)), str(tmp_path / "cache")
    for _ in range(2):
        caplog.clear()
        documents = load_documents([corpus], tokenizer, cache, skip_bad_lines=True)
        assert len(documents) == 2
        assert "2 bad lines skipped" in caplog.text
        assert "a.jsonl:3: not JSON" in caplog.text
    with pytest.raises(ValueError, match=r"a.jsonl:3: not JSON.*--skip-bad-lines"):
        load_documents([corpus], tokenizer, cache)


def test_finished_shards_stay(tmp_path: Path, tokenizer: Tokenizer, monkeypatch):
    """A run that dies is gone on with: only the shards that are missing are made."""
    monkeypatch.setattr(token_cache, "SHARD", 2000)
    rows = [sentence(i, words=1 + i % 20) for i in range(300)]
    corpus = find_corpus(str(jsonl(tmp_path / "a.jsonl", rows)))
    made: list[str] = []
    make = token_cache.make_shard

    def dies(task, *others) -> int:
        if len(made) == 4:
            raise KeyboardInterrupt
        made.append(task[0].name)
        return make(task, *others)

    monkeypatch.setattr(token_cache, "make_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        load_documents([corpus], tokenizer, str(tmp_path / "cache"))
    first, made[:] = list(made), []
    monkeypatch.setattr(token_cache, "make_shard", lambda *a: made.append(a[0][0].name) or make(*a))
    documents = load_documents([corpus], tokenizer, str(tmp_path / "cache"))
    assert [d.tolist() for d in documents] == [tokenizer.encode(row) for row in rows]
    assert set(made) & set(first) == set()
    assert len(made) > 4


def _endless_load(path: str, folder: str) -> None:
    token_cache.SHARD = 2000
    make = token_cache.make_shard
    token_cache.make_shard = lambda *a: (make(*a), time.sleep(0.05))[0]
    tokenizer = BertWordPieceTokenizer(Path(folder))
    load_documents([find_corpus(path)], tokenizer, folder + "/cache")


def test_a_killed_builder_leaves_nothing_half_done(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch
):
    rows = [sentence(i, words=1 + i % 20) for i in range(600)]
    path = jsonl(tmp_path / "a.jsonl", rows)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_endless_load, args=(str(path), str(tmp_path)))
    process.start()
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "cache").glob("*/*.arrow"))) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert list((tmp_path / "cache").glob("*/info.json")) == []
    monkeypatch.setattr(token_cache, "SHARD", 2000)
    documents = load_documents([find_corpus(str(path))], tokenizer, str(tmp_path / "cache"))
    assert [d.tolist() for d in documents] == [tokenizer.encode(row) for row in rows]
    assert list((tmp_path / "cache").glob("*/*.tmp")) == []
