"""Continuation-KD (Jafari et al., 2022, arXiv 2212.05998): from annealed logits over to labels.

    loss = psi hard + (1 - psi) mean_i soft_i [soft_i > m phi]
    soft_i = mean_c (z_Si - phi z_Ti)^2
    phi = 1 - (max(1, ceil t) - 1) / tau,   t = (1 - iteration / total) tau
    psi = iteration / (total d); 1 once iteration > sep total

z [b, c] of choices, or [b, s, v/p] of a language model, whose soft_i is a mean over the rows of
sample i. A sample that is nearer than the margin m phi rests. soft_i is as the switches of soft
labels say, their rate included; hard too. tau: --continuation_kd_max_t; m:
--continuation_kd_margin; sep: --continuation_kd_psi_sep; d: --continuation_kd_psi_denominator. phi
and psi are in the log, soft and hard losses are there without psi and margin.

Not as in the paper: soft_i stands where the paper has max(0, soft_i - m phi), as in the seed: the
gradient is the same, the value higher by m phi for each sample that does not rest. The squared
error is a mean over classes, the paper's a sum, so that a margin means something else. psi and phi
go by optimizer steps.

Not as in the seed: what rests is decided on a sample's own mean, which padding and the cut into
micro-batches do not change (--compat=D3: on its sum over all positions).

Stages:
    pretraining: the student alone
    fine-tuning: --student_model=continuation_kd --continuation_kd_max_t=10
        --continuation_kd_margin=1 --continuation_kd_psi_sep=0.666
        --continuation_kd_psi_denominator=1.333 --distill_ft_soft --distill_ft_soft_mse
        --distill_ft_hard

When: as Annealing-KD, in one fine-tuning run instead of two.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from config import ArgGroup, ConfigError, RunArgs, flag
from distill import needs
from distill.context import LossContext, Predictions, Terms
from distill.registry import register
from distill.stages import annealed_weight
from distill.student import GLMStudent
from model.build import HeadSpec


@dataclass(frozen=True, kw_only=True)
class ContinuationKDArgs(ArgGroup):
    """Flags of Continuation-KD."""

    title = "continuation_kd (Continuation-KD)"
    continuation_kd_max_t: float = flag(10.0, "tau: stairs from the smallest weight to 1")
    continuation_kd_margin: float = flag(1.0, "m: samples with a soft loss below m phi rest")
    continuation_kd_psi_sep: float = flag(
        0.666, "from then on hard labels only (fraction of all iterations)"
    )
    continuation_kd_psi_denominator: float = flag(
        1.333, "until then their weight is the part of the run that is done, over this"
    )

    def __post_init__(self) -> None:
        for name in ("continuation_kd_max_t", "continuation_kd_psi_denominator"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"--{name}={getattr(self, name):g}: must be above 0")


@register("continuation_kd", "Continuation_KD")
class ContinuationKD(GLMStudent):
    """See the module."""

    Args = ContinuationKDArgs

    @classmethod
    def problems(cls, run: RunArgs, head: HeadSpec) -> Iterator[str]:
        """Labels, the soft ones by squared error; psi at most 1."""
        yield from needs.labels("continuation_kd", run)
        yield from needs.squared_soft_labels("continuation_kd", run)
        last, least = (
            run.method.continuation_kd_psi_denominator,
            min(1.0, run.method.continuation_kd_psi_sep),
        )
        if last < least:
            yield (
                f"--continuation_kd_psi_denominator={last:g}: the weight of hard labels would go "
                f"beyond 1; use at least {least:g}, as --continuation_kd_psi_sep"
            )

    def psi(self) -> float:
        """Weight of hard labels at this time."""
        flags, progress = self.args.method, self.clock.progress
        over = progress > flags.continuation_kd_psi_sep
        return 1.0 if over else progress / flags.continuation_kd_psi_denominator

    def prediction_terms(self, given: Predictions, ctx: LossContext) -> Terms:
        """Hard labels times psi, soft ones of the samples beyond the margin times 1 - psi."""
        phi = annealed_weight(self.clock.progress, self.args.method.continuation_kd_max_t)
        psi = self.psi()
        if self.show_pre:
            self.add_summary("pre_loss/fai_t", phi)
            self.add_summary("pre_loss/psi", psi)
        weighted, each = replace(given, teacher_weight=phi), replace(ctx, keep_batch=True)
        terms = super().prediction_terms(weighted, each)
        soft = terms["soft"]
        if isinstance(soft, Tensor):
            beyond = self._own_means(soft, ctx) > self.args.method.continuation_kd_margin * phi
            soft = soft * beyond
            soft = soft if ctx.keep_batch else soft.mean()
        return {"soft": (1 - psi) * soft, "hard": psi * terms["hard"]}

    def _own_means(self, soft: Tensor, ctx: LossContext) -> Tensor:
        """Each sample's mean over its own rows; under D3 over all positions, as it comes in. [b]"""
        rows = self.soft_labels.rows(ctx)
        if rows is None or "D3" in self.args.compat:
            return soft
        counts = rows.mask.reshape(len(soft), -1).sum(1).clamp(min=1)
        return soft * (rows.total / rows.num_samples) / counts
