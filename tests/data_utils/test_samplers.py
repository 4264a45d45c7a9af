"""StepSampler: laws of partition, epochs and resuming."""

from itertools import islice

import numpy as np
import pytest

from data_utils.samplers import StepSampler

# (micro-batch, accumulation, ranks): all make global batches of 8
PARTITIONS = [
    (8, 1, 1),
    (4, 2, 1),
    (2, 4, 1),
    (1, 8, 1),
    (4, 1, 2),
    (2, 2, 2),
    (1, 4, 2),
    (2, 1, 4),
    (1, 1, 8),
]


def steps_of(sampler: StepSampler, number: int) -> list[list[list[int]]]:
    """`number` iterations of one rank: [iteration][accumulation][micro-batch]."""
    batches = iter(sampler)
    return [list(islice(batches, sampler.accumulation)) for _ in range(number)]


def global_batches(
    partition: tuple[int, int, int], number: int, **options
) -> list[list[list[int]]]:
    """[iteration][rank x accumulation] micro-batches of all ranks."""
    micro, accumulation, ranks = partition
    samplers = [
        StepSampler(
            options.get("size"),
            micro,
            accumulation,
            rank,
            ranks,
            options.get("seed", 0),
            **options["more"],
        )
        for rank in range(ranks)
    ]
    return [sum(step, []) for step in zip(*(steps_of(s, number) for s in samplers), strict=True)]


@pytest.mark.parametrize("partition", PARTITIONS)
@pytest.mark.parametrize("size", [None, 8, 21, 24, 3])
def test_any_partition_has_the_same_samples(partition: tuple[int, int, int], size: int | None):
    more = {"shuffle": size is not None}
    expected = global_batches((8, 1, 1), 7, size=size, more=more)
    actual = global_batches(partition, 7, size=size, more=more)
    for step, (a, e) in enumerate(zip(actual, expected, strict=True)):
        real = sorted(i for batch in a for i in batch if i >= 0)
        assert real == sorted(i for batch in e for i in batch if i >= 0), step
        assert len(set(real)) == len(real)
        rows = -(-len(real) // len(a))  # no more than the samples need, the same on all ranks
        assert [len(batch) for batch in a] == [rows] * len(a)
        fillers = [~i for batch in a for i in batch if i < 0]
        assert len(fillers) == rows * len(a) - len(real) < len(a)
        assert set(fillers) <= set(real)
        counts = [sum(i >= 0 for i in batch) for batch in a]
        assert max(counts) - min(counts) <= 1  # spread evenly


def test_an_epoch_holds_every_sample_once():
    sampler = StepSampler(21, 2, 2, 1, 2, seed=5, shuffle=True)
    assert sampler.steps_per_epoch == 3
    for epoch in range(3):
        rows = [i for k in range(3) for i in sampler.global_batch(3 * epoch + k)]
        assert sorted(rows) == list(range(21))
    first = [sampler.global_batch(k) for k in range(3)]
    assert first != [sampler.global_batch(k) for k in range(3, 6)]
    assert first != [
        StepSampler(21, 2, 2, 1, 2, seed=6, shuffle=True).global_batch(k) for k in range(3)
    ]
    assert first == [
        StepSampler(21, 2, 2, 0, 2, seed=5, shuffle=True).global_batch(k) for k in range(3)
    ]


def test_without_shuffling_the_order_is_that_of_the_data():
    assert list(StepSampler(5, 2, epochs=1)) == [[0, 1], [2, 3], [4]]
    assert list(StepSampler(3, 4, 2, epochs=1)) == [[0, 2], [1, ~0]]
    assert list(StepSampler(2, 10**9, epochs=1)) == [[0, 1]]
    expected = np.random.default_rng((3, 0)).permutation(4).reshape(2, 2).tolist()
    assert list(StepSampler(4, 2, seed=3, shuffle=True, epochs=1)) == expected


@pytest.mark.parametrize("size", [None, 10])
def test_resuming_continues(size: int | None):
    for rank in (0, 1):
        args = (size, 2, 2, rank, 2, 7)
        whole = steps_of(StepSampler(*args, shuffle=True), 8)
        for start in (1, 5):
            assert (
                steps_of(StepSampler(*args, shuffle=True, start_iteration=start), 8 - start)
                == whole[start:]
            )


def test_ranks_have_different_samples():
    ranks = [steps_of(StepSampler(None, 3, 2, rank, 2), 4) for rank in (0, 1)]
    seen = [{i for step in steps for batch in step for i in batch} for steps in ranks]
    assert seen[0] & seen[1] == set()
    assert sorted(seen[0] | seen[1]) == list(range(48))


def test_where_it_ends():
    sampler = StepSampler(10, 2, 2, epochs=3, start_iteration=4)
    assert (sampler.steps_per_epoch, sampler.num_iterations, len(sampler)) == (3, 5, 10)
    assert len(list(sampler)) == 10
    assert StepSampler(10, 2, 2, epochs=3, iterations=2).num_iterations == 2
    assert list(StepSampler(None, 2, iterations=2, start_iteration=2)) == []
    endless = StepSampler(None, 2)
    assert endless.num_iterations is None
    assert list(islice(endless, 2)) == [[0, 1], [2, 3]]
    with pytest.raises(AssertionError):
        len(endless)
    with pytest.raises(AssertionError):
        StepSampler(0, 2)
