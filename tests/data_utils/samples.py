"""Small texts, vocabularies and data sets for the tests of the data path."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from data_utils.batch import Batch
from data_utils.tokenization import BertWordPieceTokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["the", "cat", "dog", "sat", "on", "mat", "and", "ran", "."]


def write_vocabulary(folder: Path) -> Path:
    """A vocab.txt that spells every lower-case word; [PAD] is not 0."""
    commands = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*commands, *WORDS, *LETTERS, *("##" + c for c in LETTERS), "?", ";", ","]
    path = folder / "vocab.txt"
    path.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return path


def small_tokenizer(folder: Path) -> BertWordPieceTokenizer:
    """A tokenizer of `write_vocabulary`."""
    return BertWordPieceTokenizer(write_vocabulary(folder))


def sentence(number: int, words: int = 8) -> str:
    """A sentence that names its number."""
    body = [WORDS[(number + i) % 8] for i in range(words)]
    return " ".join([*body, "".join(LETTERS[int(d)] for d in str(number)), "."])


def jsonl(path: Path, rows: list[str], key: str = "text") -> Path:
    """A .jsonl file with these texts."""
    path.write_text("".join(json.dumps({key: row}) + "\n" for row in rows), encoding="utf-8")
    return path


def document(length: int, first: int = 10) -> list[int]:
    """ENC, `length` different words, eos."""
    return [1, *range(first, first + length), 0]


class Squares:
    """A data set whose sample i is (i * i, weight)."""

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[int, float]:
        number = index if index >= 0 else ~index
        return number, float(index >= 0)


def collate_squares(samples: Sequence[tuple[int, float]]) -> Batch:
    """Batch with tokens [b, 1] = i * i."""
    ids = torch.tensor([i for i, _ in samples])
    return Batch(
        tokens=(ids * ids)[:, None],
        position_ids=torch.zeros(len(ids), 2, 1, dtype=torch.long),
        attention_mask=torch.ones_like(ids),
        labels=ids,
        weight=torch.tensor([weight for _, weight in samples]),
        sample_ids=ids,
    )
