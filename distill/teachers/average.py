"""Average: the mean (or sum) of the losses against each teacher. One teacher takes it, too.

    loss = mean_i l_i      or, --avgmt_sum_loss, sum_i l_i

TMKD (Yang et al., 2020, arXiv 1910.08381) is a recipe of it: --student_model=kd with squared error
of the logits, --distill_hard_rate=1/n. TAKD (Mirzadeh et al., 2020, arXiv 1902.03393) is a chain
of such runs with one teacher each. DGKD (Son et al., 2021, arXiv 2009.08825): all earlier models of
the chain are teachers, --avgmt_sum_loss, and with --avgmt_teacher_survival_p=0.75 each takes part
in a step with that probability. Then the hard loss enters once, as one more element of the mean or
sum.

A teacher that does not take part in a step does not run. Which ones do is a function of the
iteration, equal on all ranks.

Not as in the papers: TMKD's student has a head for each teacher; here one serves all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from config import ArgGroup, ConfigError, RunArgs, flag
from distill.combiner import Answer, Combination, Combiner, TaskShape, register_combiner
from distill.context import Clock


@dataclass(frozen=True, kw_only=True)
class AverageArgs(ArgGroup):
    """Flags of the average."""

    title = "several teachers: avg, tmkd"
    avgmt_inter_checkpoint: bool = flag(
        False, "recompute the losses between layers in the backward pass: less memory"
    )
    avgmt_pre_checkpoint: bool = flag(False, "recompute the losses of predictions, likewise")
    avgmt_sum_loss: bool = flag(False, "add the teachers' losses instead of averaging them")
    avgmt_teacher_survival_p: float = flag(
        1.0, "a teacher takes part in a step with this probability (DGKD)"
    )

    def __post_init__(self) -> None:
        p = self.avgmt_teacher_survival_p
        if not 0 < p <= 1:
            raise ConfigError(f"--avgmt_teacher_survival_p={p:g}: must be above 0, and at most 1")


@register_combiner("avg", "tmkd", "AvgTeacher")
class Average(Combiner):
    """See the module."""

    Args = AverageArgs

    def __init__(self, run: RunArgs, args: ArgGroup, shape: TaskShape):
        super().__init__(run, args, shape)
        self._surviving: frozenset[int] = frozenset(range(len(run.teachers)))

    @property
    def recomputes(self) -> tuple[bool, bool]:
        """Whether `pre_loss` and `inter_loss` are recomputed in the backward pass."""
        return self.args.avgmt_pre_checkpoint, self.args.avgmt_inter_checkpoint

    def begin_pass(self, clock: Clock) -> None:
        """Draw the teachers of this pass."""
        super().begin_pass(clock)
        p = self.args.avgmt_teacher_survival_p
        if p < 1:
            draws = self.draw_survival(len(self.run.teachers))
            self._surviving = frozenset(i for i, draw in enumerate(draws) if draw <= p)

    def draw_survival(self, number: int) -> list[float]:
        """A uniform number in [0, 1) for each teacher; those up to p take part."""
        generator = self.generator(self.clock.iteration, self.clock.repeat)
        return torch.rand(number, generator=generator).tolist()

    def runs(self, t_no: int) -> bool:
        """Only if it takes part."""
        return t_no in self._surviving

    def compares(self, t_no: int) -> bool:
        """Only if it takes part."""
        return t_no in self._surviving

    def total(
        self, losses: Sequence[Tensor | float], answers: Sequence[Answer], made: Combination
    ) -> Tensor | float:
        """The mean or the sum; with survival, of the hard loss as well."""
        losses = list(losses)
        if self.args.avgmt_teacher_survival_p < 1:
            losses.append(made.hard_loss * made.hard_rate)
            made.log("multi_teacher_model/hard_loss", losses[-1])
        total = sum(losses, start=0.0)
        return total if self.args.avgmt_sum_loss else total / len(losses)
