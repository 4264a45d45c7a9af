"""Small folders and tasks."""

import json
from pathlib import Path
from typing import Any

from config.compat import Compat
from config.data import DataArgs
from config.tasks import FinetuneArgs
from config.text import TextArgs
from data_utils.tokenization import Tokenizer
from tasks import build_task
from tasks.seq2seq.task import Seq2SeqTask
from tests.tasks.common import bert


def write_pairs(folder: Path, pairs: list[tuple[str, str]], splits: str = "train val test") -> None:
    """`<split>.source` and `<split>.target` with the same pairs in every split."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in splits.split():
        for ending, texts in zip(("source", "target"), zip(*pairs, strict=True), strict=True):
            text = "".join(line + "\n" for line in texts)
            (folder / f"{split}.{ending}").write_text(text, encoding="utf-8")


def write_squad(path: Path, passages: list[tuple[str, list[tuple[str, list[str]]]]]) -> None:
    """(passage, [(question, answers)]) in SQuAD's format."""
    paragraphs = [
        {
            "context": passage,
            "qas": [
                {
                    "id": f"{p}-{q}",
                    "question": question,
                    "answers": [{"text": a, "answer_start": passage.find(a)} for a in answers],
                }
                for q, (question, answers) in enumerate(asked)
            ],
        }
        for p, (passage, asked) in enumerate(passages)
    ]
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}), encoding="utf-8")


def task_of(
    name: str,
    folder: Path,
    source: int,
    target: int,
    tokenizer: Tokenizer | None = None,
    **text: Any,
) -> Seq2SeqTask:
    """As the command line builds it."""
    group = TextArgs(src_seq_length=source, tgt_seq_length=target, **text)
    data = DataArgs(data_dir=str(folder))
    return build_task(FinetuneArgs(task=name), data, tokenizer or bert(), Compat(), text=group)


def sources(task: Seq2SeqTask, split: str = "train") -> list[str]:
    """The contexts of a split as text."""
    return [task.tokenizer.decode(row.context) for row in task.dataset(split).rows]


def targets(task: Seq2SeqTask, split: str = "train") -> list[list[str]]:
    """The pieces of a split as text."""
    return [[task.tokenizer.decode(p) for p in row.pieces] for row in task.dataset(split).rows]
