"""Corpora: what --train-data names, a name of config/corpora.json or a path, and how to read it.

Curly quotes and the en dash become ASCII, in corpora as in the text of tasks.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import config
from config.errors import ConfigError
from data_utils.bad_lines import BadLines
from data_utils.english import need_detector
from data_utils.formats import FORMATS
from data_utils.reading import SUFFIXES, Reading, cut_file, read_piece
from data_utils.reading import is_unicode as is_unicode

REGISTRY = Path(config.__file__).parent / "corpora.json"
KEYS = ("path", "dataset", "text_key", "documents", "format", "english", "recipe", "note")
STREAM, HUB = "stream:", "hf:"  # values of --train-data that are never stored whole

_ASCII = {"\u201c": '"', "\u201d": '"', "\u2018": "'", "\u2019": "'", "\u2013": "-"}


def clean_text(text: str) -> str:
    """Curly quotes and the en dash as ASCII."""
    if not text.isascii():
        for character, plain in _ASCII.items():
            text = text.replace(character, plain)
    return text


@dataclass(frozen=True)
class Corpus:
    """The files of one --train-data value and how documents lie in them.

    dataset: arguments of Hugging Face's `load_dataset`, for a corpus that is streamed.
    english: only texts in English.
    """

    name: str
    files: tuple[Path, ...] = ()
    text_key: str = "text"
    documents: str | None = None  # lines, blocks; None: decided by the file
    format: str | None = None  # of rows: a key of data_utils.formats.FORMATS
    english: bool = False
    flag: str = "--train-data"  # that named it
    dataset: tuple[tuple[str, Any], ...] | None = None

    @property
    def reading(self) -> Reading:
        """How its files are read."""
        return Reading(self.text_key, self.documents, self.format)


def read_documents(corpus: Corpus) -> Iterator[str]:
    """The texts of a corpus, in order, without prompts.

    Raises ValueError naming file and line (or row) for what cannot be read, ConfigError for a
    corpus that is streamed.
    """
    refuse_stream(corpus)
    for file in corpus.files:
        for piece in cut_file(file, max(1, file.stat().st_size)):
            yield from (text for _, text in read_piece(piece, corpus.reading, BadLines()))


def refuse_stream(corpus: Corpus) -> None:
    """ConfigError for a corpus without files, where files are needed."""
    if corpus.dataset is not None:
        raise ConfigError(
            f"{corpus.flag}={corpus.name}: a corpus that is streamed can only be the one of "
            "--train-data in pretraining; name files here"
        )


def read_registry(path: Path = REGISTRY) -> dict[str, dict[str, Any]]:
    """The named corpora. Raises ValueError naming file and entry if one is malformed."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as e:
        raise ValueError(f"{path}:{e.lineno}: not JSON: {e.msg}") from None
    entries = {name: entry for name, entry in entries.items() if not name.startswith("_")}
    for name, entry in entries.items():
        if wrong := _wrong_entry(entry):
            raise ValueError(f"{path}: {name}: {wrong}")
    return entries


def _wrong_entry(entry: dict[str, Any]) -> str | None:
    if unknown := set(entry) - set(KEYS):
        return f"unknown key {', '.join(sorted(unknown))}; known: {', '.join(KEYS)}"
    if ("path" in entry) == ("dataset" in entry):
        return "no path" if "path" not in entry else "both path and dataset; give one"
    if entry.get("documents") not in (None, "lines", "blocks"):
        return f"documents is {entry['documents']!r}; lines or blocks"
    if entry.get("format") not in (None, *FORMATS):
        return f"format is {entry['format']!r}; known: {', '.join(FORMATS)}"
    return None


def find_corpus(
    value: str,
    *,
    data_dir: str | None = None,
    text_key: str = "text",
    english: bool = False,
    flag: str = "--train-data",
    registry: Path = REGISTRY,
) -> Corpus:
    """The corpus of a name, path, `hf:` or `stream:` value.

    Raises ConfigError if there is none, or no file in it; for a named corpus with its recipe.
    """
    entries = read_registry(registry)
    entry = entries.get(value, {})
    how = {
        "text_key": entry.get("text_key", text_key),
        "documents": entry.get("documents"),
        "format": entry.get("format"),
        "english": english or entry.get("english", False),
        "flag": flag,
    }
    if how["english"]:
        need_detector("--filter-english" if english else f"{flag}={value}")
    if dataset := _dataset(value, entry):
        return Corpus(value, **how, dataset=tuple(dataset.items()))
    if entry:
        paths = [entry["path"]] if isinstance(entry["path"], str) else entry["path"]
        folders = [*([Path(data_dir)] if data_dir else []), registry.parent, Path()]
        looked = ", ".join(str(folder.resolve()) for folder in folders)
        missing = f"its path {entry['path']} ({registry}) is in none of {looked}; give --data-dir"
        if "recipe" in entry:
            missing += ". To make it: " + " ".join(entry["recipe"])
    else:
        paths, folders = [value], [Path()]
        missing = (
            f"neither a corpus of {registry.name} ({', '.join(entries)}) nor a path; "
            "give one of these names, or the path of a .txt, .jsonl or .parquet file or folder"
        )
    files = _find_files(paths, folders, f"{flag}={value}", missing)
    return Corpus(value, tuple(files), **how)


def _dataset(value: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `load_dataset` for a corpus that is streamed; {} for files.

    `hf:allenai/c4,en` is a data set and its configuration, `stream:s3://bucket/*.jsonl` files.
    """
    if "dataset" in entry:
        return dict(entry["dataset"])
    if value.startswith(HUB):
        path, _, name = value.removeprefix(HUB).partition(",")
        return {"path": path, "split": "train"} | ({"name": name} if name else {})
    if value.startswith(STREAM):
        place = value.removeprefix(STREAM)
        kinds = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".txt": "text"}
        kind = next((k for suffix, k in kinds.items() if suffix in Path(place).name), "json")
        return {"path": kind, "data_files": place, "split": "train"}
    return {}


def _find_files(paths: list[str], folders: list[Path], asked: str, missing: str) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        found = next((p for f in folders if (p := f / Path(path).expanduser()).exists()), None)
        if found is None:
            raise ConfigError(f"{asked}: {missing}")
        files += _files_below(found)
    if not files:
        raise ConfigError(f"{asked}: holds no {', '.join(SUFFIXES)} file")
    for file in files:
        if file.suffix not in SUFFIXES:
            raise ConfigError(f"{asked}: {file} is none of {', '.join(SUFFIXES)}")
    return files


def _files_below(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
