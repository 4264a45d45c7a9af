"""Encoding ReCoRD's examples, beside what the seed does: part `record` of scripts.bench_data.

Both sides make the arrays of every sample of every epoch. Here an epoch is a pass over the task's
batches, the first one with reading and encoding the file; beside it `scripts.slow_encode`.
"""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from config.data import BlockLMArgs, TokenizerArgs
from data_utils.build_tokenizer import build_tokenizer
from data_utils.tokenization import ASSETS
from scripts.slow_encode import slow_sample
from scripts.slow_wordpiece import SlowWordPiece
from tasks.registry import TASKS
from tasks.superglue.options import Options
from tasks.superglue.task import SuperGlueTask, make_task

SEQ_LENGTH = 512
BATCH = 8  # samples
LATER = 5  # epochs after the first
PLACEHOLDER = "@placeholder"

Row = tuple[str, str, str, str]


def write_examples(file: Path, words: Sequence[str], sizes: tuple[int, int, int]) -> None:
    """ReCoRD's lines of running text. sizes: examples, words of a passage, candidates.

    A passage is the next `words`, its entities are some of them, one stands in the query: the
    ten words that follow it. ValueError if the words are too few.
    """
    number, length, candidates = sizes
    draw, lines = random.Random(0), []
    if number * length > len(words) - 10:
        raise ValueError(f"{len(words)} words are too few for {number} x {length}")
    for k in range(number):
        chosen = words[k * length : (k + 1) * length]
        starts, at = [], 0
        for word in chosen:
            starts.append(at)
            at += len(word) + 1
        places = {word: start for word, start in zip(chosen, starts, strict=True)}
        entities = draw.sample(sorted(places), candidates)
        following = list(words[(k + 1) * length :][:10])
        following[5] = PLACEHOLDER
        lines.append(
            {
                "idx": k,
                "passage": {
                    "text": " ".join(chosen),
                    "entities": [
                        {"start": places[x], "end": places[x] + len(x) - 1} for x in entities
                    ],
                },
                "qas": [
                    {"idx": k, "query": " ".join(following), "answers": [{"text": entities[0]}]}
                ],
            }
        )
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def record_task(folder: str) -> SuperGlueTask:
    """The task over the files of a folder."""
    options = Options(data_dir=folder, cloze=True, seq_length=SEQ_LENGTH)
    tokenizer = build_tokenizer(TokenizerArgs(), BlockLMArgs())
    task = make_task(TASKS["record"], "record", 0, tokenizer, options)
    assert isinstance(task, SuperGlueTask)
    return task


def epoch(task: SuperGlueTask) -> int:
    """Make all batches of the validation examples, as a loader does; how many."""
    dataset = task.dataset("val")
    assert dataset is not None
    numbers = range(len(dataset))
    parts = (numbers[i : i + BATCH] for i in numbers[::BATCH])
    return sum(task.collate([dataset[i] for i in part]).tokens.size(0) > 0 for part in parts)


def bench_record(
    folder: str, name: str, seconds: Callable[[Callable[[], object]], float]
) -> list[Row]:
    """Rows of the validation examples of a folder: one epoch, a later one, and all together."""
    task = record_task(folder)
    examples = task.pvp.read(Path(folder) / "val.jsonl", "val")
    slow = SlowWordPiece(ASSETS / "bert-base-uncased-vocab.txt")
    first = seconds(lambda: epoch(task))
    later = seconds(lambda: [epoch(task) for _ in range(LATER)]) / LATER

    def again() -> None:
        for x in examples:
            slow_sample(task.pvp.cloze_rows(x, True), slow, SEQ_LENGTH)

    other = seconds(again)
    per = 1e3 / len(examples)
    beside = f"plain Python, each epoch: {other * per:.2f} ms"
    whole, theirs = first + LATER * later, (1 + LATER) * other
    return [
        (f"{name}, first epoch", f"{first * per:.3f} ms", beside, f"{other / first:.1f} x"),
        (f"{name}, each later epoch", f"{later * per:.3f} ms", beside, f"{other / later:.0f} x"),
        (
            f"{name}, {1 + LATER} epochs",
            f"{whole * per:.2f} ms",
            f"{theirs * per:.1f} ms",
            f"{theirs / whole:.1f} x",
        ),
    ]
