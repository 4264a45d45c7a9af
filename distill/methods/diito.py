"""DIITO (Wu et al., 2022, arXiv 2112.02505): answer alike after the same swap of hidden states.

    pass 0   alpha_ce soft(z_S, z_T) + alpha_mlm hard(z_S) + alpha_cos mean_rows (1 - cos(o_S, o_T))
    pass 1   alpha_causal_ce soft(z'_S, z'_T) + alpha_causal_cos mean_rows (1 - cos(o'_S, o'_T))

    x'[i, I_i] = x[i + 1, D_i]    after aligned blocks, in student and teacher alike

z logits, o [b, s, h] output of the final LayerNorm; rows: every token. In pass 1, marked by ', each
sample i has states of the next one in it. x [b, s, h]: the residual stream after a block; that of
the student keeps its gradient into pass 0. I, D: as many positions of both, 30% of the shorter
one's tokens (--diito_interchange_prop): side by side, any (random), or with a target (masked).

    full     a student block l, drawn for each iteration; all teacher blocks e_(l-1) + 1 .. e_l
    middle   block L // 2 + 1 of each model          late   the last two blocks of each model

e: `distill.layer_maps.spaced`. soft, hard: `distill/soft_labels.py`, with their flags.

Not as in the paper: states come from the next sample of the micro-batch, not from a second batch.

Not as in the seed: the residual stream is swapped, there the input of one attention layer, past
which the old state went on (--compat=D29). Padding is never swapped. `masked` took every position.
Gradients reach pass 0 with --checkpoint-activations, too.

Stages: pretraining with --forward_repeat_num=1 --diito_alignment=full --diito_interchange_prop=0.3
--diito_interchange_way=consecutive --diito_alpha_mlm=0.25 --diito_alpha_ce=0.25
--diito_alpha_causal_ce=0.25 --diito_alpha_cos=0.25 --diito_alpha_causal_cos=0 --distill_pt_soft
--distill_pt_hard --distill_temperature=2; then plain fine-tuning.

When: for pretraining a student as wide as its teacher, where two passes of both are affordable.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from config import RunArgs, flag
from distill import needs
from distill.capture import Captured, Point, block_output, hidden, output
from distill.context import Clock, LossContext
from distill.interchange import MASKED, STUDENT, InterchangeArgs, Interchanging
from distill.layer_maps import spaced
from distill.losses import cosine_distance
from distill.registry import register
from distill.student import AFTER
from model.build import HeadSpec

LEAST = {"full": 1, "middle": 3, "late": 2}  # layers that an alignment needs, in each model


@dataclass(frozen=True, kw_only=True)
class DIITOArgs(InterchangeArgs):
    """Flags of DIITO."""

    title = "diito"
    diito_alignment: str = flag("full", "which blocks correspond", choices=tuple(LEAST))
    diito_alpha_mlm: float = flag(1.0, "weight of the hard loss, pass 0")
    diito_alpha_ce: float = flag(1.0, "weight of the soft loss, pass 0")
    diito_alpha_causal_ce: float = flag(1.0, "weight of the soft loss after the swap, pass 1")
    diito_alpha_cos: float = flag(1.0, "weight of the outputs' cosine distance, pass 0")
    diito_alpha_causal_cos: float = flag(1.0, "weight of that distance after the swap, pass 1")


@register("diito", "DIITO")
class DIITO(Interchanging):
    """See the module."""

    Args = DIITOArgs
    as_captured = True

    @classmethod
    def problems(cls, run: RunArgs, head: HeadSpec) -> Iterable[str]:
        """A second pass that has a loss, blocks to align, one width for the cosine."""
        flags, stage = run.method, "ft" if run.program == "finetune" else "pt"
        number, alignment = run.distill.forward_repeat_num, flags.diito_alignment
        if number != 1:
            yield f"--forward_repeat_num={number}: diito swaps states in pass 1; give 1"
        soft = getattr(run.distill, f"distill_{stage}_soft") and flags.diito_alpha_causal_ce
        if not (soft or flags.diito_alpha_causal_cos):
            yield f"--distill_{stage}_soft: missing, so diito has no loss in pass 1; add it"
        if flags.diito_interchange_way == MASKED and head.kind == "classification":
            yield f"--diito_interchange_way={MASKED}: needs targets; add --cloze-eval"
        yield from needs.teacher_forward("diito", run)
        yield from needs.depth(f"--diito_alignment={alignment}", run, LEAST[alignment])
        yield from needs.shallower("diito", run) if alignment == "full" else ()
        if flags.diito_alpha_cos or flags.diito_alpha_causal_cos:
            yield from needs.equal_width("diito", run)

    def draw_layer(self) -> int:
        """The student's block of this iteration, 1..L, for `full`."""
        generator = self.generator("layer", self.clock.iteration)
        return 1 + int(torch.randint(self.args.model.num_layers, (), generator=generator))

    def places(self, t_no: int) -> list[Point]:
        """The states after the aligned blocks."""
        own, late = self.args.model.num_layers, self.args.method.diito_alignment == "late"
        depth = own if t_no == STUDENT else self.args.teachers[t_no].num_layers
        blocks = [depth - 1, depth] if late else [depth // 2 + 1]
        if self.args.method.diito_alignment == "full":
            last, ends = self.draw_layer(), [0, *spaced(own, depth, self.args.compat)]
            blocks = range(ends[last - 1] + 1, ends[last] + 1)
        seed = "D29" in self.args.compat
        return [hidden(k, depth) if seed else block_output(k) for k in blocks]

    def student_points(self) -> list[Point]:
        """What is swapped and what is compared."""
        if self.args.method.diito_alignment == "full" and not self.clock.repeat:
            self.add_summary("other/s_alignment_layer", self.draw_layer())
        return super().student_points()

    def teacher_points(self, t_no: int) -> list[Point]:
        """As for the student."""
        return [*super().teacher_points(t_no), *([output()] if self._weights()[2] else [])]

    def begin_pass(self, clock: Clock) -> None:
        """Each pass has weights of its own for the soft and the hard loss."""
        super().begin_pass(clock)
        args, (soft, hard, _) = self.args.distill, self._weights()
        soft, hard = soft * args.distill_soft_rate, hard * args.distill_hard_rate
        args = replace(args, distill_soft_rate=soft, distill_hard_rate=hard)
        self.soft_labels = replace(self.soft_labels, args=args)

    def add_summary(self, name: str, value: Tensor | float) -> None:
        """The soft loss of pass 1 has a name of its own, as in the seed."""
        causal = self.clock.repeat and name.startswith("pre_loss/")
        super().add_summary(f"{name}{AFTER}_causal{self.clock.repeat}" if causal else name, value)

    def layer_losses(
        self, student: Captured, teacher: Captured, ctx: LossContext
    ) -> Iterator[tuple[str, Tensor]]:
        """The cosine distance of the outputs."""
        yield from super().layer_losses(student, teacher, ctx)
        weight, rows = self._weights()[2], ctx.first_rows("tokens")
        if weight:
            pair = student[output()], teacher[output()]
            distance = cosine_distance(*pair, rows=rows, keep_batch=ctx.keep_batch)
            yield f"diito_alpha_cos_{self.clock.repeat}", weight * distance

    def _weights(self) -> tuple[float, float, float]:
        """Of soft loss, hard loss and cosine distance in this pass."""
        flags = self.args.method
        if self.clock.repeat:
            return flags.diito_alpha_causal_ce, 0.0, flags.diito_alpha_causal_cos
        return flags.diito_alpha_ce, flags.diito_alpha_mlm, flags.diito_alpha_cos
