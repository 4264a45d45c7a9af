"""PKD (Sun et al., 2019, arXiv 1908.09355): match hidden states of every k-th layer, patiently.

    loss = (1 - alpha) hard + alpha soft + beta sum_k mean_rows mean_h (x_k - y_k)^2
    x_k = H_S[k],  y_k = H_T[g(k)],  k = 1..N        both divided by their length, if normalised

H [b, s, h]: states after k blocks; N student layers; g: evenly spaced, the last two together
(`distill/layer_maps.py`). Rows: every token, or position 0 only. hard, soft: as the switches of
soft labels say, rates and T^2 included. alpha: --pkd_alpha; beta: --pkd_beta. The term in the log
is without beta.

Not as in the paper: the squared error is a mean over the width, the paper's a sum: its beta is h
times smaller. (The authors' code takes the mean.)

Not as in the seed: where N does not divide the teacher's depth, the last layers still go together
(--compat=D21: they do not). Padding never counts; under --compat=D3 it does.

Stages:
    fine-tuning: --student_model=pkd --distill_ft_soft --distill_ft_soft_kl --distill_ft_hard
        --distill_temperature=10 --pkd_normalized_patience --pkd_alpha=0.5 --pkd_beta=100
        --pkd_wo_final --pkd_only_cls --student_truncate_tn=0

When: the student is as wide as the teacher and starts from its layers.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from config import ArgGroup, ConfigError, RunArgs, flag
from distill import needs
from distill.capture import Captured, Point, hidden
from distill.context import LossContext, Predictions, Terms
from distill.layer_maps import spaced
from distill.losses import mse
from distill.registry import register
from distill.student import GLMStudent
from model.build import HeadSpec


@dataclass(frozen=True, kw_only=True)
class PKDArgs(ArgGroup):
    """Flags of PKD."""

    title = "pkd (PKD)"
    pkd_normalized_patience: bool = flag(False, "compare states divided by their length")
    pkd_alpha: float = flag(0.5, "weight of soft labels; hard ones get the rest (fraction)")
    pkd_beta: float = flag(100.0, "weight of the hidden states")
    pkd_use_embed: bool = flag(False, "compare the embeddings, too")
    pkd_wo_final: bool = flag(False, "leave the last layer out (PKD-skip)")
    pkd_only_cls: bool = flag(False, "compare position 0 only")

    def __post_init__(self) -> None:
        if not 0 <= self.pkd_alpha <= 1:
            raise ConfigError(f"--pkd_alpha={self.pkd_alpha:g}: must be between 0 and 1")


@register("pkd", "PKD")
class PKD(GLMStudent):
    """See the module."""

    Args = PKDArgs

    @classmethod
    def problems(cls, run: RunArgs, head: HeadSpec) -> Iterator[str]:
        """Equal width, a layer of the teacher for each of the student's, and a layer to compare."""
        yield from needs.equal_width("pkd", run)
        yield from needs.shallower("pkd", run)
        if run.method.pkd_wo_final and not run.method.pkd_use_embed:
            yield from needs.several_layers("pkd with --pkd_wo_final", run)

    def pairs(self, t_no: int) -> Iterable[tuple[str, Point, Point]]:
        """`hidden_states.0`, .1, ...: the layers that are compared, counted from 0."""
        flags, num_s = self.args.method, self.args.model.num_layers
        num_t = self.args.teachers[t_no].num_layers
        layers = list(enumerate([0, *spaced(num_s, num_t, self.args.compat)]))
        layers = layers[0 if flags.pkd_use_embed else 1 : num_s if flags.pkd_wo_final else None]
        for number, (s, t) in enumerate(layers):
            yield f"hidden_states.{number}", hidden(s, num_s), hidden(t, num_t)

    def loss(
        self, name: str, point: Point, student: Tensor, teacher: Tensor, ctx: LossContext
    ) -> Tensor:
        """Squared error of one layer, without beta."""
        rows = ctx.first_rows("all", "tokens")
        if self.args.method.pkd_only_cls:
            student, teacher, rows = student[:, 0], teacher[:, 0], ctx.first_rows("sequences")
        if self.args.method.pkd_normalized_patience:
            student, teacher = (F.normalize(x.float(), dim=-1) for x in (student, teacher))
        return mse(student, teacher, rows=rows, keep_batch=ctx.keep_batch)

    def layer_losses(
        self, student: Captured, teacher: Captured, ctx: LossContext
    ) -> Iterator[tuple[str, Tensor]]:
        """Times beta; logged without, as in the seed."""
        for name, loss in super().layer_losses(student, teacher, ctx):
            yield name, self.args.method.pkd_beta * loss
            if self.show_inter:  # takes the place of what was logged for the yielded one
                self.add_summary(f"inter_loss/{name}", loss)

    def prediction_terms(self, given: Predictions, ctx: LossContext) -> Terms:
        """(1 - alpha) hard + alpha soft, of the base class's; logged without these weights."""
        alpha = self.args.method.pkd_alpha
        terms = super().prediction_terms(given, ctx)
        return {"soft": alpha * terms["soft"], "hard": (1 - alpha) * terms["hard"]}

    def prediction_weights(self) -> tuple[float, float]:
        """alpha and 1 - alpha."""
        return self.args.method.pkd_alpha, 1 - self.args.method.pkd_alpha
