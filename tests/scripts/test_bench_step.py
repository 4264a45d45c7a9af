"""The benchmark compares two computations of the same thing."""

import pytest
import torch

from distill.engine.launch import Runtime
from scripts.bench_step import KINDS, Hand, Ours, build_parser, load

SMALL = "--layers 1 --teacher-layers 2 --hidden 16 --heads 2 --batch 4 --length 32 --vocabulary 600 --steps 2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.mark.parametrize("kind", KINDS)
def test_both_sides_compute_the_same_losses_step_after_step(kind, folder):
    options = build_parser().parse_args([*SMALL.split(), "--dropout=0"])
    run, batches = load(options, kind, folder)
    cpu = torch.device("cpu")
    ours, hand = Ours(run, Runtime(cpu)), Hand(run, kind, cpu)
    hand.student.load_state_dict(ours.engine.module.state_dict())
    if ours.teacher is not None:
        hand.teacher.load_state_dict(ours.teacher.state_dict())
    before = ours.loss(batches[0])
    assert before == pytest.approx(hand.loss(batches[0]), rel=1e-3)
    for batch in batches * 3:
        ours.step(batch)
        hand.step(batch)
    expected, actual = hand.loss(batches[0]), ours.loss(batches[0])
    assert actual == pytest.approx(expected, rel=1e-4)
    assert actual < before
