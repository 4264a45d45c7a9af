"""ERDistill (GLMKD's authors, unpublished): match relations of embeddings, local and global.

    local    mean_rows KL(softmax(G_T / sqrt(l)) || softmax(G_S / sqrt(l))),   G = Z Z^T
    global   mean_rows KL(softmax(Z_T E_T^T) || softmax(Z_S E_S^T))
    loss = sum over pairs of layers of local + global

Z [b, s, h] normalised states, widths may differ; G [b, s, s]; l: tokens of the sequence; E [v/p, h]
each model's own word table, so that Z E^T [b, s, v/p] are the logits that a layer would give. Rows:
every token; columns of G: tokens. --erdistill_inter says which layers:

    all      embeddings, every student layer with the teacher's of the uniform map, outputs
    one      outputs
    two      the last pair but the outputs, and the outputs
    1plus    the student's last layer but one with the teacher's output, times 0.1, and the outputs

and empty means none. --erdistill_inter_mse: squared error instead of KL, G then over l.

Not as in the seed: it starts, which it could not without its four flags. Where depths do not divide
the layers are those of the uniform map (--compat=D21). l is the number of tokens and padding is
left out; under --compat=D3 it is the length with padding, which counts. A narrow word table
(--compress_word_emb) is used as in the model's own logits.

Stages:
    pretraining: --student_model=erdistill --erdistill_inter=all
    fine-tuning: --student_model=erdistill --erdistill_inter=all
    fine-tuning: --student_model=erdistill --erdistill_inter= --distill_ft_soft

When: student and teacher have different widths, and no projection shall be learned.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from config import ArgGroup, RunArgs, flag
from distill import needs
from distill.capture import Hook, Point, hidden, logits
from distill.context import LossContext
from distill.layer_maps import spaced
from distill.losses import kl, mse
from distill.registry import register
from distill.student import GLMStudent
from model.build import HeadSpec
from model.glm import GLMModel
from model.vocab_map import VocabMap

FIRST_OF_1PLUS = 0.1


@dataclass(frozen=True, kw_only=True)
class ERDistillArgs(ArgGroup):
    """Flags of ERDistill."""

    title = "erdistill (ERDistill)"
    erdistill_inter: str = flag(
        "all", "which layers; empty: none", choices=("all", "one", "two", "1plus", "")
    )
    erdistill_inter_mse: bool = flag(False, "squared error instead of KL")
    erdistill_wo_local: bool = flag(False, "no relations between positions")
    erdistill_wo_global: bool = flag(False, "no relations to the word table")


@register("erdistill", "ERDistill")
class ERDistill(GLMStudent):
    """See the module."""

    Args = ERDistillArgs
    as_captured = True
    _teacher_models: Sequence[nn.Module] = ()  # in a tuple: no part of this module

    @classmethod
    def problems(cls, run: RunArgs, head: HeadSpec) -> Iterator[str]:
        """A teacher's layer for each of the student's, where they are compared."""
        if run.method.erdistill_inter in ("all", "two"):
            yield from needs.shallower("erdistill", run)
        yield from needs.weights_at_hand("erdistill", run)

    def get_teacher_hook_op(
        self, t_no: int = 0, *, teacher_models: Sequence[nn.Module] = ()
    ) -> Hook:
        """No edits; here the teachers can be seen, and their word tables."""
        self._teacher_models = tuple(teacher_models)
        return {}

    def layers(self, t_no: int) -> list[tuple[Point, Point]]:
        """Points of student and teacher that --erdistill_inter asks for."""
        own, theirs = self.args.model.num_layers, self.args.teachers[t_no].num_layers
        kind, outputs = self.args.method.erdistill_inter, (own, theirs)
        if kind in ("all", "two"):
            inner = spaced(own, theirs, self.args.compat)[:-1]
            numbers = [*enumerate([0, *inner]), outputs]
            numbers = numbers if kind == "all" else numbers[-2:]
        else:
            numbers = {"one": [outputs], "1plus": [(own - 1, theirs), outputs], "": []}[kind]
        return [(hidden(s, own), hidden(t, theirs)) for s, t in numbers]

    def pairs(self, t_no: int) -> Iterator[tuple[str, Point, Point]]:
        """`local.0`, ... and `global.0`, ..."""
        flags = self.args.method
        for kind, off in (
            ("local", flags.erdistill_wo_local),
            ("global", flags.erdistill_wo_global),
        ):
            for number, pair in enumerate([] if off else self.layers(t_no)):
                yield f"{kind}.{number}", *pair

    def loss(
        self, name: str, point: Point, student: Tensor, teacher: Tensor, ctx: LossContext
    ) -> Tensor:
        """One relation of one pair of layers."""
        loss = (self._local if name.startswith("local") else self._global)(student, teacher, ctx)
        small = self.args.method.erdistill_inter == "1plus" and name.endswith(".0")
        return FIRST_OF_1PLUS * loss if small else loss

    def _local(self, student: Tensor, teacher: Tensor, ctx: LossContext) -> Tensor:
        batch, length, _ = student.shape
        tokens, columns = student.new_full((batch, 1, 1), length), None
        if ctx.keys is not None:
            columns = ctx.keys[:, 0].expand(-1, length, -1)
            tokens = ctx.keys.sum(-1).clamp(min=1)
        by_mse = self.args.method.erdistill_inter_mse
        divisor = tokens if by_mse else tokens.sqrt()
        pair = [x.float() @ x.float().mT / divisor for x in (student, teacher)]
        rows = ctx.first_rows("all", "tokens")
        compare = mse if by_mse else kl
        return compare(*pair, rows=rows, columns=columns, keep_batch=ctx.keep_batch)

    def _global(self, student: Tensor, teacher: Tensor, ctx: LossContext) -> Tensor:
        rows = ctx.first_rows("all", "tokens")
        if rows is not None:
            student, teacher = rows.pick(student), rows.pick(teacher)
        pair = (
            _lens(self.origin_model, student),
            _lens(self._teacher_models[ctx.t_no], teacher, self.label_map),
        )
        compare = mse if self.args.method.erdistill_inter_mse else kl
        return compare(*pair, layout=logits().layout, rows=rows, keep_batch=ctx.keep_batch)


def _lens(module: nn.Module, states: Tensor, label_map: VocabMap | None = None) -> Tensor:
    """Logits of any states of a model, of the ids that `label_map` keeps: [..., v/p], fp32."""
    model = next(m for m in module.modules() if isinstance(m, GLMModel))
    states = states.to(model.word_embeddings.weight.dtype)
    with torch.autocast(states.device.type, enabled=False):
        columns = None if label_map is None else label_map.kept_ids
        return model.vocabulary(model.decompress_emb_mlp(states), columns).float()
