"""GLMD (Tan et al., 2023, arXiv 2306.06625): match the vocabulary's logits; no layers, no labels.

    loss = T^2 mean_rows KL(softmax(z_T / T) || softmax(z_S / T))

z [b, s, v/p], the vocabulary over the ranks; rows: every token. T: --distill_temperature (15 in
published runs). Pretraining and first fine-tuning stage; the second is --logitsdistil_wo_inter
with soft labels of the task, --distill_ft_soft at temperature 1.

--logitsdistil_top_n=n keeps the teacher's n largest entries C of a row, and the student's other
entries below those:

    loss = T^2 mean_rows KL over C  +  mean_rows mean_{j not in C, z_Sj > m} (z_Sj - m),
    m = min_C z_S

or, with --logitsdistil_teacher_min, sets the teacher's other entries to the row's minimum instead.
Published as "GLMD-vc": GLMD as in the paper compresses the vocabulary too.

Not as in the seed: padding never counts (there it needs --logitsdistil_mask_pad, and counts in the
divisor, --compat=D3); the n largest are those of the whole vocabulary for every p; the second term
is a mean in each row first (--compat=D3: one mean over the micro-batch), and 0 where nothing
exceeds.

When: student and teacher share a vocabulary and nothing else, and pretraining can be afforded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from config import ArgGroup, ConfigError, flag
from distill.capture import Captured, Point, logits
from distill.context import LossContext
from distill.losses import excess, floored, kl, mse, top_n_columns, whole_width
from distill.registry import register
from distill.student import GLMStudent

LAYOUT = logits().layout


@dataclass(frozen=True, kw_only=True)
class GLMDArgs(ArgGroup):
    """Flags of GLMD."""

    title = "logitsdistil (GLMD)"
    needs: ClassVar = {"--logitsdistil_teacher_min": "--logitsdistil_top_n"}
    logitsdistil_mask_pad: bool = flag(False, "leave padding out; without --compat it always is")
    logitsdistil_mask_a: bool = flag(False, "only positions with a target or an answer")
    logitsdistil_mse: bool = flag(False, "squared error instead of KL")
    logitsdistil_top_n: float | None = flag(
        None, "keep the teacher's n largest logits of a row (tokens; below 1: fraction of them)"
    )
    logitsdistil_teacher_min: bool = flag(
        False, "with it: the teacher's other logits become the row's minimum"
    )
    logitsdistil_wo_inter: bool = flag(False, "no logits loss, for the second fine-tuning stage")

    def __post_init__(self) -> None:
        n = self.logitsdistil_top_n
        if n is not None and not (0 < n < 1 or (n >= 1 and n.is_integer())):
            raise ConfigError(
                f"--logitsdistil_top_n={n:g}: must be a whole number of tokens, "
                "or between 0 and 1 a fraction of the vocabulary"
            )


@register("logitsdistil", "LogitsDistil", "glmd")
class GLMD(GLMStudent):
    """See the module."""

    Args = GLMDArgs

    def student_points(self) -> list[Point]:
        """The logits, unless they are left out."""
        return [] if self.args.method.logitsdistil_wo_inter else [logits()]

    def teacher_points(self, t_no: int) -> list[Point]:
        """The logits, unless they are left out."""
        return self.student_points()

    def layer_losses(
        self, student: Captured, teacher: Captured, ctx: LossContext
    ) -> Iterator[tuple[str, Tensor]]:
        """`logits_parallel` and, with top-n, `s_logits_threshold`."""
        flags = self.args.method
        if flags.logitsdistil_wo_inter:
            return
        rows = ctx.first_rows(*self._row_names())
        s, t = student[logits()], teacher[logits()]
        if rows is not None:
            s, t = rows.pick(s), rows.pick(t)
        columns = None
        if flags.logitsdistil_top_n is not None:
            n = self._top_n(whole_width(t, LAYOUT))
            if flags.logitsdistil_teacher_min:
                t = floored(t, n, LAYOUT)
            else:
                columns = top_n_columns(t, n, LAYOUT)
                above, count = excess(
                    s,
                    columns,
                    layout=LAYOUT,
                    rows=rows,
                    pooled="D3" in self.args.compat,
                    keep_batch=ctx.keep_batch,
                )
                yield "s_logits_threshold", above
                self.add_summary("inter_loss/s_logits_threshold_count_nonzero", count)
        options = {"layout": LAYOUT, "rows": rows, "columns": columns, "keep_batch": ctx.keep_batch}
        if flags.logitsdistil_mse:
            yield "logits_parallel", mse(s, t, **options)
        else:
            temperature = self.args.distill.distill_temperature
            yield "logits_parallel", kl(s, t, temperature=temperature, **options)

    def _row_names(self) -> tuple[str, ...]:
        if self.args.method.logitsdistil_mask_a:
            return "targets", "answers"
        return ("tokens",) if self.args.method.logitsdistil_mask_pad else ("all", "tokens")

    def _top_n(self, width: int) -> int:
        n = self.args.method.logitsdistil_top_n
        return min(width, max(1, int(n if n >= 1 else n * width)))
