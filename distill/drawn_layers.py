"""DrawnLayers: a student whose teacher layers may be random, drawn anew every so often.

A draw is a function of seed, method, teacher and period, equal on every rank: nothing is saved,
and a run that resumes goes on with the same layers.
"""

import logging
from typing import NamedTuple

from distill.context import Clock
from distill.layer_maps import random_layers, uniform
from distill.student import GLMStudent

log = logging.getLogger(__name__)


class Draws(NamedTuple):
    """What a method's flags say."""

    on: bool  # random layers, not evenly spaced ones
    epochs: int  # a draw lasts so many; 0, and in pretraining, which has none: iterations count
    iterations: int
    shown: bool  # log each new draw


class DrawnLayers(GLMStudent):
    """Base of methods with random layers. They override `draws`."""

    _shown: tuple[list[int], ...] = ()

    def draws(self) -> Draws:
        """What the method's flags say."""
        return Draws(False, 1, 1, False)

    def teacher_layers(self, t_no: int) -> list[int]:
        """The teacher's layers that go with student layers 1 .. N, the last one with the last."""
        num_teacher = self.args.teachers[t_no].num_layers
        if self.draws().on:
            return [*self.draw_layers(t_no), num_teacher]
        return self.spaced_layers(num_teacher)

    def spaced_layers(self, num_teacher: int) -> list[int]:
        """Without draws: evenly spaced."""
        return uniform(self.args.model.num_layers, num_teacher)

    def draw_layers(self, t_no: int) -> list[int]:
        """The teacher's N - 1 layers of this period between first and last, in order."""
        draws = self.draws()
        period = self.clock.iteration // draws.iterations
        if draws.epochs and self.args.program == "finetune":
            period = self.clock.epoch // draws.epochs
        number, num_teacher = self.args.model.num_layers - 1, self.args.teachers[t_no].num_layers
        return random_layers(number, num_teacher, self.generator("layers", t_no, period))

    def begin_pass(self, clock: Clock) -> None:
        """A forward pass begins; a new draw is logged, if asked for."""
        super().begin_pass(clock)
        draws = self.draws()
        if not (draws.on and draws.shown):
            return
        drawn = tuple(self.draw_layers(t_no) for t_no in range(len(self.args.teachers)))
        if drawn != self._shown:
            self._shown = drawn
            for t_no, layers in enumerate(drawn):
                log.info("%s: layers of teacher %d: %s", type(self).__name__, t_no, layers)
