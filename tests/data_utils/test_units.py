"""Pieces of text: rows of ids against lists, and what is asked for once."""

import random

import numpy as np
import pytest

from data_utils import units
from data_utils.units import UnitTable, flatten, gather, merge, split_at


def lists(ids: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    assert len(ids) == lengths.sum()
    ends = np.cumsum(lengths)
    return [ids[end - n : end].tolist() for end, n in zip(ends, lengths, strict=True)]


def rows(number: int, seed: int) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(9) for _ in range(draw.randrange(4))] for _ in range(number)]


def test_lists_as_one_array():
    expected = rows(20, 0)
    assert lists(*flatten(expected)) == expected
    assert lists(*flatten([])) == []


def test_stretches_are_gathered_in_any_order():
    expected = [[5, 6], [], [7], [5, 6], [8, 9, 5, 6, 7]]
    ids = np.array([7, 8, 9, 5, 6, 7])
    starts, lengths = np.array([3, 6, 0, 3, 1]), np.array([2, 0, 1, 2, 5])
    assert lists(gather(ids, starts, lengths), lengths) == expected


def test_an_array_is_split_at_its_separators():
    expected = [[1, 2], [], [3], []]
    assert lists(*split_at(np.array([1, 2, 0, 0, 3, 0, 0]), 0)) == expected


def test_two_groups_are_merged_in_their_order():
    draw = random.Random(1)
    expected = rows(30, 1)
    chosen = np.array([draw.random() < 0.5 for _ in expected])
    some = flatten([row for row, c in zip(expected, chosen, strict=True) if c])
    others = flatten([row for row, c in zip(expected, chosen, strict=True) if not c])
    assert lists(*merge(chosen, some, others)) == expected


@pytest.mark.parametrize("most", [10_000, 3])
def test_a_unit_is_encoded_once_as_long_as_there_is_room(most, monkeypatch):
    monkeypatch.setattr(units, "CACHED_UNITS", most)
    asked = []

    def encode(words):
        asked.extend(words)
        return flatten([[ord(c) for c in word] for word in words])

    table, draw, different = UnitTable(), random.Random(2), []
    for _ in range(5):
        words = ["x" * draw.randrange(6) for _ in range(20)]
        different.append(len(set(words)))
        assert lists(*table.encode(encode, iter(words))) == [[ord(c) for c in w] for w in words]
    assert len(asked) == (6 if most > 6 else sum(different))
    assert lists(*table.encode(encode, [])) == []
