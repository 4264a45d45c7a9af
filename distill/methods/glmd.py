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
Published as "GLMD-vc"; GLMD also keeps half of the ids only (recipe glmd, docs/vocabulary.md).

Not as in the seed: padding never counts (there it needs --logitsdistil_mask_pad, and counts in the
divisor, --compat=D3); the n largest are those of the whole vocabulary for every p; the second term
is a mean in each row first (--compat=D3: one mean over the micro-batch), and 0 where nothing
exceeds.

When: student and teacher share a vocabulary and nothing else, and pretraining can be afforded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from config import ArgGroup, ConfigError, flag
from distill.capture import Captured, Hook, Point, logits
from distill.context import LossContext
from distill.losses import (
    Logits,
    Planned,
    SoftRows,
    TopN,
    kl,
    mse,
    planned_top_n,
    squared_rows,
    top_n_losses,
    whole_width,
)
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
    logitsdistil_teacher_input_ids_map: bool = flag(
        False, "with a compressed vocabulary: the teacher reads substitutes of dropped ids, too"
    )

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

    def get_teacher_hook_op(self, t_no: int = 0, teacher_models: Sequence[nn.Module] = ()) -> Hook:
        """The teacher's ids, dropped ones as the student reads them, if asked for."""
        return self.substitutes() if self.args.method.logitsdistil_teacher_input_ids_map else {}

    def layer_losses(
        self, student: Captured, teacher: Captured, ctx: LossContext
    ) -> Iterator[tuple[str, Tensor]]:
        """`logits_parallel` and, with top-n, `s_logits_threshold`."""
        flags = self.args.method
        if flags.logitsdistil_wo_inter:
            return
        rows = ctx.first_rows(*self._row_names())
        s, t = student.lazily(logits()), teacher.lazily(logits())
        options = {"rows": rows, "keep_batch": ctx.keep_batch}
        top = self._top(s)
        if top is None and flags.logitsdistil_mse:
            yield "logits_parallel", mse(s, t, layout=LAYOUT, **options)
        elif top is None:
            temperature = self.args.distill.distill_temperature
            yield "logits_parallel", kl(s, t, layout=LAYOUT, temperature=temperature, **options)
        else:
            pooled = "D3" in self.args.compat
            above, count, divergence = top_n_losses(s, t, top, pooled=pooled, **options)
            if above is not None:
                yield "s_logits_threshold", above
                self.add_summary("inter_loss/s_logits_threshold_count_nonzero", count)
            yield "logits_parallel", divergence

    def planned_layers(self, student: Logits, ctx: LossContext) -> Iterator[Planned]:
        """The base class's, and those of `layer_losses`."""
        yield from super().planned_layers(student, ctx)
        if self.args.method.logitsdistil_wo_inter:
            return
        rows, top = ctx.first_rows(*self._row_names()), self._top(student)
        temperature = self.args.distill.distill_temperature
        if top is not None:
            yield from planned_top_n(top, rows, pooled="D3" in self.args.compat)
        elif self.args.method.logitsdistil_mse:
            yield Planned(squared_rows(student), rows, 1.0)
        else:
            yield Planned(SoftRows(temperature), rows, temperature**2)

    def _top(self, student: Tensor | Logits) -> TopN | None:
        flags = self.args.method
        n, width = flags.logitsdistil_top_n, whole_width(student, LAYOUT)
        if n is None:
            return None
        temperature = None if flags.logitsdistil_mse else self.args.distill.distill_temperature
        n = min(width, max(1, int(n if n >= 1 else n * width)))
        return TopN(n, temperature, floor=flags.logitsdistil_teacher_min)

    def _row_names(self) -> tuple[str, ...]:
        if self.args.method.logitsdistil_mask_a:
            return "targets", "answers"
        return ("tokens",) if self.args.method.logitsdistil_mask_pad else ("all", "tokens")
