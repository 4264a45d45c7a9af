"""MixBaseline (Tan et al., 2023, arXiv 2306.06629): several methods in one run.

    loss = sum_m w_m inter_loss_m + [pre_loss] + sum_m w_m pre_loss_m

First sum: methods of --mixbaseline_inter_bl, second: of --mixbaseline_pre_bl_pt_soft or, when
fine-tuning, --mixbaseline_pre_bl_ft_soft; names as --student_model takes them, with commas.
[pre_loss]: the base class's soft labels, in pretraining only if no method is listed for it. Hard
labels count once: in the last method of the second sum, or in [pre_loss] if that is empty. w_m:
--mixbaseline_weights=1,0.5, a number for each method in the order in which the flags (inter, pt,
ft) first name it, or 1. --mixbaseline_temperatures: likewise a method's --distill_temperature;
without it TinyBERT's is --mixbaseline_tinybert_t.

Each method has its flags and parameters, sees the captures that it asked for, and is told under its
name: inter_loss/TinyBERT/hidden_states.3 is a term of it, inter_loss/TinyBERT their weighted sum.
Edits of one tensor follow each other.

Not as in the seed: edits, draws and stages of the methods work; TinyBERT's projection changes no
other method's captures (--compat=D32: it does); an empty list is empty; a method that takes hard
labels whatever the flags say (DistilBERT) takes them only where it is the last.

Stages: pretraining --distill_temperature=2 --minilmv2_relation_heads=48 --minilmv2_teacher_layer=12
--distilbert_alpha_ce=5 --distilbert_alpha_mlm=2 --distilbert_alpha_cos=1
--distilbert_cos_mask_padding --mixbaseline_inter_bl=TinyBERT,MiniLMv2,MiniLM,DistilBERT
--mixbaseline_pre_bl_pt_soft=DistilBERT; fine-tuning the same with
--mixbaseline_pre_bl_ft_soft=DistilBERT; then --mixbaseline_wo_inter --tinybert_wo_inter
--distill_ft_soft --distill_ft_hard --distill_temperature=10 --mixbaseline_tinybert_t=1
--mixbaseline_pre_bl_ft_soft=TinyBERT.

When: to see whether methods add to each other; the cost is about the sum of theirs.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from config import ArgGroup, ConfigError, RunArgs, flag
from distill.capture import Captured
from distill.context import LossContext, Predictions, Terms
from distill.mix import BASE, PROJECTS, Lists, MixedStudent, projected, read_numbers, read_words
from distill.registry import register
from distill.soft_labels import SoftLabels
from model.build import HeadSpec


@dataclass(frozen=True, kw_only=True)
class MixBaselineArgs(ArgGroup):
    """Flags of the mix; those of its methods are theirs."""

    title = "mixbaseline (several methods)"
    needs: ClassVar = {"--mixbaseline_inter_checkpoint": "--mixbaseline_inter_bl"}
    mixbaseline_wo_inter: bool = flag(False, "no intermediate loss, for the last stage")
    mixbaseline_inter_checkpoint: bool = flag(
        False, "compute intermediate losses again in the backward pass, to save memory"
    )
    mixbaseline_tinybert_t: float = flag(1.0, "TinyBERT's --distill_temperature")
    mixbaseline_inter_bl: str = flag("", "methods with an intermediate loss: TinyBERT,PKD,...")
    mixbaseline_pre_bl_pt_soft: str = flag("", "methods with soft labels in pretraining")
    mixbaseline_pre_bl_ft_soft: str = flag("", "methods with soft labels in fine-tuning")
    mixbaseline_weights: str = flag("", "factor of each method's losses: 1,0.5,... [1]")
    mixbaseline_temperatures: str = flag("", "each method's --distill_temperature: 1,10,...")

    def __post_init__(self) -> None:
        self.lists("pretrain")
        read_numbers("--mixbaseline_tinybert_t", f"{self.mixbaseline_tinybert_t:g}")
        if self.mixbaseline_temperatures and self.mixbaseline_tinybert_t != 1:
            raise ConfigError(
                f"--mixbaseline_tinybert_t={self.mixbaseline_tinybert_t:g}: "
                "--mixbaseline_temperatures gives TinyBERT's, too; leave out one"
            )

    def mixes(self) -> tuple[str, ...]:
        """Every method that is listed, for whatever program."""
        texts = self.mixbaseline_pre_bl_pt_soft, self.mixbaseline_pre_bl_ft_soft
        names = (word for text in (self.mixbaseline_inter_bl, *texts) for word in read_words(text))
        return tuple(dict.fromkeys(names))

    def lists(self, program: str) -> Lists:
        """What these flags say to a program."""
        pretrains = program == "pretrain"
        weights, temperatures = self.mixbaseline_weights, self.mixbaseline_temperatures
        return Lists(
            names=self.mixes(),
            inter=() if self.mixbaseline_wo_inter else read_words(self.mixbaseline_inter_bl),
            pre=read_words(
                self.mixbaseline_pre_bl_pt_soft if pretrains else self.mixbaseline_pre_bl_ft_soft
            ),
            weights=read_numbers("--mixbaseline_weights", weights),
            temperatures=read_numbers("--mixbaseline_temperatures", temperatures),
            tinybert_temperature=self.mixbaseline_tinybert_t,
        )


@register("mixbaseline", "MixBaseline")
class MixBaseline(MixedStudent):
    """See the module."""

    Args = MixBaselineArgs

    def __init__(self, language_model: nn.Module, args: RunArgs):
        super().__init__(language_model, args, args.method.lists(args.program))
        if self.pre:  # the last of them has the hard labels
            off = replace(args.distill, distill_pt_hard=False, distill_ft_hard=False)
            self.soft_labels = SoftLabels.of(replace(args, distill=off))

    @classmethod
    def problems(cls, run: RunArgs, head: HeadSpec) -> Iterable[str]:
        """Lists that are clear, and what each method needs."""
        return run.method.lists(run.program).problems(run, head)

    def layer_losses(
        self, student: Captured, teacher: Captured, ctx: LossContext
    ) -> Iterator[tuple[str, Tensor]]:
        """One loss a method, under its name."""
        again, shared = self.args.method.mixbaseline_inter_checkpoint, student
        fit = getattr(getattr(self, PROJECTS, None), "fit_dense", None)
        if "D32" in self.args.compat and fit is not None:
            shared = projected(student, fit)
        for part in self.inter:
            captured = student if part.label == PROJECTS else shared
            yield part.label, self.part_loss(part, captured, teacher, ctx, again)

    def prediction_terms(self, given: Predictions, ctx: LossContext) -> Terms:
        """The base class's soft and hard labels, then each method's sum under its name."""
        terms: Terms = {}
        if self.args.program == "finetune" or not self.pre:
            terms = super().prediction_terms(given, ctx)
            self.add_summary(f"pre_loss/{BASE}", sum(terms.values(), start=0.0))
        for part in self.pre:
            value = self.part_pre_loss(part, given, ctx)
            self.add_summary(f"pre_loss/{part.label}", value)
            terms[part.label] = value
        return terms

    def needs_targets_only(self) -> bool:
        """Whether that is so for all who look at logits."""
        methods = self.of(self.pre)
        return self.soft_labels.targets_only and all(m.needs_targets_only() for m in methods)
