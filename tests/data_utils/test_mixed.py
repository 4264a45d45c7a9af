"""Mixture: which micro-batches are of the second stream, and what is in them."""

import math

import torch

from data_utils.block import BlockSample, collate
from data_utils.loader import StepLoader
from data_utils.mixed import SECOND, AlternatingSampler, MixedDataset, MixedSampler, Mixture
from data_utils.samplers import StepSampler


class Numbers:
    """Samples whose only token is their number."""

    def __init__(self, kind="bert"):
        self.kind = kind

    def __getitem__(self, index):
        number = index if index >= 0 else ~index
        return BlockSample(
            [number], [number], [0], [0], 1, [1], self.kind, number, float(index >= 0)
        )


def sampler(rank=0, ranks=1, accumulation=1, ratio=0.4, size=3, start=0, iterations=None):
    steps = StepSampler(
        *(None, 2, accumulation, rank, ranks), start_iteration=start, iterations=iterations
    )
    return MixedSampler(steps, Mixture(ratio, size, {}), seed=5)


def test_about_the_fraction_asked_for_and_never_or_always_at_the_ends():
    def share(ratio):
        mixed = sampler(accumulation=4, ratio=ratio)
        rows = [row for k in range(500) for row in mixed.micro_batches(k)]
        return sum(row[0] >= SECOND for row in rows) / len(rows)

    assert (share(0.0), share(1.0)) == (0.0, 1.0)
    assert abs(share(0.4) - 0.4) < 4 * math.sqrt(0.24 / 2000)


def test_other_micro_batches_stay_what_they_are_and_sizes_are_their_own():
    plain = StepSampler(None, 2, 2)
    mixed = sampler(accumulation=2)
    for iteration in range(50):
        pairs = zip(plain.micro_batches(iteration), mixed.micro_batches(iteration), strict=True)
        for expected, actual in pairs:
            assert actual == expected or (actual[0] >= SECOND and len(actual) == 3)


def test_no_sample_of_the_second_stream_comes_twice():
    rows = [
        index
        for rank in range(2)
        for k in range(200)
        for row in sampler(rank, 2, 3).micro_batches(k)
        for index in row
        if index >= SECOND
    ]
    assert len(rows) > 1000
    assert len(set(rows)) == len(rows)


def test_ranks_and_accumulation_are_places_alike():
    def global_batch(ranks, accumulation, iteration):
        rows = [sampler(r, ranks, accumulation).micro_batches(iteration) for r in range(ranks)]
        return sorted(tuple(row) for rank in rows for row in rank)

    for iteration in range(40):
        whole = global_batch(1, 4, iteration)
        assert global_batch(2, 2, iteration) == global_batch(4, 1, iteration) == whole


def test_a_loader_resumes_in_the_middle_of_it():
    dataset = MixedDataset(Numbers(), Numbers("multi-task"))

    def steps(start):
        mixed = sampler(accumulation=2, start=start, iterations=12)
        return list(StepLoader(dataset, collate, mixed))

    whole, rest = steps(0), steps(7)
    assert [len(step) for step in whole] == [2] * 12
    assert len(rest) == 5
    for expected, actual in zip(whole[7:], rest, strict=True):
        for x, y in zip(expected, actual, strict=True):
            assert torch.equal(x.tokens, y.tokens)
            assert torch.equal(x.kinds, y.kinds)
            assert torch.equal(x.sample_ids, y.sample_ids)
    batches = [batch for step in whole for batch in step]
    assert {len(batch) for batch in batches} == {2, 3}
    assert all((len(b) == 3) == (b.kinds == 3).all() for b in batches)
    ids = [i for batch in batches for i in batch.sample_ids.tolist()]
    assert len(set(ids)) == len(ids)


def test_a_filler_has_no_weight():
    dataset = MixedDataset(Numbers(), Numbers())
    for index in (4, SECOND + 4):
        assert dataset[index].text == dataset[~index].text == [4]
        assert (dataset[index].weight, dataset[~index].weight) == (1.0, 0.0)
        assert dataset[index].index == dataset[~index].index == index


def alternating(rank=0, start=0):
    steps = StepSampler(
        *(10, 2, 2, rank, 2), seed=3, shuffle=True, start_iteration=start, epochs=100
    )
    return AlternatingSampler(steps, 0.75, seed=5)


def test_steps_alternate_as_a_whole_on_all_ranks_over_the_same_samples():
    found, seen = 0, set()
    for iteration in range(300):
        ranks = [alternating(rank).micro_batches(iteration) for rank in range(2)]
        plain = [alternating(rank).sampler.micro_batches(iteration) for rank in range(2)]
        if ranks == plain:
            continue
        found += 1
        for actual, expected in zip(ranks, plain, strict=True):
            for rows, samples in zip(actual, expected, strict=True):
                numbers = [i if i >= 0 else ~i for i in rows]
                assert all(number >= SECOND for number in numbers)
                assert [(n - SECOND) % 10 for n in numbers] == [
                    i if i >= 0 else ~i for i in samples
                ]
                assert [i < 0 for i in rows] == [i < 0 for i in samples]
                assert {(n - SECOND) // 10 for n in numbers} == {iteration // 2}
                real = [i for i in rows if i >= 0]
                assert not seen & set(real)  # another epoch is another corruption
                seen |= set(real)
    assert abs(found / 300 - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 300)


def test_alternating_steps_resume():
    whole = list(alternating())
    assert len(alternating()) == len(whole) == 400
    assert list(alternating(start=120)) == whole[240:]
