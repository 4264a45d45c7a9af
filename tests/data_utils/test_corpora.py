"""Corpora: finding, reading, caching; every mistake of a file or a name has a clear message."""

import json
import logging
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from config.errors import ConfigError
from data_utils import corpora
from data_utils.corpora import (
    Corpus,
    Documents,
    cache_key,
    clean_text,
    find_corpus,
    load_documents,
    read_documents,
    read_registry,
)
from data_utils.tokenization import BertWordPieceTokenizer, Tokenizer
from tests.data_utils.samples import sentence, small_tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return small_tokenizer(tmp_path)


def texts(path: Path, **options) -> list[str]:
    return [text for text, _ in read_documents(find_corpus(str(path), **options)) if text]


def jsonl(path: Path, rows: list[str], key: str = "text") -> Path:
    path.write_text("".join(json.dumps({key: row}) + "\n" for row in rows), encoding="utf-8")
    return path


def registry(folder: Path, **entries) -> Path:
    path = folder / "corpora.json"
    path.write_text(json.dumps(entries))
    return path


# ---- finding


def test_the_shipped_registry_is_well_formed():
    entries = read_registry()
    assert {"demo", "bert-base", "bert-large"} <= set(entries)
    assert [f.suffix for f in find_corpus("demo").files] == [".txt"] * 4


def test_names_are_found_below_data_dir_beside_the_registry_and_here(tmp_path: Path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "data").mkdir()
    path = registry(tmp_path, mine={"path": "a.txt", "text_key": "k", "documents": "lines"})
    monkeypatch.chdir(tmp_path / "here")
    for folder in ("here", ".", "data"):
        (tmp_path / folder / "a.txt").write_text(folder)
        options = {"data_dir": str(tmp_path / "data")} if folder == "data" else {}
        corpus = find_corpus("mine", registry=path, **options)
        assert [text for text, _ in read_documents(corpus)] == [folder]
        assert (corpus.text_key, corpus.documents) == ("k", "lines")


def test_a_list_of_paths(tmp_path: Path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name)
    path = registry(tmp_path, both={"path": ["b.txt", "a.txt"]})
    corpus = find_corpus("both", registry=path)
    assert [text for text, _ in read_documents(corpus)] == ["b", "a"]


def test_unknown_names_list_the_known_ones(tmp_path: Path):
    path = registry(tmp_path, one={"path": "x.txt"}, two={"path": "y.txt"}, _help="no corpus")
    with pytest.raises(ConfigError, match=r"^--train-data=three: neither .*\(one, two\).*path of"):
        find_corpus("three", registry=path)
    with pytest.raises(ConfigError, match=r"^--valid-data=one: its path x.txt .*give --data-dir"):
        find_corpus("one", registry=path, flag="--valid-data")


def test_malformed_registries(tmp_path: Path):
    with pytest.raises(ValueError, match="corpora.json: a: unknown key pth"):
        read_registry(registry(tmp_path, a={"pth": "x"}))
    with pytest.raises(ValueError, match="a: no path"):
        read_registry(registry(tmp_path, a={}))
    with pytest.raises(ValueError, match="documents is 'words'"):
        read_registry(registry(tmp_path, a={"path": "x", "documents": "words"}))
    (tmp_path / "corpora.json").write_text("{\n oops")
    with pytest.raises(ValueError, match=r"corpora.json:2: not JSON"):
        read_registry(tmp_path / "corpora.json")


def test_a_folder_is_every_file_below_it_in_order(tmp_path: Path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.txt").write_text("two")
    jsonl(tmp_path / "c.jsonl", ["three"])
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "notes.md").write_text("not read")
    assert texts(tmp_path) == ["one", "two", "three"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty: holds no .txt, .jsonl, .parquet"):
        find_corpus(str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match=r"notes.md is none of .txt, .jsonl, .parquet"):
        find_corpus(str(tmp_path / "notes.md"))


# ---- reading


def test_lines_or_blocks(tmp_path: Path):
    file = tmp_path / "a.txt"
    file.write_text("one\ntwo\n\nthree\nfour\n")
    assert texts(file) == ["one\ntwo", "three\nfour"]  # blank lines separate
    file.write_text("".join(f"line {i}\n" for i in range(500)) + "\nlast\n")
    assert len(texts(file)) == 501  # one blank line in 502 does not
    file.write_bytes(b"\xef\xbb\xbfone\r\ntwo  \r\n")
    assert texts(file) == ["one", "two"]
    for layout, expected in (("blocks", ["a\nb", "c"]), ("lines", ["a", "b", "c"])):
        file.write_text("a\nb\n\nc\n")
        corpus = Corpus("x", (file,), documents=layout)
        assert [text for text, _ in read_documents(corpus) if text] == expected


def test_bytes_are_all_counted(tmp_path: Path):
    for content in ("one\ntwo\n", "one\n\ntwo\n\n\n", "one\n\ntwo"):
        file = tmp_path / "a.txt"
        file.write_text(content)
        corpus = find_corpus(str(file))
        assert sum(size for _, size in read_documents(corpus)) == len(content)


def test_jsonl_errors_name_file_and_line(tmp_path: Path):
    file = jsonl(tmp_path / "a.jsonl", ["one", "two"])
    assert texts(file) == ["one", "two"]
    with pytest.raises(ValueError, match=r"a.jsonl:1: no text under 'body' .*has text"):
        texts(file, text_key="body")
    good = file.read_text()
    for bad, message in (
        ('{"text": "x"', r"a.jsonl:4: not JSON"),
        ('{"text": "x \\ud83d y"}', r"a.jsonl:4: 'text' holds half a surrogate pair"),
        ('["text"]', r"a.jsonl:4: no text under 'text'.*list"),
        ('{"text": 3}', r"a.jsonl:4: 'text' \(--text-key\) is int, not text"),
    ):
        file.write_text(good + "\n" + bad + "\n")
        with pytest.raises(ValueError, match=message):
            texts(file)
    file.write_bytes(good.encode() + b'{"text": "\xff"}\n')
    with pytest.raises(ValueError, match=r"a.jsonl:3: not UTF-8"):
        texts(file)


def test_parquet(tmp_path: Path):
    import pyarrow as pa
    from pyarrow import parquet

    file = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": ["one", None, "two"], "n": [1, 2, 3]}), file)
    assert texts(file) == ["one", "two"]
    with pytest.raises(ValueError, match=r"a.parquet: no column 'body' .*has text, n"):
        texts(file, text_key="body")
    with pytest.raises(ValueError, match=r"a.parquet: column 'n' is int64"):
        texts(file, text_key="n")
    file.write_text("no parquet")
    with pytest.raises(ValueError, match="a.parquet: not a parquet file"):
        texts(file)


def test_quotes_become_ascii():
    assert (
        clean_text("\u201cIt\u2019s\u201d \u2013 \u2018ok\u2019 \u00e9") == "\"It's\" - 'ok' \u00e9"
    )


# ---- the cache


def test_documents_are_what_the_tokenizer_makes_of_them(tmp_path: Path, tokenizer: Tokenizer):
    rows = [sentence(i, words=i % 7) for i in range(50)] + ["", "\u201cThe cat\u201d"]
    corpus = find_corpus(str(jsonl(tmp_path / "a.jsonl", rows)))
    documents = load_documents([corpus], tokenizer, str(tmp_path / "cache"))
    expected = [tokenizer.encode(clean_text(row)) for row in rows if row]
    assert [d.tolist() for d in documents] == expected
    assert documents.lengths.tolist() == [len(e) for e in expected]
    assert documents.num_tokens == sum(map(len, expected))
    again = pickle.loads(pickle.dumps(documents))
    assert [d.tolist() for d in again] == expected
    assert documents[3].dtype == np.uint16


def test_many_chunks_processes_and_corpora(tmp_path: Path, tokenizer: Tokenizer, monkeypatch):
    rows = [sentence(i, words=i % 20) for i in range(400)]
    one = find_corpus(str(jsonl(tmp_path / "a.jsonl", rows)))
    two = find_corpus(str(jsonl(tmp_path / "b.jsonl", rows[:7])))
    expected = [tokenizer.encode(row) for row in rows + rows[:7]]
    monkeypatch.setattr(corpora, "CHUNK", 1000)
    for small in (corpora.SMALL, 0):  # in this process; in a pool of two
        monkeypatch.setattr(corpora, "SMALL", small)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
        documents = load_documents([one, two], tokenizer, str(tmp_path / f"cache{small}"))
        assert [d.tolist() for d in documents] == expected
        assert len(documents._values) > 5


def test_hugging_face_datasets_opens_the_cache(tmp_path: Path, tokenizer: Tokenizer):
    from datasets import Dataset

    corpus = find_corpus(str(jsonl(tmp_path / "a.jsonl", ["the cat", "a dog"])))
    documents = load_documents([corpus], tokenizer, str(tmp_path / "cache"))
    dataset = Dataset.from_file(str(documents.caches[0]))
    assert dataset["tokens"][:] == [d.tolist() for d in documents]


def test_the_cache_is_used_and_keyed(tmp_path: Path, tokenizer: Tokenizer, caplog):
    caplog.set_level(logging.INFO)
    cache = tmp_path / "cache"
    file = jsonl(tmp_path / "a.jsonl", ["the cat", "a dog"])
    corpus = find_corpus(str(file))

    def builds(corpus: Corpus, tokenizer: Tokenizer) -> int:
        caplog.clear()
        load_documents([corpus], tokenizer, str(cache))
        return sum("documents" in r.getMessage() for r in caplog.records)

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
    assert sorted(p.suffix for p in cache.iterdir()) == [".arrow"] * 3 + [".lock"] * 3


def test_large_files_are_keyed_by_size_time_and_ends(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch
):
    monkeypatch.setattr(corpora, "MIB", 8)
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
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_broken_file_leaves_nothing(tmp_path: Path, tokenizer: Tokenizer):
    file = jsonl(tmp_path / "a.jsonl", ["the cat"])
    file.write_text(file.read_text() + "oops\n")
    for small in (0, corpora.SMALL):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(corpora, "SMALL", small)
            with pytest.raises(ValueError, match=r"a.jsonl:2"):
                load_documents([find_corpus(str(file))], tokenizer, str(tmp_path / "cache"))
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".lock"]


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
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 1
    assert list((tmp_path / "cache").glob("*.tmp")) == []


def test_without_documents():
    assert len(Documents([])) == 0
