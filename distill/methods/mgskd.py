"""MGSKD (Liu et al., ACL 2022): match structures of tokens, spans and samples.

    loss = sum_{i < m} w_token TP(tokens of Z_i) + w_span TP(spans of Z_i)
         + sum_{i >= m} w_sample SA(Z_i)

    TP   mean over heads and pairs of (x_i . x_j / sqrt(d) of student - teacher)^2
         + mean over chosen triples of smooth L1 of cos(x_j - x_i, x_k - x_i)
    SA   mean over heads and all triples of samples of smooth L1 of cos(x_j - x_i, x_k - x_i)

Z_i [b, s, h]: state after i layers, 0 the embedding; of the teacher evenly spaced ones. Spans:
--mgskd_span_max_rate times as many random segments as tokens, each the mean of its tokens. Chosen
triples: x_i is one of --mgskd_triplet_k1 units that get most of the teacher's attention, x_j and
x_k are two of --mgskd_triplet_k2 units that it attends to most; attention is the softmax of the
inner products. Samples: the mean of a sequence's tokens; every choice is one. Widths may differ,
both are cut into --mgskd_multi_heads heads of size d; nothing is learned. m:
--mgskd_sample_level_m. Fewer than 3 units have no angle and add nothing.

Not as in the paper: spans are random segments, not phrases.

Not as in the seed: each sequence is cut into spans of its own length, and means are over the pairs
and triples of a sequence, then over the sequences of the step; so any re-partition gives the same
gradient of TP (--compat=D3: one segmentation of the padded length, and means over all pairs and
triples of a micro-batch). SA compares the samples of a micro-batch and so depends on its size. No
capture is changed in place (D26), and nothing to compare gives 0, not NaN (D36).

Stages: pretrain with tinybert; fine-tune with --mgskd_weight_sample=4 --mgskd_weight_token=1
--mgskd_weight_span=1 --mgskd_sample_level_m=3 --mgskd_triplet_k1=20 --mgskd_triplet_k2=20; then
again with --mgskd_wo_inter --distill_ft_soft --distill_ft_soft_kl --distill_temperature=1.

When: a small task, and micro-batches large enough to have relations between samples.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from config import ArgGroup, ConfigError, RunArgs, flag
from distill import needs, triplets
from distill.capture import Captured, Point, hidden
from distill.context import LossContext
from distill.layer_maps import spaced
from distill.registry import register
from distill.relations import mean_of, rows_of
from distill.student import GLMStudent
from model.build import HeadSpec


@dataclass(frozen=True, kw_only=True)
class MGSKDArgs(ArgGroup):
    """Flags of MGSKD."""

    title = "mgskd"
    mgskd_weight_sample: float = flag(4.0, "weight of the sample level")
    mgskd_weight_token: float = flag(1.0, "weight of the token level")
    mgskd_weight_span: float = flag(1.0, "weight of the span level")
    mgskd_sample_level_m: int = flag(2, "m: layers below it have tokens and spans, others samples")
    mgskd_triplet_k1: int = flag(20, "vertices of angles in a sequence (tokens or spans)")
    mgskd_triplet_k2: int = flag(20, "points around each vertex (tokens or spans)")
    mgskd_multi_heads: int = flag(64, "heads into which both widths are cut")
    mgskd_span_max_rate: float = flag(0.4, "spans of a sequence (fraction of its tokens)")
    mgskd_wo_inter: bool = flag(False, "no structures, for the second fine-tuning stage")

    def __post_init__(self) -> None:
        rate, counts = self.mgskd_span_max_rate, ("triplet_k1", "triplet_k2", "multi_heads")
        values = {f"--mgskd_{name}": getattr(self, f"mgskd_{name}") for name in counts}
        problems = [f"{k}={v}: must be at least 1" for k, v in values.items() if v < 1]
        if not 0 <= rate <= 1:
            problems.append(f"--mgskd_span_max_rate={rate:g}: must be between 0 and 1")
        if problems:
            raise ConfigError(problems)


@register("mgskd", "MGSKD")
class MGSKD(GLMStudent):
    """See the module."""

    Args = MGSKDArgs

    @classmethod
    def problems(cls, run: RunArgs, head: HeadSpec) -> Iterable[str]:
        """Each student layer needs a layer of the teacher, heads must divide all widths."""
        if run.method.mgskd_wo_inter:
            return
        yield from needs.shallower("MGSKD", run)
        heads = run.method.mgskd_multi_heads
        widths = [run.model.hidden_size, *(teacher.hidden_size for teacher in run.teachers)]
        if any(width % heads for width in widths):
            common = math.gcd(*widths)
            yield (
                f"--mgskd_multi_heads={heads}: MGSKD cuts the widths of student and teachers, "
                f"{', '.join(map(str, widths))}, into so many heads; use a divisor of {common}"
            )

    def draw_spans(self, length: int) -> list[int]:
        """Lengths of the spans of a sequence so long; [] if it has none."""
        number = int(self.args.method.mgskd_span_max_rate * length)
        return triplets.random_spans(length, number, self.generator(self.clock.iteration, length))

    def pairs(self, t_no: int) -> Iterable[tuple[str, Point, Point]]:
        """The embedding and all layers, and the teacher's evenly spaced ones."""
        if not self.args.method.mgskd_wo_inter:
            own, number = self.args.model.num_layers, self.args.teachers[t_no].num_layers
            for i, k in enumerate((0, *spaced(own, number, self.args.compat))):
                yield f"hidden_states.{i}", hidden(i, own), hidden(k, number)

    def layer_losses(
        self, student: Captured, teacher: Captured, ctx: LossContext
    ) -> Iterator[tuple[str, Tensor]]:
        """`hidden_states.0`, ...: the token and span levels of a layer, or its sample level."""
        flags, members = self.args.method, None
        for i, (name, s, t) in enumerate(self.pairs(ctx.t_no)):
            states = student[s], teacher[t]
            mask = rows_of(ctx, "tokens", states[0]).mask
            if i >= flags.mgskd_sample_level_m:
                yield name, flags.mgskd_weight_sample * self._samples(*states, mask, ctx)
                continue
            loss = flags.mgskd_weight_token * self._units(*states, mask, ctx)
            if flags.mgskd_weight_span:
                members = self._spans(mask) if members is None else members
                spans = [triplets.span_means(members, x) for x in states]
                with_token = (members * mask.unsqueeze(1)).amax(-1)
                loss = loss + flags.mgskd_weight_span * self._units(*spans, with_token, ctx)
            yield name, loss

    def _spans(self, mask: Tensor) -> Tensor:
        """Members of the spans, [b, n, s]; D3: of the padded length, [1, n, s]."""
        size = mask.size(1)
        lengths = [size] if "D3" in self.args.compat else mask.sum(1).long().tolist()
        cuts = {length: self.draw_spans(length) for length in set(lengths)}
        return triplets.span_members([cuts[length] for length in lengths], size).to(mask.device)

    def _units(self, student: Tensor, teacher: Tensor, mask: Tensor, ctx: LossContext) -> Tensor:
        """TP: states [b, n, h] of tokens or spans."""
        flags = self.args.method
        heads, sizes = flags.mgskd_multi_heads, (flags.mgskd_triplet_k1, flags.mgskd_triplet_k2)
        pairs = triplets.pair_differences(student, teacher, mask, heads)
        angles = triplets.triplet_differences(student, teacher, mask, heads, *sizes)
        return self._mean(*pairs, ctx) + self._mean(*angles, ctx)

    def _samples(self, student: Tensor, teacher: Tensor, mask: Tensor, ctx: LossContext) -> Tensor:
        """SA: states [b, s, h]."""
        pooled = (triplets.mean_of_tokens(x, mask) for x in (student, teacher))
        real, heads = rows_of(ctx, "sequences", student).mask, self.args.method.mgskd_multi_heads
        return self._mean(*triplets.sample_differences(*pooled, real, heads), ctx)

    def _mean(self, sums: Tensor, counts: Tensor, ctx: LossContext) -> Tensor:
        rows, seed = rows_of(ctx, "sequences", sums), "D3" in self.args.compat
        return mean_of(sums, counts, rows, pooled=seed, keep_batch=ctx.keep_batch)
