"""MT-BERT (Wu et al., 2021, arXiv 2106.01023): teachers weigh what they know of each sample.

    loss = sum_i ( mean_b pre_ib / (1 + CE_ib) + inter_i ) + hard

pre, inter: the student's losses against teacher i, by its own method (published: pkd with
--pkd_alpha=1 --pkd_beta=1, temperature 1). CE_ib: the teacher's own hard loss on sample b, in nats,
a weight without gradient. Hidden states of teacher i are projected to the student's width
(--mt_bert_fit_teacher), otherwise the student's to the teacher's, by a layer of its own W_i, b_i;
--mt_bert_wo_convert_layer compares them as they are. --mt_bert_fix_layernorm puts them through a
LayerNorm first: trained on the student's side, frozen at 1 and 0 on each teacher's.

The hard loss has weight 1, whatever --distill_hard_rate says; --mt_bert_wo_hard leaves it out.

Not as in the paper: its teachers are fine-tuned together before; here they come as they are.

Not as in the seed: LayerNorms do not add up from teacher to teacher, and each teacher has one also
without projections; a projection serves whatever is captured.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from config import ArgGroup, RunArgs, flag
from distill import needs
from distill.adapters import Adapter, OwnLayerNorm
from distill.capture import Hook
from distill.combiner import Answer, Combination, Combiner, TaskShape, register_combiner
from distill.registry import METHODS
from model.build import HeadSpec
from mpu.hook import leaves

# Last names of states as wide as the model.
HIDDEN = ("embeddings", "layernorm_output", "output", "tf_output")


@dataclass(frozen=True, kw_only=True)
class MTBertArgs(ArgGroup):
    """Flags of MT-BERT."""

    title = "several teachers: mt_bert"
    mt_bert_fit_teacher: bool = flag(False, "project the teachers' states, not the student's")
    mt_bert_wo_hard: bool = flag(False, "leave the hard loss out")
    mt_bert_wo_convert_layer: bool = flag(False, "no projections: all widths are equal")
    mt_bert_fix_layernorm: bool = flag(False, "a LayerNorm before states are compared")


@register_combiner("mt_bert", "MT_BERT")
class MTBert(Combiner):
    """See the module."""

    Args = MTBertArgs
    needs_teacher_loss = True

    def __init__(self, run: RunArgs, args: ArgGroup, shape: TaskShape):
        super().__init__(run, args, shape)
        width, seed = run.model.hidden_size, run.train.seed
        if args.mt_bert_fix_layernorm:
            self.layernorm = OwnLayerNorm(width)
        for t_no, teacher in enumerate(run.teachers):
            if args.mt_bert_fix_layernorm:
                frozen = OwnLayerNorm(teacher.hidden_size).requires_grad_(False)
                setattr(self, f"t_layernorm_{t_no}", frozen)
            if not args.mt_bert_wo_convert_layer:
                sizes = (teacher.hidden_size, width)
                sizes = sizes if args.mt_bert_fit_teacher else sizes[::-1]
                fit = Adapter(*sizes, seed=(seed, "mt_bert", t_no), xavier=True)
                setattr(self, f"fit_dense_{t_no}", fit)

    @classmethod
    def problems(cls, run: RunArgs, args: ArgGroup, head: HeadSpec) -> Iterator[str]:
        """One projection of states, teachers that run, a hard loss that counts once."""
        yield from needs.teacher_forward("mt_bert", run)
        names = [run.distill.student_model, *run.mixed]
        own = [name for name in names if METHODS[name].as_captured]
        if own and cls.converts_width(run, args):
            yield (
                f"--multi_teacher_model: mt_bert projects hidden states, but {own[0]} needs them "
                "as they are; add --mt_bert_wo_convert_layer"
            )
        yield from needs.hard_once("mt_bert", run, not args.mt_bert_wo_hard)

    @classmethod
    def converts_width(cls, run: RunArgs, args: ArgGroup) -> bool:
        """Unless asked not to."""
        return not args.mt_bert_wo_convert_layer

    @property
    def per_sample(self) -> tuple[bool, bool]:
        """Predictions are weighed per sample."""
        return True, False

    def adapt(
        self,
        t_no: int,
        student: tuple[Hook, list[Tensor]],
        teacher: tuple[Hook, list[Tensor]],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Hidden states normalised, if asked for, and projected on one side."""
        fit = getattr(self, f"fit_dense_{t_no}", None)
        own = [getattr(self, "layernorm", None), None if self.args.mt_bert_fit_teacher else fit]
        its = [getattr(self, f"t_layernorm_{t_no}", None), fit]
        if not self.args.mt_bert_fit_teacher:
            its[1] = None
        return _through(own, *student), _through(its, *teacher)

    def weigh(self, answer: Answer, made: Combination) -> Tensor | float:
        """mean_b pre / (1 + CE) + inter. A loss of ADAPET may be negative: it counts as 0."""
        known = 1 + answer.hard_loss.detach().clamp(min=0)
        return (answer.pre_loss / known).mean() + answer.inter_loss

    def total(
        self, losses: Sequence[Tensor | float], answers: Sequence[Answer], made: Combination
    ) -> Tensor | float:
        """The sum over teachers and the hard loss."""
        total = sum(losses, start=0.0)
        if self.args.mt_bert_wo_hard:
            return total
        made.log("multi_teacher_model/hard_loss", made.hard_loss)
        return total + made.hard_loss


def _through(
    modules: Sequence[nn.Module | None], hook: Hook, tensors: list[Tensor]
) -> list[Tensor]:
    """Captures with the hidden states among them put through the modules that are there."""
    made = list(tensors)
    for path, index in leaves(hook):
        if index is not None and path[-1] in HIDDEN:
            for module in filter(None, modules):
                made[index] = module(made[index])
    return made
