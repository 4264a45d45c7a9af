"""Parts: drawing by tokens and weights, tables on the disk, orders of one's own."""

from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest

from config.errors import ConfigError
from data_utils.corpora import find_corpus
from data_utils.documents import Documents
from data_utils.parts import Part, keep_part, read_order, split_documents
from data_utils.token_cache import load_documents
from data_utils.tokenization import Tokenizer
from tests.data_utils.samples import jsonl, small_tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return small_tokenizer(tmp_path)


@pytest.fixture
def documents(tmp_path: Path, tokenizer: Tokenizer) -> Documents:
    """Two corpora: 30 tokens of cat and 10 of mat; 40 tokens of dog."""
    one = jsonl(tmp_path / "a.jsonl", ["cat " * 30, "mat " * 10])
    two = jsonl(tmp_path / "b.jsonl", ["dog " * 20, "dog " * 20])
    corpora = [find_corpus(str(one)), find_corpus(str(two))]
    return load_documents(corpora, tokenizer, str(tmp_path / "cache"))


def shares(part: Part, tokenizer: Tokenizer) -> dict[str, float]:
    rng = Random(0)
    drawn = Counter(tokenizer.decode(part.draw(rng)[0][:1].tolist()) for _ in range(4000))
    return {word: count / 4000 for word, count in drawn.items()}


@pytest.mark.parametrize(
    ("weights", "numbers", "expected"),
    [
        (None, None, {"cat": 30 / 80, "mat": 10 / 80, "dog": 40 / 80}),
        ((1, 1), None, {"cat": 30 / 80, "mat": 10 / 80, "dog": 40 / 80}),
        ((3, 1), None, {"cat": 90 / 160, "mat": 30 / 160, "dog": 40 / 160}),
        ((0, 2), None, {"dog": 1.0}),
        ((2, 1), [1, 2], {"mat": 20 / 40, "dog": 20 / 40}),
    ],
)
def test_weights(documents, tokenizer, weights, numbers, expected):
    part = Part(documents, None if numbers is None else np.array(numbers), weights=weights)
    actual = shares(part, tokenizer)
    assert set(actual) == set(expected)
    for word, share in expected.items():
        assert actual[word] == pytest.approx(share, abs=0.03)


def test_tables_on_the_disk_change_nothing(documents, tokenizer, tmp_path: Path):
    numbers = np.array([0, 2, 3])
    expected = Part(documents, numbers, weights=(2, 1))
    for _ in range(2):
        kept = keep_part(documents, numbers, tmp_path / "parts", (2, 1))
        assert isinstance(kept.ends, np.memmap)
        assert kept.ends.tolist() == expected.ends.tolist() == [30, 50, 70]
        for seed in range(50):
            first, second = (p.draw(Random(seed))[0].tolist() for p in (expected, kept))
            assert first == second
    other = keep_part(documents, np.array([1, 2, 3]), tmp_path / "parts", (2, 1))
    assert other.ends.tolist() == [10, 30, 50]


def test_orders_of_ones_own(tmp_path: Path):
    path = tmp_path / "order.npy"
    np.save(path, np.array([3, 1, 0, 2]))
    parts = split_documents(4, (0.5, 0.25, 0.25), "2,1,1", read_order(str(path), 4))
    assert [part.tolist() for part in parts] == [[1, 3], [0], [2]]
    with pytest.raises(ConfigError, match=r"--load-splits=.*each number of 0 ... 4 once"):
        read_order(str(path), 5)
    path.write_text("no array")
    with pytest.raises(ConfigError, match=r"--load-splits=.*cannot be read as a .npy"):
        read_order(str(path), 4)
    with pytest.raises(ConfigError, match=r"cannot be read"):
        read_order(str(tmp_path / "none.npy"), 4)
