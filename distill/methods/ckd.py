"""CKD (Park et al., 2021, arXiv 2109.08359): match relations between words and between layers.

    loss = w1 WR_dist + w2 LTR_dist + w3 WR_angle + w4 LTR_angle

    WR_dist    mean_{layer, i} KL(p_T || p_S) / n,   p = softmax_{j != i} cos(x_i, x_j)
    WR_angle   mean_{layer, i, j, k} (a_T - a_S)^2,  a = cos(x_j - x_i, x_k - x_i)
    LTR_dist   mean_{i, k} KL(p_T || p_S) / K,       p = softmax_{l != k} cos(z_k, z_l)
    LTR_angle  mean_{i, k, l, m} (a_T - a_S)^2,      a = cos(z_l - z_k, z_m - z_k)

x_i [h]: state of token i after one layer, n tokens in the sequence, j and k at most (w - 1) / 2
away; z_k [h]: state of one token after layer k, K = student layers + 1. Widths may differ, nothing
is learned. The four weights: --ckd_wrdist_w, --ckd_ltrdist_w, --ckd_wrangle_w, --ckd_ltrangle_w;
w: --ckd_window_size. Soft and hard labels are the base class's.

Not as in the paper: cosines stand for both kinds of pairs, as in the authors' code. Layers are the
states that GLM normalises before each block, and its output.

Not as in the seed: a window takes tokens only, and each token's mean is over the pairs it has there
(--compat=D3: padding takes part, and a position beyond the sequence is its last one). Means are
over all tokens of the step, so that any re-partition gives the same gradient (--compat=D3: long
sequences weigh more in WR_dist, and each micro-batch divides by its own). Infinities are not used:
the seed is NaN on today's PyTorch (D30). Angles are made of inner products: O(b s w^2) numbers of
one layer at a time, not O(b K s w h).

Stages: pretrain the student alone, then fine-tune with --ckd_window_size=21 --ckd_wrdist_w=1
--ckd_ltrdist_w=1 --ckd_wrangle_w=10 --ckd_ltrangle_w=10 --distill_ft_soft --distill_ft_hard
--distill_temperature=3 --distill_soft_rate=0.9 --distill_hard_rate=0.1.

When: student and teacher differ in width, and no projection is wanted between them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from config import ArgGroup, ConfigError, RunArgs, flag
from distill import needs
from distill.capture import Captured, Point, hidden
from distill.context import LossContext
from distill.layer_maps import uniform
from distill.registry import register
from distill.relations import (
    layer_angles,
    layer_distances,
    mean_of,
    rows_of,
    word_angles,
    word_distances,
)
from distill.student import GLMStudent
from model.build import HeadSpec


@dataclass(frozen=True, kw_only=True)
class CKDArgs(ArgGroup):
    """Flags of CKD."""

    title = "ckd"
    ckd_window_size: int = flag(21, "w: width of the window for angles of words (tokens, odd)")
    ckd_wrdist_w: float = flag(1.0, "weight of distances between words")
    ckd_ltrdist_w: float = flag(1.0, "weight of distances between layers")
    ckd_wrangle_w: float = flag(10.0, "weight of angles between words")
    ckd_ltrangle_w: float = flag(10.0, "weight of angles between layers")

    def __post_init__(self) -> None:
        window = self.ckd_window_size
        if window < 1 or window % 2 == 0:
            raise ConfigError(
                f"--ckd_window_size={window}: a token is in the middle of its window; "
                "use an odd number, as 21"
            )


@register("ckd", "CKD")
class CKD(GLMStudent):
    """See the module."""

    Args = CKDArgs

    @classmethod
    def problems(cls, run: RunArgs, head: HeadSpec) -> Iterable[str]:
        """Each student layer needs a layer of the teacher."""
        return needs.shallower("CKD", run)

    def student_points(self) -> list[Point]:
        """The embedding and all layers."""
        number = self.args.model.num_layers
        return [hidden(k, number) for k in range(number + 1)]

    def teacher_points(self, t_no: int) -> list[Point]:
        """The embedding and as many layers, evenly spaced."""
        own, number = self.args.model.num_layers, self.args.teachers[t_no].num_layers
        return [hidden(k, number) for k in (0, *uniform(own, number))]

    def layer_losses(
        self, student: Captured, teacher: Captured, ctx: LossContext
    ) -> Iterator[tuple[str, Tensor]]:
        """`wrdist`, `wrangle`, `ltrdist`, `ltrangle`: those with a weight, times their weights."""
        flags, seed = self.args.method, "D3" in self.args.compat
        own = [student[point] for point in self.student_points()]
        target = [teacher[point] for point in self.teacher_points(ctx.t_no)]
        rows = rows_of(ctx, "tokens", own[0])
        window = {"window": flags.ckd_window_size, "clamped": seed}
        for name, weight, relation, options in (
            ("wrdist", flags.ckd_wrdist_w, word_distances, {}),
            ("wrangle", flags.ckd_wrangle_w, word_angles, window),
            ("ltrdist", flags.ckd_ltrdist_w, layer_distances, {}),
            ("ltrangle", flags.ckd_ltrangle_w, layer_angles, {}),
        ):
            if weight:
                sums, counts = relation(own, target, rows.mask, **options)
                loss = mean_of(sums, counts, rows, pooled=seed, keep_batch=ctx.keep_batch)
                yield name, weight * loss
