"""LRC-BERT (Fu et al., 2021, arXiv 2012.07335): contrast states across samples; perturb embeddings.

    loss = pre_loss + alpha N mean_i (1 + g_ii - sum_{j != i} (g_ij - g_ii) / (2 (B - 1)))
    g_ij = 1 - mean_k mean_positions cos(W s_ik, t_jk)

s_ik, t_jk [s, h]: states of sequence i of the student after k blocks, k = 1..N, and of sequence j
of the teacher after the blocks that go with it (`distill/layer_maps.py`). W: one for each teacher,
trained, without bias. Positions: where both sequences have a token. B sequences: all real ones of
the micro-batch (choices are sequences of their own); --lrc_bert_gather_dp: of all data-parallel
ranks' micro-batches. A sequence alone has nothing to be contrasted with: its loss is 0.

A sample's loss depends on the samples beside it. So, unlike in other methods, the gradient
depends on how a global batch is cut into micro-batches (and, without --lrc_bert_gather_dp, over
ranks).

--lrc_bert_gard_perturb: the model runs twice over each micro-batch. The first pass gives the
gradient G of its loss at the embeddings e; the second computes with e + G / |G|, each token's G of
length 1, and its loss alone is descended. It needs --forward_repeat_num=1
--ignore_first_backward_gard.

Not as in the seed: padding, padded choices and fillers are neither compared nor negatives
(--compat=D3, D6); unequal lengths and numbers of choices can be gathered; B = 1 gave NaN; half
precision cannot overflow G.

Stages:
    pretraining: the student alone
    fine-tuning 1: --student_model=lrc_bert --lrc_bert_gard_perturb --ignore_first_backward_gard
        --forward_repeat_num=1 --lrc_bert_gather_dp
    fine-tuning 2: the same with --lrc_bert_alpha=1 --distill_ft_soft --distill_ft_soft_kl
        --distill_soft_rate=1 --distill_ft_hard --distill_hard_rate=3 --distill_temperature=1.1

When: batches are large enough to hold many negatives, and robustness is worth a second pass.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from config import ArgGroup, RunArgs, flag
from distill import needs
from distill.adapters import Adapter
from distill.capture import Captured, Hook, Point, embeddings, hidden
from distill.context import LossContext
from distill.contrast import angular_distances, cos_nce, first_own, per_token_unit
from distill.layer_maps import uniform
from distill.registry import register
from distill.sequences import mean_over_sequences
from distill.student import GLMStudent
from model.build import HeadSpec


@dataclass(frozen=True, kw_only=True)
class LRCBERTArgs(ArgGroup):
    """Flags of LRC-BERT."""

    title = "lrc_bert (LRC-BERT)"
    lrc_bert_alpha: float = flag(1.0, "weight of the contrast")
    lrc_bert_grad_perturb: bool = flag(
        False, "learn from perturbed embeddings (two passes)", name="--lrc_bert_gard_perturb"
    )
    lrc_bert_gather_dp: bool = flag(False, "contrast with all data-parallel ranks' samples")


@register("lrc_bert", "LRC_BERT")
class LRCBERT(GLMStudent):
    """See the module."""

    Args = LRCBERTArgs
    as_captured = True

    def add_parts(self) -> None:
        """A projection for each teacher."""
        self.s_fit_dense = nn.ModuleList(
            Adapter(
                self.args.model.hidden_size,
                teacher.hidden_size,
                seed=(self.args.train.seed, "lrc_bert", t_no),
                bias=False,
                xavier=True,
            )
            for t_no, teacher in enumerate(self.args.teachers)
        )
        self._gradient: Tensor | None = None  # of the first pass at the embeddings

    @classmethod
    def problems(cls, run: RunArgs, head: HeadSpec) -> Iterator[str]:
        """A layer of the teacher for each of the student's; two passes for the perturbation."""
        yield from needs.shallower("lrc_bert", run)
        if run.method.lrc_bert_grad_perturb and not run.distill.ignores_first_pass:
            yield (
                "--lrc_bert_gard_perturb: needs a first pass for the gradient; add "
                "--forward_repeat_num=1 --ignore_first_backward_gard"
            )

    def student_points(self) -> list[Point]:
        """The states after every block."""
        number = self.args.model.num_layers
        return [hidden(i, number) for i in range(1, number + 1)]

    def teacher_points(self, t_no: int) -> list[Point]:
        """The states that go with them."""
        number = self.args.teachers[t_no].num_layers
        return [hidden(i, number) for i in uniform(self.args.model.num_layers, number)]

    def layer_losses(
        self, student: Captured, teacher: Captured, ctx: LossContext
    ) -> Iterator[tuple[str, Tensor]]:
        """One term, named after the last layer as in the seed."""
        flags, adapter = self.args.method, self.s_fit_dense[ctx.t_no]
        points = zip(self.student_points(), self.teacher_points(ctx.t_no), strict=True)
        layers = [(adapter(student[s]), teacher[t]) for s, t in points]
        gather = flags.lrc_bert_gather_dp
        distances, real = angular_distances(layers, ctx, gather=gather)
        losses = cos_nce(distances, real, first_own(real, gather=gather))
        weight = flags.lrc_bert_alpha * len(layers)
        yield f"hidden_states.{len(layers) - 1}", weight * mean_over_sequences(losses, ctx)

    # The perturbation.

    def gradient_points(self) -> list[Point]:
        """The embeddings, where a second pass follows whose loss alone counts."""
        flags = self.args
        perturbs = flags.method.lrc_bert_grad_perturb and flags.distill.ignores_first_pass
        return [embeddings()] if perturbs else []

    def take_gradients(self, gradients: dict[Point, Tensor]) -> None:
        """Keep them for the second pass."""
        self._gradient = gradients[embeddings()]

    def get_student_hook_op(self, *, teacher_models: Sequence[nn.Module] = ()) -> Hook:
        """In the second pass: embeddings + gradient, each token's of length 1."""
        if self.clock.repeat != 1 or self._gradient is None:
            return {}
        step = per_token_unit(self._gradient)

        def perturbed(hidden_states: Tensor, this: nn.Module) -> Tensor:
            return hidden_states + step.to(hidden_states.dtype)

        return {"transformer": {"embeddings": perturbed}}
