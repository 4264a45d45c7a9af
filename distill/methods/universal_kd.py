"""Universal-KD (Wu et al., 2021, EMNLP 2021.emnlp-main.603): match pseudo classifiers by attention.

    loss = pre_loss + gamma sum_k mean_rows KL(softmax(y*_k) || softmax(x_k)),  k = 1..N-1
    x_k = W_Sk s_k,   y_j = W_Tj t_j,   y*_k = sum_j softmax_j(x_k . y_j) y_j,  j = 1..M-1

s_k, t_j [b, h]: position 0 (--universal_kd_avg: the mean over tokens) of the state after k or j
blocks of student or teacher, whose widths may differ; N, M: layers. W: one a layer, to width
--universal_kd_size. Rows: sequences. With --universal_kd_cg, for a wide gap between the models, the
last layers alone: s_N and t_M, one W each. gamma: --universal_kd_gamma.

The teacher's W are frozen as they were drawn and y*_k gets no gradient: nothing else ties them to
the task, and a loss that may move its own target makes it constant.

Not as in the paper: its pseudo classifiers map to the task's classes and the teacher's are grounded
in labels. --universal_kd_size=<classes> takes that width, else it is the student's.

Not as in the seed: there W_T is trained and the gradient goes into the target (--compat=D28).
Padding is left out of the mean over tokens (D3).

Stages:
    fine-tuning 1: --student_model=universal_kd --distill_ft_soft --distill_ft_soft_kl
        --distill_soft_rate=0.5 --universal_kd_gamma=0.5 --universal_kd_size=0
        --student_truncate_tn=0
    fine-tuning 2: --student_model=universal_kd --universal_kd_wo_inter --distill_ft_hard

When: student and teacher differ in width and depth, and no mapping of layers should be chosen.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from config import ArgGroup, ConfigError, RunArgs, flag
from distill import needs
from distill.adapters import Adapter
from distill.capture import Captured, Point, hidden
from distill.context import LossContext
from distill.losses import kl
from distill.registry import register
from distill.sequences import mean_over_tokens
from distill.student import GLMStudent
from model.build import HeadSpec


@dataclass(frozen=True, kw_only=True)
class UniversalKDArgs(ArgGroup):
    """Flags of Universal-KD."""

    title = "universal_kd (Universal-KD)"
    universal_kd_wo_inter: bool = flag(False, "no layers, for the second fine-tuning stage")
    universal_kd_cg: bool = flag(False, "the last layers instead of those before (capacity gap)")
    universal_kd_avg: bool = flag(False, "mean over tokens instead of position 0")
    universal_kd_gamma: float = flag(0.5, "weight of the layers")
    universal_kd_size: int = flag(0, "width of the pseudo classifiers; 0: the student's width")

    def __post_init__(self) -> None:
        if self.universal_kd_size < 0:
            raise ConfigError(
                f"--universal_kd_size={self.universal_kd_size}: must not be negative; 0 is the "
                "student's width"
            )


@register("universal_kd", "Universal_KD")
class UniversalKD(GLMStudent):
    """See the module."""

    Args = UniversalKDArgs
    as_captured = True

    def add_parts(self) -> None:
        """A classifier for each layer of each model."""
        args = self.args
        self.s_fit_dense = self._classifiers("s", args.model.num_layers, args.model.hidden_size)
        for t_no, teacher in enumerate(args.teachers):
            theirs = self._classifiers(f"t{t_no}", teacher.num_layers, teacher.hidden_size)
            self.add_module(f"t_fit_dense_{t_no}", theirs.requires_grad_("D28" in args.compat))

    @classmethod
    def problems(cls, run: RunArgs, head: HeadSpec) -> Iterator[str]:
        """Layers before the last ones, unless the last ones are compared."""
        if not (run.method.universal_kd_wo_inter or run.method.universal_kd_cg):
            yield from needs.depth("universal_kd without --universal_kd_cg", run, 2)

    def student_points(self) -> list[Point]:
        """The layers that are compared."""
        return self._points(self.args.model.num_layers)

    def teacher_points(self, t_no: int) -> list[Point]:
        """The layers that are mixed."""
        return self._points(self.args.teachers[t_no].num_layers)

    def layer_losses(
        self, student: Captured, teacher: Captured, ctx: LossContext
    ) -> Iterator[tuple[str, Tensor]]:
        """`hidden_states.0`, .1, ...: each layer of the student, times gamma."""
        if self.args.method.universal_kd_wo_inter:
            return
        theirs = getattr(self, f"t_fit_dense_{ctx.t_no}")
        own = self._outputs(self.s_fit_dense, student, self.student_points(), ctx)
        given = self._outputs(theirs, teacher, self.teacher_points(ctx.t_no), ctx)  # [b, M - 1, u]
        options = {"rows": ctx.first_rows("sequences"), "keep_batch": ctx.keep_batch}
        for k, x in enumerate(own.unbind(1)):
            scores = torch.einsum("bu,bmu->bm", x, given)
            mixed = torch.einsum("bm,bmu->bu", scores.softmax(-1), given)
            if "D28" not in self.args.compat:
                mixed = mixed.detach()
            yield (
                f"hidden_states.{k}",
                self.args.method.universal_kd_gamma * kl(x, mixed, **options),
            )

    def _layers(self, num_layers: int) -> list[int]:
        return [num_layers] if self.args.method.universal_kd_cg else list(range(1, num_layers))

    def _points(self, num_layers: int) -> list[Point]:
        if self.args.method.universal_kd_wo_inter:
            return []
        return [hidden(i, num_layers) for i in self._layers(num_layers)]

    def _classifiers(self, side: str, num_layers: int, width: int) -> nn.ModuleList:
        size = self.args.method.universal_kd_size or self.args.model.hidden_size
        seed = self.args.train.seed, "universal_kd", side
        return nn.ModuleList(
            Adapter(width, size, seed=(*seed, i), bias=False, xavier=True)
            for i in self._layers(num_layers)
        )

    def _outputs(
        self, classifiers: nn.ModuleList, captured: Captured, points: list[Point], ctx: LossContext
    ) -> Tensor:
        """Pooled and projected, each layer by its own: [b, layers, u]"""
        states = [captured[point] for point in points]
        average = self.args.method.universal_kd_avg
        pooled = [mean_over_tokens(x, ctx) if average else x[:, 0] for x in states]
        return torch.stack([W(x) for W, x in zip(classifiers, pooled, strict=True)], 1)
