"""Uncertainty (Li et al., 2021, arXiv 2109.11295): an unsure student learns from small teachers.

    u_b = H(student's softmax on sample b) / ln c        0 sure, 1 unsure; a weight, no gradient
    w_kb = n (u_b + (1 - 2 u_b) k / (n - 1)) / sum       k = 0..n-1, teachers from small to large
    loss = mean_k ( mean_b w_kb pre_kb + inter_k ) + hard_rate hard

Language models: the mean of u over the sample's target positions (--uncertainty_only_mask_pad or
--uncertainty_wo_loss_mask: over all its tokens). c: the classes, real choices or words.

--uncertainty_hard gives each sample one teacher: samples are ranked by falling u, the first n-th
part goes to the smallest teacher and so on; w is n or 0. --uncertainty_inter_entropy weighs
inter_kb by u_b and pre_kb by |1 - u_b| as well, if there is one. --uncertainty_wo_rate: w = 1.

Not as in the paper: it chooses among two teachers, here n. Ranks are those of a micro-batch.

Not as in the seed (--compat=MT): there u carries a gradient, masked positions count as u = 1, and
hard selection weighs 1 or 0, n times less than soft selection.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from config import ArgGroup, ConfigError, RunArgs, flag
from distill import needs
from distill.combiner import Answer, Combination, Combiner, register_combiner
from distill.context import LossContext
from distill.entropy import padded_uncertainty, planned_entropies, soft_weight, uncertainty
from distill.losses import Planned
from model.build import HeadSpec


@dataclass(frozen=True, kw_only=True)
class UncertaintyArgs(ArgGroup):
    """Flags of teacher selection by uncertainty."""

    title = "several teachers: uncertainty"
    uncertainty_wo_loss_mask: bool = flag(False, "language models: u of every position")
    uncertainty_only_mask_pad: bool = flag(False, "language models: u of all tokens")
    uncertainty_inter_entropy: bool = flag(False, "weigh the losses between layers by u")
    uncertainty_hard: bool = flag(False, "one teacher a sample")
    uncertainty_wo_rate: bool = flag(False, "no weights: all teachers for all samples")
    uncertainty_wo_hard: bool = flag(False, "do not add the hard loss here")
    uncertainty_teacher_seq: str | None = flag(
        None, "rank of each teacher from small to large, as 1:0; default: the order of the lists"
    )

    def order(self, number: int) -> list[int]:
        """The rank of each of so many teachers. ConfigError unless each rank is there once."""
        if self.uncertainty_teacher_seq is None:
            return list(range(number))
        words = self.uncertainty_teacher_seq.split(":")
        if sorted(words) != [str(i) for i in range(number)]:
            raise ConfigError(
                f"--uncertainty_teacher_seq={self.uncertainty_teacher_seq}: must name the ranks 0 "
                f"to {number - 1}, one for each teacher, as {':'.join(map(str, range(number)))}"
            )
        return [int(word) for word in words]


@register_combiner("uncertainty", "Uncertainty")
class Uncertainty(Combiner):
    """See the module."""

    Args = UncertaintyArgs
    _u: Tensor | None = None  # of this pass, once it is known

    @classmethod
    def problems(cls, run: RunArgs, args: ArgGroup, head: HeadSpec) -> Iterator[str]:
        """Soft labels, a sample for each teacher, ranks that name all teachers."""
        number = len(run.teachers)
        if args.uncertainty_hard and run.train.batch_size < number:
            yield (
                f"--batch-size={run.train.batch_size}: --uncertainty_hard gives each of {number} "
                f"teachers a part of the micro-batch; give at least {number}"
            )
        yield from needs.hard_once("uncertainty", run, not args.uncertainty_wo_hard)
        try:
            args.order(number)
        except ConfigError as error:
            yield from error.problems

    @property
    def needs_all_logits(self) -> bool:
        """The entropy of all tokens, if asked for."""
        return self._rows != "targets"

    @property
    def per_sample(self) -> tuple[bool, bool]:
        """Predictions always; losses between layers if they are weighed."""
        return True, self.args.uncertainty_inter_entropy

    def planned(self, ctx: LossContext) -> Iterable[Planned]:
        """The entropies."""
        return planned_entropies(ctx, self._rows)

    def weigh(self, answer: Answer, made: Combination) -> Tensor | float:
        """mean_b w pre + inter of one teacher."""
        args, number = self.args, len(self.run.teachers)
        self._u = u = self._uncertainty(made) if self._u is None else self._u
        pre, inter = answer.pre_loss, answer.inter_loss
        if not args.uncertainty_wo_rate:
            rank = args.order(number)[answer.t_no]
            weight = (
                self._hard(u, rank, made) if args.uncertainty_hard else soft_weight(u, rank, number)
            )
            pre = pre * weight
        if args.uncertainty_inter_entropy and isinstance(inter, Tensor):
            pre, inter = pre * (1 - u).abs(), _mean(inter * u)
        return _mean(pre) + inter

    def total(
        self, losses: Sequence[Tensor | float], answers: Sequence[Answer], made: Combination
    ) -> Tensor | float:
        """The mean over teachers and the hard loss."""
        self._u, total = None, sum(losses, start=0.0) / len(losses)
        if self.args.uncertainty_wo_hard:
            return total
        hard = made.hard_loss * made.hard_rate
        made.log("multi_teacher_model/hard_loss", hard)
        return total + hard

    def _hard(self, u: Tensor, rank: int, made: Combination) -> Tensor:
        """[b] -> [b]: n for the samples of this teacher, else 0. Fillers come last."""
        number = len(self.run.teachers)
        real = torch.ones_like(u) if made.real is None else made.real
        ranked = u.detach().masked_fill(real == 0, -1.0).argsort(descending=True, stable=True)
        position = torch.empty_like(ranked)
        position[ranked] = torch.arange(1, len(u) + 1, device=u.device)
        part = position * number / real.sum().clamp(min=1)
        chosen = ((part > rank) & (part <= rank + 1)).float()
        return chosen if "MT" in self.run.compat else chosen * number

    def _uncertainty(self, made: Combination) -> Tensor:
        """u [b], without gradient (MT: with)."""
        if self._rows is not None:
            return uncertainty(made, self._rows)
        every, labels = self.args.uncertainty_wo_loss_mask, self.args.uncertainty_only_mask_pad
        return padded_uncertainty(made, every=every, labels=labels)

    @property
    def _rows(self) -> str | None:
        every = self.args.uncertainty_only_mask_pad or self.args.uncertainty_wo_loss_mask
        return None if "MT" in self.run.compat else "tokens" if every else "targets"


def _mean(x: Tensor | float) -> Tensor | float:
    return x.mean() if isinstance(x, Tensor) else x
