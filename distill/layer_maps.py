"""Which teacher layer goes with which student layer.

Layers are counted as in `capture.hidden`: 0 is the embedding, L the output of the last block.
"""

import torch

from config import Compat


def uniform(num_student: int, num_teacher: int) -> list[int]:
    """Teacher layers e_1..e_S that go with student layers 1..S; the last two layers go together.

        e_k = min(k c, T - S + k),   c = ceil(T / S)

    Evenly spaced where S divides T. AssertionError unless 1 <= S <= T (see `needs.shallower`).
    Not as in the seed: some of its methods step by floor(T / S), which pairs the student's last
    layer with an earlier one where S does not divide T (see `spaced`).
    """
    assert 1 <= num_student <= num_teacher, (num_student, num_teacher)
    step = -(-num_teacher // num_student)
    return [min(k * step, num_teacher - num_student + k) for k in range(1, num_student + 1)]


def spaced(num_student: int, num_teacher: int, compat: Compat) -> list[int]:
    """`uniform`; under D21 every floor(T / S)-th layer, so the last two may not go together."""
    ends = uniform(num_student, num_teacher)
    if "D21" not in compat:
        return ends
    step = num_teacher // num_student
    return [k * step for k in range(1, num_student + 1)]


def random_layers(number: int, num_teacher: int, generator: torch.Generator) -> list[int]:
    """`number` different layers of 1..num_teacher - 1, in order."""
    drawn = torch.randperm(num_teacher - 1, generator=generator)[:number] + 1
    return sorted(drawn.tolist())
