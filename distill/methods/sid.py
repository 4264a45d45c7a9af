"""SID (Aguilar et al., 2020, arXiv 1910.03723): match attention and first states, layer by layer.

    loss = sum_{k <= n} mean KL(softmax(A_Tk) || softmax(A_Sk)) + mean (1 - cos(Z_Sk, Z_Tk))

A_k [b, n/p, s, s] attention scores of block k, the mean over heads and query tokens; Z_k [b, h]
normalised state of position 0 after k blocks, the mean over sequences. The teacher's layer of
student layer k is that of the uniform map. n is the stage: it grows from 1 to L, the student's
layers; in stage L + 1 only soft and hard labels are learned, which wait until then.

Every stage lasts total / (L + 1) optimizer steps. --sid_accumulate_t=t ends one early: when the sum
of its cosine terms, a mean over the optimizer step on all processes, is below t.

Not as in the paper: time limits are equal parts of the run instead of a number of epochs.

Not as in the seed: the stage follows from the iteration, so that resuming changes nothing, and the
threshold is asked once an optimizer step, with one answer for all processes (--compat=D20: both at
each call, on each process alone, forgotten on resume). Scores are compared head by head for every
p. Padding is left out (--compat=D3 counts it).

Stages:
    pretraining: the student alone
    fine-tuning: --student_model=sid --sid_accumulate_t=0 --sid_lim_e=avg --distill_ft_soft
        --distill_temperature=1

When: student and teacher have the same width and heads, and the task's data is all there is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import mpu
from config import ArgGroup, RunArgs, flag
from distill import needs
from distill.capture import Captured, Point, attention_scores, hidden
from distill.context import Clock, LossContext
from distill.layer_maps import uniform
from distill.losses import cosine_distance, kl
from distill.registry import register
from distill.stages import StagedStudent
from model.build import HeadSpec


@dataclass(frozen=True, kw_only=True)
class SIDArgs(ArgGroup):
    """Flags of SID."""

    title = "sid (SID)"
    sid_accumulate_t: float = flag(
        0.0, "a stage ends when the sum of its cosine distances is below this; 0: by time alone"
    )
    sid_lim_e: str = flag(
        "avg", "avg: equal parts of the run (iterations) limit the stages; another word: no limit"
    )


@register("sid", "SID")
class SID(StagedStudent):
    """See the module."""

    Args = SIDArgs

    def add_parts(self) -> None:
        """Stages that end by time, by the loss or by both."""
        super().add_parts()
        self.stages.timed = self.args.method.sid_lim_e == "avg"
        self._asks = self.args.method.sid_accumulate_t > 0 and not self.stages.counted
        self._call: Tensor | float = 0.0  # sum of the cosine terms of this call of the loss
        self._step: dict[int, list[Tensor]] = {}  # micro-batch -> such sums, of each teacher

    @classmethod
    def problems(cls, run: RunArgs, head: HeadSpec) -> Iterator[str]:
        """Equal width and heads, a shallower student, a way out of every stage, labels."""
        yield from needs.equal_width("sid", run)
        yield from needs.equal_heads("sid", run)
        yield from needs.shallower("sid", run)
        yield from needs.labels("sid", run)
        if run.method.sid_lim_e != "avg" and run.method.sid_accumulate_t <= 0:
            yield (
                f"--sid_lim_e={run.method.sid_lim_e}: nothing would end the first stage; use avg, "
                "or a threshold with --sid_accumulate_t"
            )

    def pairs(self, t_no: int) -> Iterator[tuple[str, Point, Point]]:
        """Scores, then states of the layers 1 to the stage's; nothing in the last stage."""
        if self.stages.ended:
            return
        own, theirs = self.args.model.num_layers, self.args.teachers[t_no].num_layers
        layers = list(enumerate(uniform(own, theirs)))[: self.stages.now]
        for k, e in layers:
            yield f"attention_scores.{k}", attention_scores(k + 1), attention_scores(e)
        for k, e in layers:
            yield f"hidden_states.{k}", hidden(k + 1, own), hidden(e, theirs)

    def loss(
        self, name: str, point: Point, student: Tensor, teacher: Tensor, ctx: LossContext
    ) -> Tensor:
        """KL of attention, cosine distance of position 0."""
        if name.startswith("attention_scores"):
            rows = ctx.first_rows("all", "tokens")
            options = {"layout": point.layout, "rows": rows, "keep_batch": ctx.keep_batch}
            return kl(student, teacher, **options)
        rows = ctx.first_rows("sequences")
        loss = cosine_distance(student[:, 0], teacher[:, 0], rows=rows, keep_batch=ctx.keep_batch)
        self._call = self._call + loss.detach().mean()
        return loss

    def layer_losses(
        self, student: Captured, teacher: Captured, ctx: LossContext
    ) -> Iterator[tuple[str, Tensor]]:
        """The pairs' losses; then what they tell of the stage is kept."""
        if self.stages.ended:
            return
        self._call = 0.0
        yield from super().layer_losses(student, teacher, ctx)
        if self._asks and self.clock.repeat == 0:
            self._step.setdefault(self.clock.micro_step, []).append(self._call)
        threshold = self.args.method.sid_accumulate_t
        early = self.stages.counted and threshold > 0 and float(self._call) < threshold
        self.stages.count(self.clock.iteration, self.clock.total, early=early)

    def begin_step(self, clock: Clock) -> None:
        """End the stage if the last step's mean is below the threshold."""
        self._ask()

    def method_state(self) -> dict[str, Any]:
        """With a threshold, the stage of the next step. Every rank calls."""
        self._ask()
        return {"stage": max(self.stages.now, self.stages.least)} if self._asks else {}

    def load_method_state(self, values: dict[str, Any]) -> None:
        """Go on in that stage."""
        self.stages.least = values.get("stage", 1)

    def _ask(self) -> None:
        """One all-reduce of the step's mean, so that every rank has the same answer."""
        if not self._asks or self.stages.ended:
            return
        means = [torch.stack(sums).mean() for sums in self._step.values()]
        self._step = {}
        own = torch.zeros(2, device=next(self.origin_model.parameters()).device)
        if means:  # a step that lacks micro-batches is still divided by all, as its loss is
            own[0] = torch.stack(means).sum() / self.args.train.gradient_accumulation_steps
            own[1] = 1
        mean, ranks = mpu.max_across(mpu.mean_over_data_parallel(own)).tolist()
        if ranks and mean < self.args.method.sid_accumulate_t:
            self.stages.advance()
