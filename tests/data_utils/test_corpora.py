"""Finding corpora: names, paths, streams; every mistake has a clear message."""

import json
from pathlib import Path

import pytest

from config.errors import ConfigError
from data_utils.corpora import clean_text, find_corpus, read_documents, read_registry
from data_utils.formats import FORMATS
from tests.data_utils.samples import jsonl


def texts(path: Path, **options) -> list[str]:
    return list(read_documents(find_corpus(str(path), **options)))


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
        assert list(read_documents(corpus)) == [folder]
        assert (corpus.text_key, corpus.documents) == ("k", "lines")


def test_a_list_of_paths(tmp_path: Path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name)
    path = registry(tmp_path, both={"path": ["b.txt", "a.txt"]})
    corpus = find_corpus("both", registry=path)
    assert list(read_documents(corpus)) == ["b", "a"]


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


def test_a_missing_named_corpus_tells_how_to_make_it():
    for name, entry in read_registry().items():
        if name == "demo" or "dataset" in entry:
            continue
        with pytest.raises(ConfigError) as caught:
            find_corpus(name)
        message = str(caught.value)
        assert message.startswith(f"--train-data={name}: its path"), name
        assert "To make it: " + entry["recipe"][0] in message
        assert entry.get("format") in (None, *FORMATS)


def test_corpora_that_are_streamed(tmp_path: Path):
    found = dict(find_corpus("c4").dataset)
    assert found == {"path": "allenai/c4", "name": "en", "split": "train"}
    found = dict(find_corpus("hf:someone/something,part").dataset)
    assert found == {"path": "someone/something", "name": "part", "split": "train"}
    found = dict(find_corpus("stream:s3://bucket/a-*.jsonl.zst").dataset)
    assert found == {"path": "json", "data_files": "s3://bucket/a-*.jsonl.zst", "split": "train"}
    assert dict(find_corpus("stream:x/*.parquet").dataset)["path"] == "parquet"
    with pytest.raises(ValueError, match="both path and dataset"):
        read_registry(registry(tmp_path, a={"path": "x", "dataset": {}}))
    with pytest.raises(ValueError, match="format is 'x'; known: web"):
        read_registry(registry(tmp_path, a={"path": "x", "format": "x"}))


def test_quotes_become_ascii():
    assert (
        clean_text("\u201cIt\u2019s\u201d \u2013 \u2018ok\u2019 \u00e9") == "\"It's\" - 'ok' \u00e9"
    )
