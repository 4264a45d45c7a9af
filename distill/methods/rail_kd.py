"""RAIL-KD (Haidar et al., 2022, arXiv 2109.10164): match random teacher layers, pooled.

    loss = pre_loss + rate mean_rows |u_S - u_T|^2
    layer-wise:    u[i] = unit(W m[i] + b),  the terms of the layers added, each times alpha
    concatenated:  u = unit(W [m[1], ..., m[N-1]] + b)

m[i] [b, h]: mean over the tokens of the state after i blocks; unit(x) = x / |x|; W, b: one for the
student, one for each teacher, all trained, to width u. Rows: sequences. The student's N - 1 middle
layers go with N - 1 random middle layers of the teacher, in order, drawn anew every
--rail_kd_epochs or, without epochs (and in pretraining), every --rail_kd_iters. rate:
--rail_kd_inter_rate; the term in the log is without it. alpha: --rail_kd_layer_wise_alpha, the
paper's weights of the layers as one number; it changes nothing with --rail_kd_concatenated.

Not as in the paper: one projection serves all layers of the layer-wise variant. Both sides are
trained, as there: only the other loss terms keep them from agreeing on a constant (D28).

Not as in the seed: mean over the sequences, where the seed adds them up (--compat=D37); no padding
in the pooling (D3); alpha was read nowhere (D13); each teacher has its own draws (D10); epochs
never passed in pretraining (D39); --rail_kd_no_random is evenly spaced at all depths (D21).

Stages:
    pretraining: --student_model=distilbert
    fine-tuning: --student_model=rail_kd --distill_ft_soft --distill_soft_rate=0.3333
        --distill_ft_hard --distill_hard_rate=0.3333 --distill_temperature=10
        --rail_kd_inter_rate=0.3333 --rail_kd_u=128 --rail_kd_concatenated --rail_kd_epochs=1

When: a deep teacher whose best layers are not known; cheap, since layers are pooled.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from config import ArgGroup, ConfigError, RunArgs, flag
from distill import needs
from distill.adapters import Adapter
from distill.capture import Captured, Point, hidden
from distill.context import LossContext
from distill.drawn_layers import DrawnLayers, Draws
from distill.layer_maps import spaced
from distill.registry import register
from distill.sequences import mean_over_sequences, mean_over_tokens, sum_over_sequences
from model.build import HeadSpec


@dataclass(frozen=True, kw_only=True)
class RAILKDArgs(ArgGroup):
    """Flags of RAIL-KD."""

    title = "rail_kd (RAIL-KD)"
    rail_kd_inter_rate: float = flag(0.3334, "weight of the layers")
    rail_kd_layer_wise_alpha: float = flag(1.0, "weight of each layer, if not concatenated")
    rail_kd_u: int = flag(128, "width that both sides are projected to")
    rail_kd_epochs: int = flag(1, "draw layers anew so often in fine-tuning (epochs); 0: by iters")
    rail_kd_iters: int = flag(3000, "without epochs: draw layers anew so often (iterations)")
    rail_kd_concatenated: bool = flag(False, "one projection of all layers side by side")
    rail_kd_has_embed: bool = flag(False, "the embeddings, too")
    rail_kd_has_final: bool = flag(False, "the last layer, too")
    rail_kd_show_hook_change: bool = flag(False, "log the layers whenever they change")
    rail_kd_no_random: bool = flag(False, "evenly spaced layers instead of random ones")

    def __post_init__(self) -> None:
        for name, least in ("rail_kd_u", 1), ("rail_kd_epochs", 0), ("rail_kd_iters", 1):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name}={getattr(self, name)}: must be at least {least}")


@register("rail_kd", "RAIL_KD")
class RAILKD(DrawnLayers):
    """See the module."""

    Args = RAILKDArgs
    as_captured = True

    def add_parts(self) -> None:
        """A projection of the student and of each teacher."""
        args = self.args
        number = len(self.student_points()) if args.method.rail_kd_concatenated else 1
        teachers = {f"t_fit_dense_{t_no}": t.hidden_size for t_no, t in enumerate(args.teachers)}
        for name, width in ({"s_fit_dense": args.model.hidden_size} | teachers).items():
            seed = args.train.seed, "rail_kd", name
            adapter = Adapter(width * number, args.method.rail_kd_u, seed=seed, xavier=True)
            self.add_module(name, adapter)

    @classmethod
    def problems(cls, run: RunArgs, head: HeadSpec) -> Iterator[str]:
        """Middle layers on both sides."""
        yield from needs.shallower("rail_kd", run)
        if not (run.method.rail_kd_has_embed or run.method.rail_kd_has_final):
            yield from needs.several_layers("rail_kd", run)

    def spaced_layers(self, num_teacher: int) -> list[int]:
        """Without draws: evenly spaced between first and last."""
        inner = spaced(self.args.model.num_layers, num_teacher, self.args.compat)[:-1]
        return [*inner, num_teacher]

    def draws(self) -> Draws:
        """See `DrawnLayers`."""
        flags = self.args.method
        on, shown = not flags.rail_kd_no_random, flags.rail_kd_show_hook_change
        return Draws(on, flags.rail_kd_epochs, flags.rail_kd_iters, shown)

    def student_points(self) -> list[Point]:
        """The middle layers; embeddings and last layer by flags."""
        num_s = self.args.model.num_layers
        return self._points(list(range(1, num_s)), num_s)

    def teacher_points(self, t_no: int) -> list[Point]:
        """As many of the teacher: random or evenly spaced ones."""
        return self._points(self.teacher_layers(t_no)[:-1], self.args.teachers[t_no].num_layers)

    def _points(self, middle: list[int], last: int) -> list[Point]:
        ends = [0] * self.args.method.rail_kd_has_embed, [last] * self.args.method.rail_kd_has_final
        return [hidden(i, last) for i in (*ends[0], *middle, *ends[1])]

    def layer_losses(
        self, student: Captured, teacher: Captured, ctx: LossContext
    ) -> Iterator[tuple[str, Tensor]]:
        """`hidden_states`, times rate; logged without, as in the seed."""
        flags, compat = self.args.method, self.args.compat
        s = [mean_over_tokens(student[point], ctx) for point in self.student_points()]
        t = [mean_over_tokens(teacher[point], ctx) for point in self.teacher_points(ctx.t_no)]
        difference = self._unit("s_fit_dense", s) - self._unit(f"t_fit_dense_{ctx.t_no}", t)
        losses = difference.square().sum((1, 2))  # [b * c]
        if not flags.rail_kd_concatenated and "D13" not in compat:
            losses = losses * flags.rail_kd_layer_wise_alpha
        total = sum_over_sequences if "D37" in compat else mean_over_sequences
        loss = total(losses, ctx)
        yield "hidden_states", flags.rail_kd_inter_rate * loss
        if self.show_inter:  # takes the place of what was logged for the yielded one
            self.add_summary("inter_loss/hidden_states", loss)

    def _unit(self, adapter: str, pooled: list[Tensor]) -> Tensor:
        """Projected, of length 1: [b * c, h] of each layer -> [b * c, layers or 1, u]"""
        x = [torch.cat(pooled, -1)] if self.args.method.rail_kd_concatenated else pooled
        return F.normalize(getattr(self, adapter)(torch.stack(x, 1)), dim=-1)
