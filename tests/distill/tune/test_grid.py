"""Choices: grids, random ones, and what cannot be chosen."""

import math

import pytest

from config import ConfigError
from distill.tune.grid import assignments, samples, setting_problems, settings
from distill.tune.sweep_file import Choice
from tests.distill.tune.sweeps import sweep

TWO = ("flags: {warmup: 0.2}", "flags: {warmup: {values: [0, 0.1]}, lr: {values: [1e-3, 1e-4, 1]}}")
RANGE = ("flags: {warmup: 0.2}", "flags: {lr: {low: 1e-5, high: 1e-3, log: true}}")
RANDOM = ("    baseline: plain", "    sampler: {name: random, trials: 50, seed: 3}")


def test_a_grid_is_the_product_of_its_values(tmp_path):
    spec = sweep(tmp_path, TWO)
    rows = assignments(spec, spec.methods["kd"])
    assert [tuple(row.values()) for row in rows] == [
        *(("0", "1e-3"), ("0", "1e-4"), ("0", "1")),
        *(("0.1", "1e-3"), ("0.1", "1e-4"), ("0.1", "1")),
    ]
    assert set(rows[0]) == {"two.warmup", "two.lr"}
    assert assignments(spec, spec.methods["plain"]) == [{}]


def test_random_choices_are_the_same_for_the_same_file(tmp_path):
    spec = sweep(tmp_path, RANGE, (RANDOM[0].strip(), RANDOM[1].strip()))
    rows = assignments(spec, spec.methods["kd"])
    assert rows == assignments(spec, spec.methods["kd"])
    rates = [math.log10(float(row["two.lr"])) for row in rows]
    assert len(rates) == 50
    assert -5 <= min(rates) < -4.8 < -3.2 < max(rates) <= -3
    assert sum(rate < -4 for rate in rates) == pytest.approx(25, abs=10)


def test_tpe_knows_nothing_beforehand(tmp_path):
    spec = sweep(tmp_path, RANGE, ("baseline: plain", "sampler: {name: tpe}"))
    with pytest.raises(ConfigError, match="beforehand"):
        assignments(spec, spec.methods["kd"])


def test_what_cannot_be_chosen_is_told(tmp_path):
    spec = sweep(
        tmp_path,
        RANGE,
        ("epochs: 1}", "epochs: {values: [1, 2]}}"),
        ("  plain:\n", "  plain:\n    params: {w: {values: [1]}}\n"),
        ("{name: two, start: one}", "{name: two, start: one, flags: {lr: $x}}"),
    )
    found = [line.removeprefix(f"{spec.path}:") for line in setting_problems(spec)]
    assert [line.split(": ", 1)[1] for line in found] == [
        "--lr: plain has no params: x",
        "params: w: no stage has $w",
        "two.lr: a grid needs values; a range needs sampler random or tpe",
        "--epochs: only stages of methods have choices",
    ]


def test_samples_have_every_value_once():
    choices = {"a": Choice(1, ("x", "y", "z")), "b": Choice(1, (), 1, 8, integer=True)}
    assert samples(choices) == [
        {"a": "x", "b": "1"},
        {"a": "y", "b": "1"},
        {"a": "z", "b": "1"},
        {"a": "x", "b": "8"},
    ]
    assert samples({}) == [{}]


def test_settings_are_named_by_stage_and_flag(tmp_path):
    assert list(settings(sweep(tmp_path, TWO).methods["kd"])) == ["two.warmup", "two.lr"]
