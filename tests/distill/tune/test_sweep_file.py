"""A sweep's file: what it may say, and its problems all at once, with their lines."""

import pytest

from config import ConfigError
from distill.tune.sweep_file import Choice, Reference, read_sweep
from tests.distill.tune.sweeps import FILE, make, sweep


def problems(tmp_path, text: str) -> list[str]:
    file = make(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_sweep(file)
    return [line.removeprefix(f"{file}:") for line in caught.value.problems]


def test_values_are_the_texts_that_were_written(tmp_path):
    flags = sweep(
        tmp_path, ("epochs: 1}", "epochs: 1, lr: 1e-3, adapet: false, train-data: [a, b]}")
    ).programs["finetune"]
    values = {name: flag.value for name, flag in flags.items()}
    assert values == {
        "--cloze-eval": None,
        "--epochs": "1",
        "--lr": "1e-3",
        "--adapet": False,
        "--train-data": ("a", "b"),
    }
    assert {flag.line for flag in flags.values()} == {11}


def test_choices_and_references_are_told_from_values(tmp_path):
    method = sweep(
        tmp_path,
        ("flags: {warmup: 0.2}", "flags: {warmup: $w, lr: {low: 1e-5, high: 1e-3, log: true}}"),
        ("  kd:\n", "  kd:\n    params: {w: {values: [0, 0.1]}}\n"),
    ).methods["kd"]
    assert method.params == {"w": Choice(22, ("0", "0.1"))}
    flags = {name: flag.value for name, flag in method.stages[1].flags.items()}
    assert flags == {"--warmup": Reference("w", 25), "--lr": Choice(25, (), 1e-5, 1e-3, True)}


def test_every_problem_of_the_form_is_told_with_its_line(tmp_path):
    found = problems(
        tmp_path,
        """
        study: x
        seeds: [1, -2, a]
        retries: many
        baseline: none
        sampler: {name: grd}
        taks: {}
        tasks: {a: {save: x, lr: {low: 2, high: 1}, epochs: [[1]]}}
        methods:
          kd:
            stages:
              - {name: a, flag: 1}
              - {name: a, seed: all}
          kd: {}
          empty: {stages: []}
        """,
    )
    assert [line.split(": ")[0] + ": " + line.split(": ")[1] for line in found] == [
        "7: taks",
        "2: a sweep needs out",
        "3: -2",
        "3: a",
        "6: grd",
        "4: many",
        "8: --save",
        "8: a setting has values, or low and high, where low is the smaller",
        "8: must be a single value",
        "14: kd",
        "14: method kd needs stages",
        "15: method empty",
        "5: baseline",
    ]


def test_what_is_no_yaml_is_told_with_its_line(tmp_path):
    assert problems(tmp_path, FILE + "\n    x: [1\n")[0].split(":")[1].strip() == "is no YAML"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_sweep(tmp_path / "none.yaml")


def test_stages_of_one_name_and_wrong_seeds_are_told(tmp_path):
    text = FILE.replace("name: two, start: one}", "name: one, seed: all}")
    found = problems(tmp_path, text)
    assert [line.partition(": ")[2] for line in found] == [
        "seed: all: must be a number, or each",
        "method plain: two stages are named one",
        "method plain: two stages are named one",
    ]


def test_nothing_to_run_is_told(tmp_path):
    assert problems(tmp_path, "") == ["1: is empty; docs/sweeps.md says what a sweep needs"]
    text = "study: x\nout: y\nseeds: []\ntasks: {}\nmethods: {}\n"
    assert problems(tmp_path, text) == [
        f"{line}: {key}: there must be one at least"
        for line, key in ((3, "seeds"), (4, "tasks"), (5, "methods"))
    ]
    found = problems(tmp_path, FILE.replace("[1, 2, 3]", "[1, 2, 1]"))
    assert found == ["4: seeds: 1 is there twice"]
