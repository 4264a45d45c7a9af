"""StepLoader: lists of batches, the same with and without worker processes."""

import pytest
import torch

from data_utils.loader import StepLoader
from data_utils.samplers import StepSampler
from tests.data_utils.samples import Squares, collate_squares


def load(workers: int, **options) -> list[list[tuple[list[int], list[float]]]]:
    sampler = StepSampler(7, 2, 2, 0, 1, 3, shuffle=True, epochs=2, **options)
    loader = StepLoader(Squares(7), collate_squares, sampler, num_workers=workers)
    assert len(loader) == sampler.num_iterations
    runs = [
        [[(b.sample_ids.tolist(), b.weight.tolist()) for b in step] for step in loader]
        for _ in "ab"
    ]
    assert runs[0] == runs[1]  # every iteration starts anew
    return runs[0]


def test_steps_hold_all_micro_batches_and_fillers_weigh_nothing():
    steps = load(0)
    assert [len(step) for step in steps] == [2, 2, 2, 2]
    for epoch in (steps[:2], steps[2:]):
        rows = [
            row for step in epoch for ids, weights in step for row in zip(ids, weights, strict=True)
        ]
        assert sorted(i for i, weight in rows if weight == 1) == list(range(7))
        assert sum(weight == 0 for _, weight in rows) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers: int):
    assert load(workers) == load(0)
    assert load(workers, start_iteration=1) == load(0)[1:]


def test_the_global_generator_is_not_touched():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    load(0)
    assert torch.equal(torch.get_rng_state(), before)
