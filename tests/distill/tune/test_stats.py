"""Ranks and the paired bootstrap against formulas and scipy-free references."""

import numpy as np
import pytest

from distill.tune.stats import (
    RESAMPLES,
    holm,
    paired_bootstrap,
    ranks,
    sample_differences,
    two_way_bootstrap,
)


def test_the_interval_is_that_of_the_normal_distribution_for_many_samples():
    values = np.random.default_rng(5).normal(1.0, 3.0, 400)
    found = paired_bootstrap(values, "samples")
    error = values.std() / np.sqrt(len(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.05)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.05)
    assert found.drawn == "400 samples"


@pytest.mark.parametrize(
    ("shift", "low", "high"), [(0.0, 0.5, 1.0), (1.96, 0.03, 0.07), (6, 0, 1e-3)]
)
def test_p_is_that_of_the_normal_distribution(shift, low, high):
    values = np.random.default_rng(1).normal(size=500)
    values = values - values.mean() + shift * values.std() / np.sqrt(500)
    assert low <= paired_bootstrap(values, "samples").p <= high


def test_equal_methods_do_not_differ():
    found = paired_bootstrap([0.0] * 10, "samples")
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_p_is_never_zero_and_not_told_of_few():
    assert paired_bootstrap([1.0] * 50, "samples").p == 1 / RESAMPLES
    assert paired_bootstrap([1.0, 2.0, 3.0], "seeds").p is None
    with pytest.raises(ValueError, match="no spread"):
        paired_bootstrap([1.0], "seeds")


def test_all_resamples_of_two_values_are_found():
    found = paired_bootstrap([0.0, 2.0], "seeds")
    assert (found.low, found.high) == (0.0, 2.0)


def test_ranks_share_places():
    assert ranks({"a": 3.0, "b": 5.0, "c": 3.0, "d": 1.0}) == {"b": 1, "a": 2.5, "c": 2.5, "d": 4}
    assert ranks({"a": 3.0, "b": 5.0}, lower_is_better=True) == {"a": 1, "b": 2}


def test_differences_are_of_the_same_seed_and_sample():
    method = [{0: True, 1: True, 2: False}, {0: True, 1: False, 2: False}]
    baseline = [{0: False, 1: True, 2: False}, {0: False, 1: True, 2: True}]
    actual = sample_differences(method, baseline)
    assert actual.tolist() == [[100.0, 0.0, 0.0], [100.0, -100.0, -100.0]]
    with pytest.raises(ValueError, match="different samples"):
        sample_differences(method, [{0: True}])


def test_two_ways_add_the_variances_of_seeds_and_samples():
    draw = np.random.default_rng(3)
    seeds, samples = draw.normal(0, 2.0, 40), draw.normal(1, 9.0, 300)
    found = two_way_bootstrap(seeds[:, None] + samples[None])
    error = np.sqrt(seeds.var() / 40 + samples.var() / 300)
    mean = seeds.mean() + samples.mean()
    assert found.mean == pytest.approx(mean)
    assert found.low == pytest.approx(mean - 1.96 * error, abs=0.06)
    assert found.high == pytest.approx(mean + 1.96 * error, abs=0.06)
    assert found.drawn == "300 samples, 40 seeds"
    assert found.seeds == pytest.approx(seeds + samples.mean())


def test_seeds_that_disagree_give_no_small_p():
    # One seed of three is far better, by the samples alone beyond any doubt; two are a bit worse.
    values = np.repeat([[30.0], [-1.0], [-1.0]], 500, axis=1)
    assert paired_bootstrap(values.mean(0), "samples").p == 1 / RESAMPLES
    # Only the bad seeds are drawn in (2/3)^3 of all cases.
    assert two_way_bootstrap(values).p == pytest.approx(2 * (2 / 3) ** 3, abs=0.02)
    one = np.array([[100.0, 0.0, 0.0, -100.0, 100.0, 100.0]])
    assert two_way_bootstrap(one).low == paired_bootstrap(one[0], "samples").low


def test_holm_by_hand():
    assert holm([0.04, 0.01, 0.5, 0.03]) == pytest.approx([0.09, 0.04, 0.5, 0.09])
    assert holm([]) == []
