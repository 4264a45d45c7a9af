"""MobileBERT (Sun et al., 2020, arXiv 2004.02984): match attention and states, one layer at a time.

    loss = w (sum_{k <= min(n, L)} c_k mean KL(softmax(A_Tk) || softmax(A_Sk))
              + sum_{0 <= k <= min(n, L)} c_k mean (Z_Sk - Z_Tk)^2)
    c_k = r for k < n while n <= L, else 1

A_k [b, n/p, s, s] attention scores of block k, the mean over heads and query tokens; Z_k [b, s, h]
normalised states after k blocks (0: embeddings), the mean over tokens and width. The teacher's
layer of student layer k is that of the uniform map. n is the stage, from 1 to L + 1, where L is the
student's depth; each lasts total / (L + 1) optimizer steps, total being --lr-decay-iters if it is
set, else the whole run. w: --mobilebert_kd_w; r: --mobilebert_pkt_small_lr. In stage L + 1 soft and
hard labels are added to the loss; before, they wait. Terms in the log are without w.

The models are those of the paper with --inverted_bottleneck_mode (student: --ib_ffn_num=4) and
--teacher_inverted_bottleneck_mode (--teacher_ib_ffn_num=1).

Not as in the paper: earlier layers get a small loss instead of a small learning rate; states are
compared as they are, without the statistics of LayerNorm; the last stage has no mixing weight.

Not as in the seed: the stage follows from the iteration, so that resuming changes nothing
(--compat=D20: it counts calls). Scores are compared head by head for every p. Padding is left out
(--compat=D3 counts it).

Stages:
    pretraining: a teacher with --inverted_bottleneck_mode, alone
    pretraining: --student_model=mobilebert --mobilebert_kd_w=0.5 --mobilebert_pkt_small_lr=0.1
        --distill_pt_hard --inverted_bottleneck_mode --ib_ffn_num=4
        --teacher_inverted_bottleneck_mode --teacher_ib_ffn_num=1
    fine-tuning: the student alone

When: a thin and deep student is pretrained, and its teacher is as wide between the blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from config import ArgGroup, RunArgs, flag
from distill import needs
from distill.capture import Captured, Point, attention_scores, hidden
from distill.context import Clock, LossContext
from distill.layer_maps import uniform
from distill.losses import kl, mse
from distill.registry import register
from distill.stages import StagedStudent
from model.build import HeadSpec


@dataclass(frozen=True, kw_only=True)
class MobileBERTArgs(ArgGroup):
    """Flags of MobileBERT's distillation."""

    title = "mobilebert (MobileBERT)"
    mobilebert_kd_w: float = flag(0.5, "weight of attention and states")
    mobilebert_pkt_small_lr: float = flag(
        0.1, "weight of the layers of earlier stages (fraction of the newest one's)"
    )


@register("mobilebert", "MobileBERT")
class MobileBERT(StagedStudent):
    """See the module."""

    Args = MobileBERTArgs

    @classmethod
    def problems(cls, run: RunArgs, head: HeadSpec) -> Iterator[str]:
        """Equal width and heads, and a layer of the teacher for each of the student's."""
        yield from needs.equal_width("mobilebert", run)
        yield from needs.equal_heads("mobilebert", run)
        yield from needs.shallower("mobilebert", run)

    def steps_of_stages(self, clock: Clock) -> int:
        """The length of the learning rate's schedule."""
        return self.args.optim.lr_decay_iters or clock.total

    def pairs(self, t_no: int) -> Iterator[tuple[str, Point, Point]]:
        """Scores of layers 1 to the stage's, then states of 0 to the stage's."""
        own, theirs = self.args.model.num_layers, self.args.teachers[t_no].num_layers
        layers = list(enumerate([0, *uniform(own, theirs)]))[: self.stages.now + 1]
        for k, e in layers[1:]:
            yield f"attention_scores.{k - 1}", attention_scores(k), attention_scores(e)
        for k, e in layers:
            yield f"hidden_states.{k}", hidden(k, own), hidden(e, theirs)

    def loss(
        self, name: str, point: Point, student: Tensor, teacher: Tensor, ctx: LossContext
    ) -> Tensor:
        """KL of attention, squared error of states; those of earlier stages times r."""
        kind, _, number = name.partition(".")
        rows = ctx.first_rows("all", "tokens")
        compare, layer = (mse, int(number)) if kind == "hidden_states" else (kl, int(number) + 1)
        loss = compare(student, teacher, layout=point.layout, rows=rows, keep_batch=ctx.keep_batch)
        earlier = not self.stages.ended and layer < self.stages.now
        return self.args.method.mobilebert_pkt_small_lr * loss if earlier else loss

    def layer_losses(
        self, student: Captured, teacher: Captured, ctx: LossContext
    ) -> Iterator[tuple[str, Tensor]]:
        """Times w; logged without, as in the seed."""
        for name, loss in super().layer_losses(student, teacher, ctx):
            yield name, self.args.method.mobilebert_kd_w * loss
            if self.show_inter:  # takes the place of what was logged for the yielded one
                self.add_summary(f"inter_loss/{name}", loss)
        self.stages.count(self.clock.iteration, self.steps_of_stages(self.clock))
