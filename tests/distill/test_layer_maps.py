"""Layer maps against their definition."""

import pytest
import torch

from distill.layer_maps import random_layers, uniform


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (6, 12, [2, 4, 6, 8, 10, 12]),
        (5, 12, [3, 6, 9, 11, 12]),
        (18, 24, [2, 4, 6, 8, 10, 12, *range(13, 25)]),
        (1, 4, [4]),
        (4, 4, [1, 2, 3, 4]),
    ],
)
def test_uniform(student, teacher, expected):
    assert uniform(student, teacher) == expected


def test_uniform_is_increasing_and_ends_with_the_last():
    for teacher in range(1, 65):
        for student in range(1, teacher + 1):
            ends = uniform(student, teacher)
            assert len(ends) == student
            assert ends[-1] == teacher
            assert ends[0] >= 1
            assert all(a < b for a, b in zip(ends, ends[1:], strict=False))


def test_a_deeper_student_has_no_map():
    with pytest.raises(AssertionError):
        uniform(5, 4)


def test_random_layers_are_sorted_and_different():
    seen = set()
    for seed in range(50):
        drawn = random_layers(3, 6, torch.Generator().manual_seed(seed))
        assert drawn == sorted(set(drawn))
        assert len(drawn) == 3
        seen |= set(drawn)
    assert seen == {1, 2, 3, 4, 5}
