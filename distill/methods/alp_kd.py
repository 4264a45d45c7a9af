"""ALP-KD (Passban et al., 2021, arXiv 2012.14022): match a mix of all teacher layers, by attention.

    loss = pre_loss + lambda sum_k mean_rows mean_h (s_k - sum_j a_kj t_j)^2,  k = 1..N
    a_kj = softmax_j(s_k . t_j),  j = 1..M

s_k, t_j [b, h]: position 0 of the state after k or j blocks of student or teacher, of the same
width; N, M: layers. Rows: sequences. The student's gradient passes through a, too. lambda:
--alp_kd_lambda. The paper's total has 0.7 soft, 0.1 hard, 0.2 ALP: see the stage's flags.

Not as in the paper: the squared error is a mean over the width; soft labels are those of
`distill/soft_labels.py`.

Not as in the seed: lambda was read nowhere there, so the term had weight 1 (--compat=D13).

Stages:
    fine-tuning: --student_model=alp_kd --alp_kd_lambda=0.2 --distill_ft_soft
        --distill_soft_rate=0.7 --distill_ft_hard --distill_hard_rate=0.1
        --distill_temperature=20 --student_truncate_tn=0

When: the student is as wide as the teacher, and no mapping of layers should be chosen.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from config import ArgGroup, RunArgs, flag
from distill import needs
from distill.capture import Captured, Point, hidden
from distill.context import LossContext
from distill.losses import mse
from distill.registry import register
from distill.student import GLMStudent
from model.build import HeadSpec


@dataclass(frozen=True, kw_only=True)
class ALPKDArgs(ArgGroup):
    """Flags of ALP-KD."""

    title = "alp_kd (ALP-KD)"
    alp_kd_lambda: float = flag(0.2, "weight of the hidden states")


@register("alp_kd", "ALP_KD")
class ALPKD(GLMStudent):
    """See the module."""

    Args = ALPKDArgs

    @classmethod
    def problems(cls, run: RunArgs, head: HeadSpec) -> Iterator[str]:
        """Equal width; any depth."""
        yield from needs.equal_width("alp_kd", run)

    def student_points(self) -> list[Point]:
        """The states after every block."""
        return _every_block(self.args.model.num_layers)

    def teacher_points(self, t_no: int) -> list[Point]:
        """The states after every block."""
        return _every_block(self.args.teachers[t_no].num_layers)

    def layer_losses(
        self, student: Captured, teacher: Captured, ctx: LossContext
    ) -> Iterator[tuple[str, Tensor]]:
        """`hidden_states.0`, .1, ...: each layer of the student, times lambda."""
        weight = 1.0 if "D13" in self.args.compat else self.args.method.alp_kd_lambda
        rows = ctx.first_rows("sequences")
        points = self.teacher_points(ctx.t_no)
        states = torch.stack([teacher[point][:, 0].float() for point in points], 1)  # [b, M, h]
        for k, point in enumerate(self.student_points()):
            own = student[point][:, 0].float()
            mixed = _mixed(own, states)
            yield (
                f"hidden_states.{k}",
                weight * mse(own, mixed, rows=rows, keep_batch=ctx.keep_batch),
            )


def _every_block(num_layers: int) -> list[Point]:
    return [hidden(i, num_layers) for i in range(1, num_layers + 1)]


def _mixed(own: Tensor, states: Tensor) -> Tensor:
    """Teacher states by attention of the student's: [b, h], [b, M, h] -> [b, h]"""
    scores = torch.einsum("bh,bmh->bm", own, states)
    return torch.einsum("bm,bmh->bh", scores.softmax(-1), states)
