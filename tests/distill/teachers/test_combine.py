"""Combining the losses of several teachers."""

import torch

from distill.teachers.combine import average


def test_one_teacher_is_its_own_average():
    loss = torch.tensor(3.0)
    assert average([loss]) is loss


def test_the_average_is_elementwise():
    losses = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 8.0])]
    assert average(losses).tolist() == [2.0, 5.0]
