"""Random teacher layers: when they are drawn, and that nothing but the clock decides."""

import dataclasses
import logging

import pytest

from distill.context import Clock
from distill.drawn_layers import DrawnLayers, Draws
from distill.layer_maps import uniform
from model.build import HeadSpec, build_model
from tests.distill.runs import toy_run

SIZES = (
    "--student_model=kd",
    "--num-layers=4",
    "--teacher_num_layers=9",
    "--teacher_hidden_size=16",
)


class Drawn(DrawnLayers):
    """Draws every 2 epochs or 10 iterations."""

    every = Draws(True, 2, 10, True)

    def draws(self):
        return self.every


def method_of(*flags: str, program: str = "finetune", **every) -> Drawn:
    run = toy_run(*SIZES, *flags, program=program)
    (teacher,) = run.teachers
    run = dataclasses.replace(run, teachers=(teacher, dataclasses.replace(teacher, num_layers=7)))
    method = Drawn(build_model(run.model, HeadSpec("lm")), run)
    method.every = method.every._replace(**every)
    return method


def drawn(method: Drawn, t_no: int = 0, **clock: int) -> list[int]:
    method.begin_pass(Clock(**clock))
    return method.draw_layers(t_no)


def test_three_different_layers_between_first_and_last_in_order():
    method, seen = method_of(), set()
    for epoch in range(0, 80, 2):
        layers = drawn(method, epoch=epoch)
        assert layers == sorted(set(layers))
        assert len(layers) == 3
        seen |= set(layers)
        assert method.teacher_layers(0) == [*layers, 9]
    assert seen == set(range(1, 9))


def periods(method: Drawn, word: str, last: int, t_no: int = 0) -> list[int]:
    """Where a new draw begins; other numbers of the clock do not matter."""
    draws = [drawn(method, t_no, **{word: i, "repeat": i % 2}) for i in range(last)]
    return [i for i in range(1, last) if draws[i] != draws[i - 1]]


def test_in_fine_tuning_epochs_count():
    method = method_of()
    starts = periods(method, "epoch", 40)
    assert all(start % 2 == 0 for start in starts)
    assert len(starts) > 12  # a draw may repeat by chance
    assert periods(method, "iteration", 40) == []


@pytest.mark.parametrize(("program", "epochs"), [("finetune", 0), ("pretrain", 2)])
def test_without_epochs_iterations_count(program, epochs):
    method = method_of(program=program, epochs=epochs)
    starts = periods(method, "iteration", 200)
    assert all(start % 10 == 0 for start in starts)
    assert len(starts) > 12
    assert periods(method, "epoch", 40) == []


def test_every_teacher_is_drawn_anew():
    method = method_of()
    for t_no in (0, 1):
        assert len(periods(method, "epoch", 40, t_no)) > 12
    assert [drawn(method, 0, epoch=e) for e in range(0, 40, 2)] != [
        drawn(method, 1, epoch=e) for e in range(0, 40, 2)
    ]
    assert all(max(drawn(method, 1, epoch=e)) < 7 for e in range(0, 40, 2))


def test_a_draw_depends_on_seed_and_clock_alone():
    # So a resumed run goes on with it, and all ranks have the same one.
    first, resumed, other = method_of(), method_of(), method_of("--seed=7")
    expected = [drawn(first, epoch=e) for e in range(20)]
    assert [drawn(resumed, epoch=e) for e in range(10, 20)] == expected[10:]
    assert [drawn(other, epoch=e) for e in range(20)] != expected
    assert first.method_state() == {}


def test_without_draws_layers_are_evenly_spaced():
    assert method_of(on=False).teacher_layers(0) == uniform(4, 9)
    assert DrawnLayers.draws(method_of()).on is False


def test_new_draws_are_logged_if_asked_for(caplog):
    method = method_of()
    with caplog.at_level(logging.INFO):
        for epoch in (0, 0, 1):
            method.begin_pass(Clock(epoch=epoch))
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [f"Drawn: layers of teacher {t}: {method.draw_layers(t)}" for t in (0, 1)]
    for every in ({"shown": False}, {"on": False}):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            method_of(**every).begin_pass(Clock())
        assert caplog.records == []
