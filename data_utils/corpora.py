"""Corpora: names and paths to documents, and documents to a memory-mapped cache of token ids.

Names are those of config/corpora.json, which also says how paths and .txt files are read. A
corpus is tokenised once, by all processors, into an Arrow file (`datasets.Dataset.from_file`
opens it) with one list of ids a document. Its key is the content, the tokenizer and the
settings; it appears by a rename, and processes that need the same one wait for its builder.

Curly quotes and the en dash become ASCII, in corpora as in the text of tasks.
"""

import hashlib
import json
import logging
import multiprocessing
import os
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import config
from config.errors import ConfigError
from data_utils.tokenization import Tokenizer

log = logging.getLogger(__name__)

REGISTRY = Path(config.__file__).parent / "corpora.json"
SUFFIXES = (".txt", ".jsonl", ".parquet")
CACHE_FORMAT = 1  # raise it when the same input gives another cache
MIB = 1 << 20
CHUNK = 2 * MIB  # characters that are tokenised at once
SMALL = 8 * MIB  # bytes that are not worth starting processes for
LINES_A_BLANK = 200  # a .txt file with more blank lines than 1 in so many consists of blocks

_ASCII = {"\u201c": '"', "\u201d": '"', "\u2018": "'", "\u2019": "'", "\u2013": "-"}


def clean_text(text: str) -> str:
    """Curly quotes and the en dash as ASCII."""
    if not text.isascii():
        for character, plain in _ASCII.items():
            text = text.replace(character, plain)
    return text


def is_unicode(text: str) -> bool:
    """False for half a surrogate pair, which JSON can spell ("\\ud83d") and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# ---- what to read


@dataclass(frozen=True)
class Corpus:
    """The files of one --train-data value and how documents lie in them."""

    name: str
    files: tuple[Path, ...]
    text_key: str = "text"
    documents: str | None = None  # lines, blocks; None: decided by the file
    flag: str = "--train-data"  # that named it


def read_registry(path: Path = REGISTRY) -> dict[str, dict[str, Any]]:
    """The named corpora. Raises ValueError naming file and entry if one is malformed."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as e:
        raise ValueError(f"{path}:{e.lineno}: not JSON: {e.msg}") from None
    entries = {name: entry for name, entry in entries.items() if not name.startswith("_")}
    for name, entry in entries.items():
        unknown = set(entry) - {"path", "text_key", "documents", "note"}
        if unknown or "path" not in entry:
            wrong = f"unknown key {', '.join(sorted(unknown))}" if unknown else "no path"
            raise ValueError(f"{path}: {name}: {wrong}; known: path, text_key, documents, note")
        if entry.get("documents") not in (None, "lines", "blocks"):
            raise ValueError(
                f"{path}: {name}: documents is {entry['documents']!r}; lines or blocks"
            )
    return entries


def find_corpus(
    value: str,
    *,
    data_dir: str | None = None,
    text_key: str = "text",
    flag: str = "--train-data",
    registry: Path = REGISTRY,
) -> Corpus:
    """The corpus of a name or path. Raises ConfigError if there is none, or no file in it."""
    entries = read_registry(registry)
    entry = entries.get(value)
    if entry is None:
        paths, folders = [value], [Path()]
        missing = (
            f"neither a corpus of {registry.name} ({', '.join(entries)}) nor a path; "
            "give one of these names, or the path of a .txt, .jsonl or .parquet file or folder"
        )
        entry = {}
    else:
        paths = [entry["path"]] if isinstance(entry["path"], str) else entry["path"]
        folders = [*([Path(data_dir)] if data_dir else []), registry.parent, Path()]
        looked = ", ".join(str(folder.resolve()) for folder in folders)
        missing = f"its path {entry['path']} ({registry}) is in none of {looked}; give --data-dir"
    files: list[Path] = []
    for path in paths:
        found = next((p for f in folders if (p := f / Path(path).expanduser()).exists()), None)
        if found is None:
            raise ConfigError(f"{flag}={value}: {missing}")
        files += _files_below(found)
    if not files:
        raise ConfigError(f"{flag}={value}: holds no {', '.join(SUFFIXES)} file")
    for file in files:
        if file.suffix not in SUFFIXES:
            raise ConfigError(f"{flag}={value}: {file} is none of {', '.join(SUFFIXES)}")
    text_key = entry.get("text_key", text_key)
    return Corpus(value, tuple(files), text_key, entry.get("documents"), flag)


def _files_below(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())


# ---- documents

Document = tuple[str, int]  # text, bytes of the file it took


def read_documents(corpus: Corpus) -> Iterator[Document]:
    """The texts of a corpus, in order, and how many bytes of its files each one took.

    Raises ValueError naming file and line (or column) for what cannot be read.
    """
    for file in corpus.files:
        if file.suffix == ".jsonl":
            yield from _read_jsonl(file, corpus.text_key)
        elif file.suffix == ".parquet":
            yield from _read_parquet(file, corpus.text_key)
        elif (corpus.documents or _text_layout(file)) == "blocks":
            yield from _read_blocks(file)
        else:
            yield from _read_lines(file)


def _read_lines(file: Path) -> Iterator[Document]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8").strip(), len(line)
            except UnicodeDecodeError as e:
                raise ValueError(f"{file}:{number}: not UTF-8: {e.reason}") from None


def _read_blocks(file: Path) -> Iterator[Document]:
    block, size = [], 0
    for line, taken in _read_lines(file):
        size += taken
        if line:
            block.append(line)
        elif block:
            yield "\n".join(block), size
            block, size = [], 0
    yield "\n".join(block), size


def _text_layout(file: Path) -> str:
    with file.open("rb") as head:
        lines = head.read(MIB).strip().splitlines()
    blank = sum(not line.strip() for line in lines)
    return "blocks" if blank * LINES_A_BLANK > len(lines) else "lines"


def _read_jsonl(file: Path, text_key: str) -> Iterator[Document]:
    for number, (line, size) in enumerate(_read_lines(file), start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as e:
            raise ValueError(f"{file}:{number}: not JSON: {e.msg} (column {e.colno})") from None
        text = row.get(text_key) if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise ValueError(f"{file}:{number}: {_no_text(row, text_key)}")
        if not is_unicode(text):
            raise ValueError(f"{file}:{number}: {text_key!r} holds half a surrogate pair (\\ud8..)")
        yield text, size


def _no_text(row: Any, text_key: str) -> str:
    """Why a row of a .jsonl file has no text."""
    if isinstance(row, dict) and text_key in row:
        return f"{text_key!r} (--text-key) is {type(row[text_key]).__name__}, not text"
    has = ", ".join(row) if isinstance(row, dict) else type(row).__name__
    return f"no text under {text_key!r} (--text-key); has {has}"


def _read_parquet(file: Path, text_key: str) -> Iterator[Document]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(file)
    except pa.ArrowInvalid as e:
        raise ValueError(f"{file}: not a parquet file: {e}") from None
    with table:
        names = table.schema_arrow.names
        if text_key not in names:
            raise ValueError(f"{file}: no column {text_key!r} (--text-key); has {', '.join(names)}")
        column = table.schema_arrow.field(text_key).type
        if not (pa.types.is_string(column) or pa.types.is_large_string(column)):
            raise ValueError(f"{file}: column {text_key!r} is {column}, not text")
        size = file.stat().st_size // max(1, table.metadata.num_rows)
        for rows in table.iter_batches(columns=[text_key], batch_size=1024):
            for text in rows.column(0).to_pylist():
                yield text or "", size


# ---- the cache


class Documents(Sequence):
    """Token ids of documents: slices of memory-mapped arrays. Pickles as a list of paths."""

    def __init__(self, caches: Sequence[Path]):
        import pyarrow as pa

        self.caches = tuple(caches)
        self._values, self._starts, lengths = [], [0], []
        for cache in self.caches:
            with pa.memory_map(str(cache)) as source:
                chunks = pa.ipc.open_stream(source).read_all().column("tokens").chunks
            for chunk in chunks:
                self._values.append(chunk.values.to_numpy(zero_copy_only=True))
                self._starts.append(self._starts[-1] + len(self._values[-1]))
                lengths.append(np.diff(chunk.offsets.to_numpy(zero_copy_only=True)))
        self.lengths = np.concatenate([np.empty(0, np.int64), *lengths])  # tokens of each
        self._ends = np.cumsum(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return self._starts[-1]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> np.ndarray:
        """Ids of a document [length]; nothing is copied."""
        end = int(self._ends[number])
        start = end - int(self.lengths[number])
        chunk = bisect_right(self._starts, start) - 1
        first = self._starts[chunk]
        return self._values[chunk][start - first : end - first]

    def __reduce__(self) -> tuple[type, tuple]:
        return Documents, (self.caches,)


def load_documents(
    corpora: Sequence[Corpus], tokenizer: Tokenizer, cache_dir: str | None = None
) -> Documents:
    """The documents of corpora, tokenised now if they are not in the cache.

    May be called by all processes of a run at once. Raises ValueError for a corpus without text.
    """
    from filelock import FileLock

    folder = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    caches = []
    for corpus in corpora:
        cache = folder / f"{cache_key(corpus, tokenizer)}.arrow"
        if not cache.exists():
            log.info("%s: tokenising, or waiting for who does, into %s", corpus.name, cache)
            with FileLock(cache.with_suffix(".lock")):
                if not cache.exists():
                    _build(corpus, tokenizer, cache)
        caches.append(cache)
    return Documents(caches)


def default_cache_dir() -> Path:
    """Where token caches lie without --cache-dir."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "glm-distill" / "corpora"


def cache_key(corpus: Corpus, tokenizer: Tokenizer) -> str:
    """Hash of the content of the files, how they are read, and the tokenizer."""
    reading = [(f.suffix, _content(f)) for f in corpus.files]
    settings = [CACHE_FORMAT, tokenizer.fingerprint, corpus.text_key, corpus.documents, reading]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]


def _content(file: Path) -> str:
    """Hash of a file: all of it up to 64 MiB, else size, time and both ends."""
    stat, state = file.stat(), hashlib.blake2b(digest_size=16)
    with file.open("rb") as content:
        if stat.st_size <= 64 * MIB:
            state.update(content.read())
        else:
            state.update(f"{stat.st_size} {stat.st_mtime_ns}".encode() + content.read(MIB))
            content.seek(-MIB, os.SEEK_END)
            state.update(content.read())
    return state.hexdigest()


def _build(corpus: Corpus, tokenizer: Tokenizer, cache: Path) -> None:
    """Tokenise a corpus into `cache`, which appears whole or not at all."""
    import pyarrow as pa
    from tqdm import tqdm

    kind = pa.uint16() if tokenizer.num_tokens <= 1 << 16 else pa.int32()
    schema = pa.schema({"tokens": pa.list_(kind)})
    total = sum(file.stat().st_size for file in corpus.files)
    temporary = cache.with_suffix(f".{os.getpid()}.tmp")
    documents = tokens = 0
    title = f"tokenising {corpus.name}"
    bar = tqdm(total=total, desc=title, unit="B", unit_scale=True, mininterval=1)
    try:
        with bar, temporary.open("wb") as file:
            with pa.ipc.new_stream(file, schema) as writer:
                for (ids, lengths), size in _tokenise(corpus, tokenizer, total):
                    lengths = lengths[lengths > 0]
                    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
                    lists = pa.ListArray.from_arrays(offsets, pa.array(ids).cast(kind))
                    writer.write_batch(pa.record_batch([lists], schema=schema))
                    documents, tokens = documents + len(lengths), tokens + len(ids)
                    bar.update(size)
            file.flush()
            os.fsync(file.fileno())
        if not tokens:
            names = ", ".join(map(str, corpus.files[:3]))
            raise ValueError(f"{corpus.flag}={corpus.name}: no text in {names}")
        temporary.replace(cache)
    finally:
        temporary.unlink(missing_ok=True)
    log.info("%s: %d documents, %d tokens", corpus.name, documents, tokens)


# ids of all documents of a chunk, the length of each
Encoded = tuple[np.ndarray, np.ndarray]


def _tokenise(corpus: Corpus, tokenizer: Tokenizer, total: int) -> Iterator[tuple[Encoded, int]]:
    """Chunks of a corpus in order, encoded by all processors, and the bytes each one took."""
    chunks = _chunks(read_documents(corpus))
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if total < SMALL or workers == 1:
        yield from ((_encode(texts, tokenizer), size) for texts, size in chunks)
        return
    context = multiprocessing.get_context("fork")  # hands the tokenizer over without pickling
    with ProcessPoolExecutor(workers, context, _set_tokenizer, (tokenizer,)) as pool:
        pending: deque = deque()  # bounded: a corpus need not fit into memory
        for texts, size in chunks:
            pending.append((pool.submit(_encode, texts), size))
            if len(pending) > 2 * workers:
                future, done = pending.popleft()
                yield future.result(), done
        yield from ((future.result(), done) for future, done in pending)


def _chunks(documents: Iterator[Document]) -> Iterator[tuple[list[str], int]]:
    texts, characters, size = [], 0, 0
    for text, taken in documents:
        texts.append(text)
        characters, size = characters + len(text), size + taken
        if characters >= CHUNK:
            yield texts, size
            texts, characters, size = [], 0, 0
    if texts:
        yield texts, size


_worker_tokenizer: Tokenizer | None = None


def _set_tokenizer(tokenizer: Tokenizer) -> None:
    global _worker_tokenizer
    _worker_tokenizer = tokenizer


def _encode(texts: list[str], tokenizer: Tokenizer | None = None) -> Encoded:
    tokenizer = tokenizer or _worker_tokenizer
    assert tokenizer is not None, "the worker has no tokenizer"
    return tokenizer.encode_arrays([clean_text(text) for text in texts])
