"""The token cache: corpora are tokenised once, in shards, by all processors.

A corpus becomes a folder whose name is the hash of its content, the tokenizer and the settings.
Each shard appears whole, by a rename, and stays if the run dies: the next one makes only those
that are missing. The index comes last; without it the folder is not read. Processes that need the
same corpus wait for its builder.
"""

import hashlib
import json
import logging
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from data_utils.bad_lines import BadLines
from data_utils.corpora import Corpus, clean_text, refuse_stream
from data_utils.documents import ENDS, INFO, PROMPTS, Documents
from data_utils.english import is_english
from data_utils.formats import Text
from data_utils.parts import save_array
from data_utils.reading import MIB, Piece, cut_file, read_piece
from data_utils.tokenization import Tokenizer

log = logging.getLogger(__name__)

CACHE_FORMAT = 2  # raise it when the same input gives another cache
CHUNK = 2 * MIB  # characters that are tokenised at once
SMALL = 8 * MIB  # bytes that are not worth starting processes for
SHARD = 16 * MIB  # bytes of text in a shard, but for corpora of more than MOST_SHARDS
MOST_SHARDS = 4096

Stats = dict[str, Any]  # of a shard: documents, tokens, bad, shown


def load_documents(
    corpora: Sequence[Corpus],
    tokenizer: Tokenizer,
    cache_dir: str | None = None,
    *,
    skip_bad_lines: bool = False,
) -> Documents:
    """The documents of corpora, tokenised now if they are not in the cache.

    May be called by all processes of a run at once. Raises ValueError for a corpus without text,
    and for a line that cannot be used, unless these are skipped (and then told).
    """
    from filelock import FileLock

    base = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
    base.mkdir(parents=True, exist_ok=True)
    caches = []
    for corpus in corpora:
        refuse_stream(corpus)
        folder = base / cache_key(corpus, tokenizer)
        if not (folder / INFO).exists():
            log.info("%s: tokenising, or waiting for who does, into %s", corpus.name, folder)
            with FileLock(folder.with_suffix(".lock")):
                if not (folder / INFO).exists():
                    _build(corpus, tokenizer, folder, BadLines(skip_bad_lines))
        _tell_bad_lines(corpus, folder, skip_bad_lines)
        caches.append(folder)
    return Documents(caches)


def default_cache_dir() -> Path:
    """Where token caches lie without --cache-dir."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "glm-distill" / "corpora"


def cache_key(corpus: Corpus, tokenizer: Tokenizer) -> str:
    """Hash of the content of the files, how they are read, and the tokenizer."""
    files = [(f.suffix, _content(f)) for f in corpus.files]
    how = [corpus.text_key, corpus.documents, corpus.format, corpus.english]
    settings = [CACHE_FORMAT, SHARD, tokenizer.fingerprint, how, files]
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


def _tell_bad_lines(corpus: Corpus, folder: Path, skip: bool) -> None:
    """Of a corpus that was made with --skip-bad-lines: they are told each time, or an error."""
    info = json.loads((folder / INFO).read_text(encoding="utf-8"))
    bad = BadLines(skip)
    if info["bad"] and not skip:
        bad(ValueError(info["shown"][0]))
    bad.number, bad.shown = info["bad"], info["shown"]
    bad.report(f"{corpus.flag}={corpus.name}")


# ---- building


def _build(corpus: Corpus, tokenizer: Tokenizer, folder: Path, bad: BadLines) -> None:
    """Tokenise a corpus into `folder`: the shards that are missing, then the index."""
    from tqdm import tqdm

    total = sum(file.stat().st_size for file in corpus.files)
    size = max(SHARD, -(-total // MOST_SHARDS))
    pieces = [piece for file in corpus.files for piece in cut_file(file, size)]
    shards = [folder / f"{number:05d}.arrow" for number in range(len(pieces))]
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in folder.glob("*.tmp"):  # of a builder that was killed
        left_over.unlink()
    missing = [
        (shard, piece) for shard, piece in zip(shards, pieces, strict=True) if not shard.exists()
    ]
    done = sum(p.size for p in pieces) - sum(p.size for _, p in missing)
    if done:
        log.info(
            "%s: %d of %d shards are there", corpus.name, len(pieces) - len(missing), len(pieces)
        )
    options = {"unit": "B", "unit_scale": True, "mininterval": 1, "initial": done}
    with tqdm(desc=f"tokenising {corpus.name}", total=total, **options) as bar:
        for took in _make_all(missing, corpus, tokenizer, bad.skip):
            bar.update(took)
    _write_index(corpus, folder, shards, bad)


Task = tuple[Path, Piece]


def _make_all(
    tasks: Sequence[Task], corpus: Corpus, tokenizer: Tokenizer, skip: bool
) -> Iterator[int]:
    """Make shards, by all processors; yields the bytes of each that is done."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if sum(piece.size for _, piece in tasks) < SMALL or workers == 1:
        for task in tasks:
            yield make_shard(task, corpus, tokenizer, skip)
        return
    if corpus.english:
        is_english("Its model is loaded once, for all processes.")
    context = multiprocessing.get_context("fork")  # hands the tokenizer over without pickling
    arguments = (corpus, tokenizer, skip)
    with ProcessPoolExecutor(min(workers, len(tasks)), context, _set_job, arguments) as pool:
        waiting, running = iter(tasks), set[Future[int]]()
        try:
            while True:
                more = islice(waiting, 2 * workers - len(running))
                running |= {pool.submit(_make_shard_of_job, task) for task in more}
                if not running:
                    return
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
        finally:
            for future in running:
                future.cancel()


_job: tuple[Corpus, Tokenizer, bool] | None = None


def _set_job(corpus: Corpus, tokenizer: Tokenizer, skip: bool) -> None:
    global _job
    _job = corpus, tokenizer, skip


def _make_shard_of_job(task: Task) -> int:
    assert _job is not None, "the worker has no job"
    return make_shard(task, *_job)


def make_shard(task: Task, corpus: Corpus, tokenizer: Tokenizer, skip: bool) -> int:
    """Tokenise a piece into a shard; the bytes it took. The shard appears whole or not at all."""
    import pyarrow as pa

    shard, piece = task
    bad = BadLines(skip)
    kind = pa.uint16() if tokenizer.num_tokens <= 1 << 16 else pa.int32()
    texts = read_piece(piece, corpus.reading, bad)
    if corpus.english:
        texts = (text for text in texts if is_english(text[1]))
    # One batch after another lies in memory: what a shard holds, 2 or 4 bytes a token.
    batches = [_encode(chunk, tokenizer, kind) for chunk in _chunks(texts)]
    count = {
        "documents": sum(len(batch) for batch in batches),
        "tokens": sum(len(batch.column(0).values) for batch in batches),
        "bad": bad.number,
        "shown": bad.shown,
    }
    schema = pa.schema({"tokens": pa.list_(kind), "prompt": pa.int32()})
    schema = schema.with_metadata({"stats": json.dumps(count)})
    temporary = shard.with_suffix(f".{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            with pa.ipc.new_stream(file, schema) as writer:
                for batch in batches:
                    writer.write_batch(batch.replace_schema_metadata(schema.metadata))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(shard)
    finally:
        temporary.unlink(missing_ok=True)
    return piece.size


def _chunks(texts: Iterable[Text]) -> Iterator[list[Text]]:
    chunk, characters = [], 0
    for text in texts:
        chunk.append(text)
        characters += len(text[0]) + len(text[1])
        if characters >= CHUNK:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _encode(chunk: Sequence[Text], tokenizer: Tokenizer, kind: Any) -> Any:
    """A record batch: the ids of each document, and how many of them are its prompt."""
    import pyarrow as pa

    texts = [clean_text(text) for pair in chunk for text in pair]
    if any(prompt for prompt, _ in chunk):
        ids, lengths = tokenizer.encode_arrays(texts)
        prompts, lengths = lengths[::2], lengths.reshape(-1, 2).sum(1)
    else:
        ids, lengths = tokenizer.encode_arrays(texts[1::2])
        prompts = np.zeros(len(lengths), dtype=np.int64)
    own = lengths > 0
    offsets = np.concatenate([[0], np.cumsum(lengths[own])]).astype(np.int32)
    lists = pa.ListArray.from_arrays(offsets, pa.array(ids).cast(kind))
    return pa.record_batch({"tokens": lists, "prompt": pa.array(prompts[own].astype(np.int32))})


def _write_index(corpus: Corpus, folder: Path, shards: Sequence[Path], bad: BadLines) -> None:
    """Where each document ends, and the sum of what the shards say."""
    import pyarrow as pa

    lengths, prompts, stats = [], [], []
    for shard in shards:
        with pa.memory_map(str(shard)) as source, pa.ipc.open_stream(source) as reader:
            stats.append(json.loads(reader.schema.metadata[b"stats"]))
            for batch in reader:
                lengths.append(np.diff(batch.column(0).offsets.to_numpy()))
                prompts.append(batch.column(1).to_numpy())
    info = {name: sum(s[name] for s in stats) for name in ("documents", "tokens", "bad")}
    info["shown"] = [line for s in stats for line in s["shown"]][: len(bad.shown) or 3]
    info["shards"] = [shard.name for shard in shards]
    if not info["tokens"]:
        names = ", ".join(map(str, corpus.files[:3]))
        raise ValueError(f"{corpus.flag}={corpus.name}: no text in {names}")
    save_array(folder / ENDS, np.cumsum(np.concatenate(lengths), dtype=np.int64))
    if any(part.any() for part in prompts):
        save_array(folder / PROMPTS, np.concatenate(prompts))
    temporary = folder / f"{INFO}.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(info), encoding="utf-8")
    temporary.replace(folder / INFO)
    log.info("%s: %d documents, %d tokens", corpus.name, info["documents"], info["tokens"])
