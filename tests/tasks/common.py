"""What the tests of the tasks share: the shipped tokenizers and small task folders."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from config.data import BlockLMArgs, TokenizerArgs
from data_utils import build_tokenizer
from data_utils.tokenization import Tokenizer
from tasks import TASKS, task_name
from tasks.superglue.options import Options
from tasks.superglue.task import SuperGlueTask, make_task

SST2 = [
    {"sentence": "A joy from start to end.", "label": 1, "idx": 7},
    {"sentence": "It drags, and then it drags on and on.", "label": 0, "idx": 3},
    {"sentence": "Fine.", "label": 1, "idx": 9},
]
COPA = [
    {
        "premise": "My body cast a shadow over the grass.",
        "choice1": "The sun was rising.",
        "choice2": "The grass was cut.",
        "question": "cause",
        "label": 0,
        "idx": 0,
    },
    {
        "premise": "The cup fell.",
        "choice1": "It broke into many small pieces on the hard kitchen floor.",
        "choice2": "It sang.",
        "question": "effect",
        "label": 0,
        "idx": 1,
    },
]


@cache
def bert() -> Tokenizer:
    """bert-base-uncased with GLM's command tokens."""
    return build_tokenizer(TokenizerArgs(), BlockLMArgs(block_lm=True))


@cache
def gpt2() -> Tokenizer:
    """Byte-level BPE."""
    return build_tokenizer(
        TokenizerArgs(tokenizer_type="GPT2BPETokenizer"), BlockLMArgs(block_lm=True)
    )


def write_lines(path: Path, lines: list[Any]) -> None:
    """A .jsonl file; strings are written as they are."""
    text = "".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines)
    path.write_text(text, encoding="utf-8")


def task_of(
    name: str,
    folder: Path,
    *,
    pattern_id: int = 0,
    tokenizer: Tokenizer | None = None,
    **options: Any,
) -> SuperGlueTask:
    """A task that reads `folder`."""
    known = task_name(name)
    options = {"seq_length": 64, "data_dir": str(folder)} | options
    return make_task(TASKS[known], known, pattern_id, tokenizer or bert(), Options(**options))


def row_ids(batch: Any, *row: int) -> list[int]:
    """Token ids of one row up to the end of its answer (cloze) or context."""
    scored = batch.logit_mask[row].nonzero()
    end = int(scored[-1]) + 1 if len(scored) else int(batch.attention_mask[row])
    return batch.tokens[row][:end].tolist()
