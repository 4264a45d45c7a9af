"""TinyBERT (Jiao et al., 2020, arXiv 1909.10351): match embeddings, hidden states and attention.

    loss = sum_{i=0..N} MSE(H_S[i] W + c, H_T[e_i]) + sum_{i=1..N} MSE(A_S[i], A_T[e_i])

N: the student's layers; e: 0, then `distill.layer_maps.uniform`. H [b, s, h]: hidden states, 0 the
embedding, N the output. A [b, n/p, s, s]: attention scores before the softmax, where invisible keys
differ by 0. W, c: one projection h_S -> h_T for all hidden states, also where widths are equal.

--tinybert_random_layers draws e_1 .. e_(N-1) anew every --tinybert_random_e epochs, or every
--tinybert_random_i iterations where that is 0 and in pretraining, which has no epochs.

Not as in the paper: hidden states are those behind the LayerNorm that reads them; the embedding has
no projection of its own; no data augmentation.

Not as in the seed: padding is neither a row nor a key (--compat=D3: it counts); layers are drawn
for every teacher; captures stay as they are, the projection is part of the loss.

Stages: pretraining and first fine-tuning as it is; then --tinybert_wo_inter --distill_ft_soft.

When: widths differ, the number of heads does not.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from config import ArgGroup, ConfigError, RunArgs, flag
from distill import needs
from distill.adapters import Adapter
from distill.capture import Point, attention_scores, hidden
from distill.context import LossContext
from distill.drawn_layers import DrawnLayers, Draws
from distill.losses import mse
from distill.registry import register
from model.build import HeadSpec

RANDOM = ("e", "i", "show")
ONLY = ("inter_final", "only_emb_final", "only_emb")


@dataclass(frozen=True, kw_only=True)
class TinyBERTArgs(ArgGroup):
    """Flags of TinyBERT."""

    title = "tinybert"
    needs: ClassVar = {f"--tinybert_random_{x}": "--tinybert_random_layers" for x in RANDOM}
    tinybert_inter_final: bool = flag(False, "only the last hidden state")
    tinybert_only_emb_final: bool = flag(False, "only the embedding and the last hidden state")
    tinybert_custom_final: int = flag(1, "for these two: the n-th hidden state from the end")
    tinybert_only_emb: bool = flag(False, "only the embedding")
    tinybert_wo_att: bool = flag(False, "no attention")
    tinybert_wo_inter: bool = flag(False, "no layers at all, for the second fine-tuning stage")
    tinybert_wo_final: bool = flag(False, "no last hidden state")
    tinybert_wo_emb: bool = flag(False, "no embedding")
    tinybert_fit_parallel: bool = flag(False, "start the projection from Xavier's weights, bias 0")
    tinybert_fit_compatible_mt: bool = flag(False, "a projection for each teacher")
    tinybert_random_layers: bool = flag(False, "random teacher layers between first and last")
    tinybert_random_e: int = flag(1, "for it: draw every so many epochs; 0: by the next flag")
    tinybert_random_i: int = flag(3000, "for it: draw every so many iterations")
    tinybert_random_show: bool = flag(False, "for it: log each draw")

    def __post_init__(self) -> None:
        chosen = [f"--tinybert_{x}" for x in ONLY if getattr(self, f"tinybert_{x}")]
        if len(chosen) > 1:
            raise ConfigError(f"{', '.join(chosen)}: choose one")
        for name, least in ("custom_final", 1), ("random_e", 0), ("random_i", 1):
            value = getattr(self, f"tinybert_{name}")
            if value < least:
                raise ConfigError(f"--tinybert_{name}={value}: must be at least {least}")

    @property
    def some_only(self) -> bool:  # the embedding, the last hidden state or both
        ends = self.tinybert_inter_final or self.tinybert_only_emb_final
        return ends or self.tinybert_only_emb


@register("tinybert", "TinyBERT")
class TinyBERT(DrawnLayers):
    """See the module."""

    Args, as_captured = TinyBERTArgs, True

    def add_parts(self) -> None:
        """One projection for all teachers or one each."""
        width, xavier = self.args.model.hidden_size, self.args.method.tinybert_fit_parallel
        for t_no, teacher in enumerate(self.args.teachers):
            if (name := self._fit(t_no)) not in self._modules:
                seed = self.args.train.seed, name
                self.add_module(name, Adapter(width, teacher.hidden_size, seed=seed, xavier=xavier))

    @classmethod
    def problems(cls, run: RunArgs, head: HeadSpec) -> Iterator[str]:
        """A shallower student with as many heads, teachers that one projection serves."""
        if (flags := run.method).tinybert_wo_inter:
            return
        yield from needs.teacher_forward("tinybert", run)
        if not flags.some_only:
            yield from needs.shallower("tinybert", run)
            if not flags.tinybert_wo_att:
                yield from needs.equal_heads("tinybert", run)
        most = 1 + min(model.num_layers for model in (run.model, *run.teachers))
        if (n := flags.tinybert_custom_final) > most:
            yield f"--tinybert_custom_final={n}: a model has {most} hidden states; give one of them"
        if len({t.hidden_size for t in run.teachers}) > 1 and not flags.tinybert_fit_compatible_mt:
            yield "--tinybert_fit_compatible_mt: missing; teachers of several widths need it"

    def draws(self) -> Draws:
        """--tinybert_random_*"""
        f = self.args.method
        every = f.tinybert_random_e, f.tinybert_random_i
        return Draws(f.tinybert_random_layers, *every, f.tinybert_random_show)

    def pairs(self, t_no: int) -> Iterator[tuple[str, Point, Point]]:
        """Scores of each layer, then hidden states; numbered in the order of what is compared."""
        flags = self.args.method
        if flags.tinybert_wo_inter:
            return
        num_s, num_t = self.args.model.num_layers, self.args.teachers[t_no].num_layers
        layers = [] if flags.some_only else self.teacher_layers(t_no)
        if not flags.tinybert_wo_att:
            for k, e in enumerate(layers):
                yield f"attention_scores.{k}", attention_scores(k + 1), attention_scores(e)
        end = flags.tinybert_custom_final - 1 if flags.some_only else 0
        first, last = (0, 0), (num_s - end, num_t - end)
        states = [first, *enumerate(layers[:-1], 1), last]
        if flags.tinybert_wo_emb or flags.tinybert_inter_final:
            states.remove(first)
        if flags.tinybert_wo_final or flags.tinybert_only_emb:
            states.remove(last)
        for k, (i, e) in enumerate(dict.fromkeys(states)):
            yield f"hidden_states.{k}", hidden(i, num_s), hidden(e, num_t)

    def loss(
        self, name: str, point: Point, student: Tensor, teacher: Tensor, ctx: LossContext
    ) -> Tensor:
        """Squared error of scores, or of hidden states after the projection."""
        rows, columns = ctx.first_rows("all", "tokens"), ctx.keys
        if name.startswith("hidden_states"):
            student, columns = self.projection(ctx.t_no)(student), None
        options = {"rows": rows, "columns": columns, "keep_batch": ctx.keep_batch}
        return mse(student, teacher, layout=point.layout, **options)

    def projection(self, t_no: int) -> Adapter:
        """What brings the student's hidden states to the width of a teacher."""
        return getattr(self, self._fit(t_no))

    def _fit(self, t_no: int) -> str:
        return f"fit_dense_{t_no}" if self.args.method.tinybert_fit_compatible_mt else "fit_dense"
