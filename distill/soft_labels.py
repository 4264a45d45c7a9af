"""The loss of the prediction layer: the teacher's soft labels and the data's hard ones.

    pre_loss = soft_rate * soft + hard_rate * hard,      each if its flag is given for this program

    soft     pretraining: T^2 KL;  fine-tuning: T^2 cross entropy;  or squared error, by flags
    rows     language model: target positions; --distill_wo_loss_mask, --distill_only_mask_pad: all
             tokens; otherwise one row a sample, the softmax over its real choices

Logits [b, s, v/p] of a language model, [b, c] of choices or classes. T: --distill_temperature.

Not as in the seed, where (--compat) fine-tuning's squared error takes every row (D1), cross entropy
lacks T^2 (D2), sums over masked rows are divided by all rows of the micro-batch (D3), and padded
choices take part (D6).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from config import Compat, DistillArgs, RunArgs
from distill.context import LossContext, Predictions
from distill.lazy_logits import Logits, Planned
from distill.losses import kl, mse, soft_cross_entropy, squared_rows
from distill.rows import Rows, masked_rows
from distill.vocab_rows import SoftRows
from mpu.layout import Layout

MSE, KL, CE = "mse", "kl", "ce"


@dataclass(frozen=True, kw_only=True)
class SoftLabels:
    """The switches of one run, read once."""

    args: DistillArgs
    compat: Compat
    stage: str  # "pt" or "ft", as in the flags

    @classmethod
    def of(cls, run: RunArgs) -> Self:
        """Those of a run."""
        stage = "ft" if run.program == "finetune" else "pt"
        return cls(args=run.distill, compat=run.compat, stage=stage)

    @property
    def soft(self) -> bool:
        """Whether soft labels are used; with them the teacher's logits are needed."""
        args = self.args
        flag = args.distill_ft_soft if self.stage == "ft" else args.distill_pt_soft
        return flag and args.distill_soft_rate != 0

    @property
    def hard(self) -> bool:
        """Whether hard labels are used."""
        args = self.args
        flag = args.distill_ft_hard if self.stage == "ft" else args.distill_pt_hard
        return flag and args.distill_hard_rate != 0

    @property
    def kind(self) -> str:
        """Which soft loss: squared error if asked for, else KL or cross entropy."""
        args = self.args
        if self.stage == "ft":
            return MSE if args.distill_ft_soft_mse else KL if args.distill_ft_soft_kl else CE
        return MSE if args.distill_pt_soft_mse else CE if args.distill_pt_soft_ce else KL

    @property
    def targets_only(self) -> bool:
        """Whether a language model's soft labels need target positions only, or none."""
        args = self.args
        every = args.distill_wo_loss_mask or args.distill_only_mask_pad
        return not self.soft or not (every or self._ignores_mask)

    def terms(self, given: Predictions, context: LossContext) -> dict[str, Tensor]:
        """`ft_soft`, `ft_hard` (or pt), those in use, already times their rates: [] or [b]."""
        terms = {}
        if self.soft:
            soft = self._soft(given, context)
            terms[f"{self.stage}_soft"] = soft * self.args.distill_soft_rate
        if self.hard:
            terms[f"{self.stage}_hard"] = given.hard_loss * self.args.distill_hard_rate
        return terms

    def planned(
        self, student: Logits, context: LossContext, weight: float = 1.0
    ) -> Iterator[Planned]:
        """The soft term over a vocabulary, as `terms` will ask for it; times this weight."""
        rows = self.rows(context)
        known = rows is None or any(rows is each for each in context.rows.values())
        if not (self.soft and known):
            return
        weight *= self.args.distill_soft_rate
        if self.kind == MSE:
            yield Planned(squared_rows(student), rows, weight)
            return
        temperature = self.args.distill_temperature
        squared = 1 if self.kind == CE and "D2" in self.compat else temperature**2
        yield Planned(SoftRows(temperature, self.kind == CE), rows, weight * squared)

    def _soft(self, given: Predictions, context: LossContext) -> Tensor:
        student, teacher = given.lazy_student, given.lazy_teacher
        assert teacher is not None, "soft labels need the teacher's logits"
        options = {
            "layout": context.layout,
            "rows": self.rows(context),
            "columns": context.class_mask,
            "keep_batch": context.keep_batch,
        }
        if self.kind == MSE:
            return mse(student, teacher, teacher_weight=given.teacher_weight, **options)
        temperature = self.args.distill_temperature
        if self.kind == KL:
            return kl(student, teacher, temperature=temperature, **options)
        loss = soft_cross_entropy(student, teacher, temperature=temperature, **options)
        return loss / temperature**2 if "D2" in self.compat else loss

    def rows(self, context: LossContext) -> Rows | None:
        """The rows that soft labels are a mean over."""
        if context.layout is not Layout.SHARD_LAST:
            return context.first_rows("samples")
        if self.targets_only:
            return context.first_rows("targets")
        if self._ignores_mask or self.args.distill_wo_loss_mask:
            return context.first_rows("all", "tokens")
        return token_rows(context, self.compat)

    @property
    def _ignores_mask(self) -> bool:
        """D1: a misspelt keyword in the seed."""
        return self.kind == MSE and self.stage == "ft" and "D1" in self.compat


def token_rows(context: LossContext, compat: Compat) -> Rows | None:
    """A language model's tokens; under D3, as in the seed, positions whose label is not 0."""
    every = context.rows.get("all")
    if "D3" in compat and every is not None and context.labels is not None:
        return masked_rows(every, context.labels > 0)
    return context.first_rows("tokens")
