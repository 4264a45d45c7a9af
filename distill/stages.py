"""What changes during a run by plan: stages of layers, and the annealing of a teacher's logits.

All of it follows from the optimizer steps done, so it is equal on all ranks and a resumed run is
where it was.
"""

import math

from distill.context import Clock, LossContext, Predictions, Terms
from distill.student import GLMStudent


class Stages:
    """Stage 1..number of a pass, the same from `begin` to `begin`.

        stage = 1 + floor(number * iteration / total)

    so each is an equal part of the run. `least` is a stage that is reached whatever the time.
    Under D20 (`counted`) the seed's way: after a loss the next pass is one stage further, if the
    time of the present one is over; a resumed run begins at 1 again.
    """

    def __init__(self, number: int, *, timed: bool = True, counted: bool = False):
        """`timed`: whether time ends a stage."""
        self.number, self.timed, self.counted = number, timed, counted
        self.now, self.least = 1, 1

    @property
    def ended(self) -> bool:
        """Whether this is the last stage."""
        return self.now >= self.number

    def begin(self, iteration: int, total: int) -> None:
        """A pass begins. `total`: optimizer steps of all stages; 0, not known, counts as none."""
        self.now = self.least
        if self.timed and not self.counted and total > 0:
            self.now = max(self.now, min(self.number, 1 + iteration * self.number // total))

    def advance(self) -> None:
        """The next pass is at least one stage further."""
        self.least = min(self.number, self.now + 1)

    def count(self, iteration: int, total: int, *, early: bool = False) -> None:
        """D20: a loss was computed. `early`: the stage is over before its time."""
        over = self.timed and total > 0 and iteration * self.number >= self.now * total
        if self.counted and (over or early):
            self.advance()


class StagedStudent(GLMStudent):
    """A method with a stage for each student layer, and a last one: labels count in that alone."""

    def add_parts(self) -> None:
        """A stage for each layer, and the last one."""
        self.stages = Stages(self.args.model.num_layers + 1, counted="D20" in self.args.compat)

    def steps_of_stages(self, clock: Clock) -> int:
        """Optimizer steps that the stages share."""
        return clock.total

    def begin_pass(self, clock: Clock) -> None:
        """Take the stage of this pass."""
        super().begin_pass(clock)
        self.stages.begin(clock.iteration, self.steps_of_stages(clock))

    def prediction_terms(self, given: Predictions, ctx: LossContext) -> Terms:
        """0.0 before the last stage."""
        if not self.stages.ended:
            return {"soft": 0.0, "hard": 0.0}
        return super().prediction_terms(given, ctx)


def annealed_weight(progress: float, steps: float) -> float:
    """Weight of the teacher's logits: in `steps` stairs from 1 / steps to 1, over the whole run.

        phi = 1 - (max(1, ceil t) - 1) / steps,   t = (1 - progress) steps

    `progress`: the part of the run that is done, 0 to 1.
    """
    t = (1 - progress) * steps
    return 1 - (max(1, math.ceil(t)) - 1) / steps
