"""DistilBERT (Sanh et al., 2019, arXiv 1910.01108): match soft labels and the output's direction.

    loss = a_ce T^2 mean KL(softmax(z_T / T) || softmax(z_S / T)) + a_mlm hard
           + a_cos mean (1 - cos(h_S, h_T))

z: logits, [b, s, v/p] of a language model at its targets, or [b, c] of choices. h [b, s, h]: final
LayerNorm's output at the targets, or of all tokens where there are choices; as wide in the teacher.
a_*: --distilbert_alpha_*, T: --distill_temperature; --distilbert_ce_mask_padding and
--distilbert_cos_mask_padding take all tokens of a language model. With --distilbert_fix_layernorm
h is the last block's output through a LayerNorm of its own, trained for the student, 1 and 0 for
the teacher. Switches of soft and hard labels (--distill_ft_soft and so on) do nothing here.

Not as in the paper: the student starts from the teacher's layers only if --student_truncate_tn
says so.

Not as in the seed: means are over the rows that count (--compat=D3: over all); the output is
compared for choices too (--compat=D6: it is not). Each teacher's last block is its own.

Stages: pretraining --distill_temperature=2 --distilbert_alpha_ce=5 --distilbert_alpha_mlm=2
--distilbert_alpha_cos=1 --distilbert_cos_mask_padding; then plain or the same fine-tuning.

When: the student is as wide as the teacher and only shallower.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from config import ArgGroup, ConfigError, RunArgs, flag
from distill import needs
from distill.adapters import OwnLayerNorm
from distill.capture import Captured, Point, block_output, output
from distill.context import LossContext, Predictions, Terms
from distill.losses import cosine_distance
from distill.registry import register
from distill.soft_labels import SoftLabels, token_rows
from distill.student import GLMStudent
from model.build import HeadSpec

ALPHAS = ("distilbert_alpha_ce", "distilbert_alpha_mlm", "distilbert_alpha_cos")


@dataclass(frozen=True, kw_only=True)
class DistilBERTArgs(ArgGroup):
    """Flags of DistilBERT."""

    title = "distilbert"
    distilbert_alpha_ce: float = flag(1.0, "weight of the soft labels")
    distilbert_alpha_mlm: float = flag(1.0, "weight of the hard labels")
    distilbert_alpha_cos: float = flag(1.0, "weight of the output's direction")
    distilbert_fix_layernorm: bool = flag(
        False, "compare the last block's output, each side through a LayerNorm of its own"
    )
    distilbert_cos_mask_padding: bool = flag(False, "direction of all tokens, not of targets only")
    distilbert_ce_mask_padding: bool = flag(False, "soft labels of all tokens, not of targets only")

    def __post_init__(self) -> None:
        for name in ALPHAS:
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name}={getattr(self, name)}: must not be negative")


@register("distilbert", "DistilBERT")
class DistilBERT(GLMStudent):
    """See the module."""

    Args = DistilBERTArgs
    as_captured = True

    def add_parts(self) -> None:
        """Labels of its own, and LayerNorms if asked for."""
        args = self.args
        flags, own = args.method, dict.fromkeys(("distill_pt_soft", "distill_pt_hard"), True)
        own |= dict.fromkeys(("distill_pt_soft_ce", "distill_pt_soft_mse"), False)  # KL
        own["distill_soft_rate"] = flags.distilbert_alpha_ce
        own["distill_hard_rate"] = flags.distilbert_alpha_mlm
        own["distill_only_mask_pad"] = flags.distilbert_ce_mask_padding
        labels = replace(args.distill, **own)
        self.soft_labels = SoftLabels(args=labels, compat=args.compat, stage="pt")
        if flags.distilbert_fix_layernorm:
            self.layernorm = OwnLayerNorm(args.model.hidden_size)
            self.t_layernorm = OwnLayerNorm(args.model.hidden_size).requires_grad_(False)

    @classmethod
    def problems(cls, run: RunArgs, head: HeadSpec) -> Iterator[str]:
        """Equal widths, a teacher that runs, and any loss at all."""
        flags = run.method
        if flags.distilbert_alpha_cos:
            yield from needs.equal_width("distilbert", run)
        if flags.distilbert_alpha_cos or flags.distilbert_alpha_ce:
            yield from needs.teacher_forward("distilbert", run)
        if not any(getattr(flags, name) for name in ALPHAS):
            yield "--student_model=distilbert: no loss is on; give one --distilbert_alpha_* above 0"

    def pairs(self, t_no: int) -> Iterable[tuple[str, Point, Point]]:
        """The outputs, if their direction counts."""
        flags, student, teacher = self.args.method, output(), output()
        if flags.distilbert_fix_layernorm:
            student = block_output(self.args.model.num_layers)
            teacher = block_output(self.args.teachers[t_no].num_layers)
        if flags.distilbert_alpha_cos:
            yield "distilbert_alpha_cos", student, teacher

    def layer_losses(
        self, student: Captured, teacher: Captured, ctx: LossContext
    ) -> Iterator[tuple[str, Tensor]]:
        """`distilbert_alpha_cos`; under D6 a language model's only."""
        if ctx.loss_mask is not None or "D6" not in self.args.compat:
            yield from super().layer_losses(student, teacher, ctx)

    def loss(
        self, name: str, point: Point, student: Tensor, teacher: Tensor, ctx: LossContext
    ) -> Tensor:
        """a_cos mean (1 - cos). [] or, keep_batch, [b]."""
        flags = self.args.method
        if flags.distilbert_fix_layernorm:
            student, teacher = self.layernorm(student), self.t_layernorm(teacher)
        rows = ctx.first_rows("targets", "tokens")
        if flags.distilbert_cos_mask_padding and ctx.loss_mask is not None:
            rows = token_rows(ctx, self.args.compat)
        distance = cosine_distance(student, teacher, rows=rows, keep_batch=ctx.keep_batch)
        return flags.distilbert_alpha_cos * distance

    def prediction_terms(self, given: Predictions, ctx: LossContext) -> Terms:
        """Soft and hard labels by their alphas, in every stage: [] or, keep_batch, [b]."""
        terms = self.soft_labels.terms(given, ctx)
        for kind, name in (("pt_soft", ALPHAS[0]), ("pt_hard", ALPHAS[1])):
            if self.show_pre and kind in terms:
                self.add_summary(f"pre_loss/{name}", terms[kind])
        return {"soft": terms.get("pt_soft", 0.0), "hard": terms.get("pt_hard", 0.0)}

    def prediction_weights(self) -> tuple[float, float]:
        """The alphas are the labels' own rates."""
        return 1.0, 1.0
