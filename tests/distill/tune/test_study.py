"""Optuna's part: proposals, trials that are told once, the median rule against its definition."""

import multiprocessing
import statistics
from multiprocessing.synchronize import Barrier

import pytest

from distill.tune.store import DONE, PRUNED, Row, Store
from distill.tune.study import Studies, lags
from distill.tune.sweep_file import Choice
from distill.tune.trial_store import Trial

CHOICES = {"lr": Choice(1, (), 1e-5, 1e-1, log=True), "n": Choice(1, (), 1, 4, integer=True)}
CHOICES["kind"] = Choice(1, ("x", "y"))


@pytest.fixture
def studies(tmp_path) -> Studies:
    return Studies(f"sqlite:///{tmp_path}/study.db", "s", "accuracy", seed=1)


def test_known_trials_are_told_once(studies):
    trial = Trial("kd", "a", 0, {"lr": "0.001", "n": "2", "kind": "y"}, DONE, None, 0.0, 71.5)
    studies.tell(trial, CHOICES, [1, 2])
    studies.tell(trial, CHOICES, [1, 2])
    (found,) = studies.study("kd", "a").trials
    assert (found.value, found.params) == (71.5, {"lr": 0.001, "n": 2, "kind": "y"})
    assert studies.study("kd", "a").direction.name == "MAXIMIZE"
    assert studies.study("kd", "b").trials == []


def test_proposals_lie_in_their_ranges_and_are_answered(studies):
    for place in range(3):
        number, settings = studies.ask("kd", "a", CHOICES)
        assert 1e-5 <= float(settings["lr"]) <= 1e-1
        assert settings["n"] in "1234"
        assert settings["kind"] in "xy"
        state = PRUNED if place == 2 else DONE
        trial = Trial("kd", "a", place, settings, state, number, 0.0, float(place))
        studies.tell(trial, CHOICES, [1])
    states = [trial.state.name for trial in studies.study("kd", "a").trials]
    assert states == ["COMPLETE", "COMPLETE", "PRUNED"]


def test_losses_are_minimised(tmp_path):
    studies = Studies(f"sqlite:///{tmp_path}/study.db", "s", "loss")
    assert studies.study("kd", "a").direction.name == "MINIMIZE"


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize(
    ("curve", "startup", "warmup"),
    [
        ([1.0], 3, 0),
        ([2.5], 3, 0),
        ([1.0], 4, 0),
        ([1.0], 3, 1),
        ([1.0, 1.5], 3, 1),
        ([4.0, 1.0], 3, 0),
    ],
)
def test_the_median_rule(curve, startup, warmup, lower):
    others = [[1.0, 5.0], [2.0, 1.0], [3.0, 2.0]]
    best = min if lower else max
    step = len(curve) - 1
    median = statistics.median(other[step] for other in others)
    worse = best(curve) > median if lower else best(curve) < median
    expected = worse and len(others) >= startup and step >= warmup
    actual = lags(curve, others, lower_is_better=lower, startup=startup, warmup=warmup)
    assert actual == expected


def use(url: str, name: str, together: Barrier) -> None:
    Store(url, name).close()  # imports what is slow to import
    together.wait(60)
    studies = Studies(url, "s", "accuracy")
    store = Store(url.replace("first", "second"), name)
    store.add([Row("k", "n", "m", "t", "s", 1)])
    trial = Trial("kd", "a", int(name), {}, DONE, None, 0.0, 1.0)
    studies.tell(trial, {}, [1])


@pytest.mark.slow
def test_processes_that_begin_together_make_the_tables_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(3)
    url = f"sqlite:///{tmp_path}/first.db"
    users = [context.Process(target=use, args=(url, str(n), together)) for n in range(3)]
    for user in users:
        user.start()
    for user in users:
        user.join(120)
    assert [user.exitcode for user in users] == [0, 0, 0]
    assert len(Studies(url, "s", "accuracy").study("kd", "a").trials) == 3
