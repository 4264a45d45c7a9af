"""Speed and memory of the data path, each figure beside what it is compared with, in one process.

    OMP_NUM_THREADS=1 python -m scripts.bench_data
    OMP_NUM_THREADS=1 python -m scripts.bench_data --text FOLDER_OF_TXT --record RECORD_FOLDER

Times are processor time, but those of the loader part and of the memory part's rate.

tokenise  MB/s of one core: the corpus reader's, beside whole texts and a plain Python WordPiece
loader    tokens/s of one data-loader process, beside the largest model of the quick start
memory    what a process holds after many samples of a small and of a large corpus (--gigabytes)
record    ms an epoch takes for an example of ReCoRD, beside encoding it anew (scripts.slow_encode)
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from config.data import BlockLMArgs, DataArgs, TokenizerArgs
from config.model import ModelArgs
from config.training import EvalArgs, TrainArgs
from data_utils.build import build_pretrain_loaders
from data_utils.build_tokenizer import build_tokenizer
from data_utils.corpora import clean_text, find_corpus, read_documents
from data_utils.tokenization import ASSETS, Tokenizer
from model.build import build_model
from scripts.bench_record import bench_record, write_examples
from scripts.quickstart_plan import FULL
from scripts.slow_wordpiece import SlowWordPiece
from tasks.base import HeadSpec
from tasks.block_lm import BlockLM

MB = 1e6
PARTS = ("tokenise", "loader", "memory", "record")
RECORD_SIZES = ((300, 300, 20), (100, 1500, 10))  # examples, words of a passage, answers
Row = tuple[str, str, str, str]  # what, ours, the other, ratio


def chunks(texts: Sequence[str], size: int) -> list[list[str]]:
    """Texts in lists of about `size` characters, as the corpus reader takes them."""
    found: list[list[str]] = [[]]
    held = 0
    for text in texts:
        found[-1].append(text)
        held += len(text)
        if held >= size:
            found.append([])
            held = 0
    return [chunk for chunk in found if chunk]


def seconds(work: Callable[[], object]) -> float:
    """Processor time of a call: that of one core, also where others use the machine."""
    started = time.process_time()
    work()
    return time.process_time() - started


def bench_tokenise(text: str) -> list[Row]:
    """MB/s of every tokenizer over the same chunks, which the contestants take in turn."""
    texts = [clean_text(t) for t in read_documents(find_corpus(text))]
    parts = chunks(texts, 1 << 21)
    sizes = [sum(len(t.encode()) for t in part) / MB for part in parts]
    slow = SlowWordPiece(ASSETS / "bert-base-uncased-vocab.txt")
    rows: list[Row] = []
    for kind in ("BertWordPieceTokenizer", "GPT2BPETokenizer", "ChineseSPTokenizer"):
        ours = build_tokenizer(TokenizerArgs(tokenizer_type=kind), BlockLMArgs())
        others: list[tuple[str, Callable[[list[str]], object], int]] = [
            ("whole texts", ours.encode_batch, 1)
        ]
        if kind == "BertWordPieceTokenizer":
            others.append(("plain Python", slow.encode_batch, 8))  # of every 8th text: it is slow
        mine, theirs = 0.0, [0.0] * len(others)
        for part in parts:
            mine += seconds(partial(ours.encode_arrays, part))
            for i, (_, work, step) in enumerate(others):
                some = part[::step]
                share = sum(map(len, some)) / sum(map(len, part))
                theirs[i] += seconds(partial(work, some)) / share
        total = sum(sizes)
        for (name, _, _), time_ in zip(others, theirs, strict=True):
            ratio = f"{time_ / mine:.1f} x"
            rows.append(
                (
                    f"tokenise, {kind}",
                    f"{total / mine:.1f} MB/s",
                    f"{name}: {total / time_:.2f} MB/s",
                    ratio,
                )
            )
    return rows


def quick_start_loader(folder: Path, workers: int) -> tuple[object, Tokenizer]:
    """The training loader with the quick start's sizes, and its tokenizer."""
    tokenizer = build_tokenizer(TokenizerArgs(), BlockLMArgs())
    data = DataArgs(
        train_data=("demo",), seq_length=FULL.seq_length, num_workers=workers, cache_dir=str(folder)
    )
    train = TrainArgs(batch_size=FULL.batch)
    args = (data, BlockLMArgs(), train, tokenizer)
    return build_pretrain_loaders(*args, evaluation=EvalArgs()).train, tokenizer


def bench_loader(folder: Path, steps: int) -> list[Row]:
    """Tokens a second of the loader with one process, and of training with all threads."""
    loader, _ = quick_start_loader(folder, workers=1)
    torch.set_num_threads(torch.get_num_threads())
    sizes = ModelArgs(
        num_layers=FULL.teacher_layers,
        hidden_size=FULL.hidden,
        num_attention_heads=FULL.heads,
        max_position_embeddings=FULL.seq_length,
        vocab_size=-(-FULL.vocabulary // 128) * 128,
    )
    task, model = BlockLM(), build_model(sizes, HeadSpec("lm"), seed=0)
    batches = iter(loader)
    for _ in islice(batches, 20):
        pass
    fed, eaten = [], []
    for _ in range(5):  # in turns: the machine is the same for both
        count = 0
        started = time.perf_counter()
        for (batch,) in islice(batches, steps):
            count += int((batch.position_ids[:, 0] > 0).sum())
        fed.append(count / (time.perf_counter() - started))
        batch.tokens.clamp_(max=sizes.vocab_size - 1)
        batch.labels.clamp_(max=sizes.vocab_size - 1)
        for passes in (1, 3):  # the first one warms up
            started = time.perf_counter()
            for _ in range(passes):
                out = model(*task.inputs(batch))
                logits = out[0] if isinstance(out, tuple) else out
                mask = task.row_masks(batch)["targets"]
                (task.hard_loss(logits, batch) * mask).sum().backward()
            tokens = passes * int((batch.position_ids[:, 0] > 0).sum())
        eaten.append(tokens / (time.perf_counter() - started))
    mine, other = statistics.median(fed), statistics.median(eaten)
    what = f"loader, {FULL.batch} x {FULL.seq_length} tokens"
    model_name = f"training {FULL.teacher_layers} x {FULL.hidden}"
    return [
        (
            what,
            f"{mine:.0f} tokens/s",
            f"{model_name}: {other:.0f} tokens/s",
            f"{mine / other:.1f} x",
        )
    ]


def anonymous_memory() -> float:
    """MiB that this process holds and that no file backs."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return float("nan")


def bench_memory(text: str, gigabytes: float, folder: Path) -> list[Row]:
    """Memory after samples of a corpus, and of one of so many GB made of it by repetition."""
    texts = list(read_documents(find_corpus(text)))
    lines = "".join(" ".join(t.split()) + "\n" for t in texts)
    held, made = {}, 0.0
    tokenizer = build_tokenizer(TokenizerArgs(), BlockLMArgs())
    tokenizer.sentence_ends  # noqa: B018 - what every run holds
    start = anonymous_memory()
    for name, size in (("small", len(lines)), ("large", gigabytes * 1e9)):
        file = folder / f"{name}.txt"
        with file.open("w", encoding="utf-8") as out:
            written = 0
            while written < size:
                written += out.write(lines)
        data = DataArgs(
            train_data=(str(file),), num_workers=0, cache_dir=str(folder), split="949,50,1"
        )
        started = time.perf_counter()
        built = build_pretrain_loaders(data, BlockLMArgs(), TrainArgs(batch_size=16), tokenizer)
        made = file.stat().st_size / MB / (time.perf_counter() - started)
        for _ in islice(built.train, 200):
            pass
        held[name] = anonymous_memory() - start
        file.unlink()
    what = f"memory, {gigabytes} GB of text ({made:.1f} MB/s to tokenise and divide)"
    return [
        (
            what,
            f"{held['large']:+.0f} MiB",
            f"{len(lines) / MB:.1f} MB of text: {held['small']:+.0f} MiB",
            "",
        )
    ]


def bench_records(text: str, folder: Path, given: str | None) -> list[Row]:
    """Examples made of running text: as long as a row has room for, and longer; then given ones."""
    words = " ".join(clean_text(t) for t in read_documents(find_corpus(text))).split()
    rows: list[Row] = []
    for sizes in RECORD_SIZES:
        place = folder / "record{}_{}_{}".format(*sizes)
        place.mkdir()
        write_examples(place / "val.jsonl", words, sizes)
        number, length, candidates = sizes
        rows += bench_record(
            str(place), f"ReCoRD-like, {length} words x {candidates} answers", seconds
        )
    if given:
        rows += bench_record(given, f"ReCoRD, {Path(given).name}", seconds)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run the parts and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what")
    parser.add_argument("--text", default="demo", help="corpus: a name or a path")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of text for the memory part")
    parser.add_argument("--record", help="folder of ReCoRD's files, for the record part too")
    parser.add_argument("--steps", type=int, default=100, help="batches a turn of the loader part")
    args = parser.parse_args(argv)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as place:
        if "tokenise" in args.parts:
            rows += bench_tokenise(args.text)
        if "loader" in args.parts:
            rows += bench_loader(Path(place), args.steps)
        if "memory" in args.parts:
            rows += bench_memory(args.text, args.gigabytes, Path(place))
        if "record" in args.parts:
            rows += bench_records(args.text, Path(place), args.record)
    print("| what | here | beside it | |\n| --- | ---: | ---: | ---: |")
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    sys.exit(main())
