"""Annealing-KD (Jafari et al., 2021, arXiv 2104.07163): match logits that grow to the teacher's.

    loss = mean_rows mean_c (z_S - phi z_T)^2
    phi = 1 - (max(1, ceil t) - 1) / tau,   t = (1 - iteration / total) tau

z [b, c] of choices, or [b, s, v/p] of a language model. phi climbs from 1 / tau to 1 in tau equal
stairs. tau: --annealing_kd_max_t. phi is in the log. The second phase learns hard labels only.

Not as in the paper: the squared error is a mean over classes, the paper's a sum; phi climbs by
optimizer steps, the paper's by epochs.

Not as in the seed: a language model's loss mask is honoured in fine-tuning (--compat=D1: not).

Stages:
    pretraining: the student alone
    fine-tuning: --student_model=annealing_kd --annealing_kd_max_t=7 --distill_ft_soft
        --distill_ft_soft_mse
    fine-tuning: --student_model=annealing_kd --distill_ft_hard

When: the teacher is much larger than the student, and only its logits are at hand.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from config import ArgGroup, ConfigError, RunArgs, flag
from distill import needs
from distill.context import LossContext, Predictions, Terms
from distill.registry import register
from distill.stages import annealed_weight
from distill.student import GLMStudent
from model.build import HeadSpec


@dataclass(frozen=True, kw_only=True)
class AnnealingKDArgs(ArgGroup):
    """Flags of Annealing-KD."""

    title = "annealing_kd (Annealing-KD)"
    annealing_kd_max_t: float = flag(7.0, "tau: stairs from the smallest weight to 1")

    def __post_init__(self) -> None:
        if not self.annealing_kd_max_t > 0:
            raise ConfigError(f"--annealing_kd_max_t={self.annealing_kd_max_t:g}: must be above 0")


@register("annealing_kd", "Annealing_KD")
class AnnealingKD(GLMStudent):
    """See the module."""

    Args = AnnealingKDArgs

    @classmethod
    def problems(cls, run: RunArgs, head: HeadSpec) -> Iterator[str]:
        """Labels, the soft ones by squared error."""
        yield from needs.labels("annealing_kd", run)
        yield from needs.squared_soft_labels("annealing_kd", run)

    def prediction_terms(self, given: Predictions, ctx: LossContext) -> Terms:
        """The base class's, the teacher's logits times phi."""
        phi = annealed_weight(self.clock.progress, self.args.method.annealing_kd_max_t)
        if self.show_pre:
            self.add_summary("pre_loss/fai_t", phi)
        return super().prediction_terms(replace(given, teacher_weight=phi), ctx)
