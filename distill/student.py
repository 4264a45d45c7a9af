"""GLMStudent: a GLM to be distilled, the base class of all methods.

The seed's words: `inter_loss` compares captured tensors of student and teacher, `pre_loss` compares
their predictions (soft labels) and adds the hard ones. A *hook* is a nested dict that names what to
capture (`mpu/hook.py`); `inter_vars` is the list its leaves point into.

A method overrides `pairs` and `loss`; or, for a loss over several tensors at once,
`student_points`, `teacher_points` and `layer_losses`; or, as in the seed, the public methods
`get_teacher_hook`, `get_student_hook`, `inter_loss`, `pre_loss` themselves.
"""

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import mpu
from config import ArgGroup, NoArgs, RunArgs
from distill.capture import Captured, Hook, Point, logits, merge_hooks, to_hook
from distill.context import Clock, LossContext, Predictions, Terms
from distill.lazy_logits import Logits, Planned, dense
from distill.losses import kl, mse, squared_rows
from distill.registry import METHODS
from distill.rows import Rows
from distill.soft_labels import SoftLabels
from distill.vocab_rows import SoftRows
from model.build import HeadSpec
from model.keys import rename_keys
from model.vocab_map import VocabMap
from tasks.base import TaskShape

INNER, OWN = "origin_model.", "student."  # in the module tree; in checkpoints
AFTER = "|"  # in a term's name: what follows comes behind the suffixes of teacher and pass


class GLMStudent(nn.Module):
    """A GLM and what its method adds to it.

    `state_dict` keys of the GLM are bare, so that a student's checkpoint is a GLM's; a method's own
    parameters are under `student.`, also inside a task head.
    """

    Args: ClassVar[type[ArgGroup]] = NoArgs  # the method's group of flags
    as_captured: ClassVar[bool] = False  # needs captures as they are, not as a combiner projects
    # Said by a class whose own `pre_loss` or `inter_loss` does with a vocabulary's logits only
    # what `Logits` can, too; without it these are given tensors.
    lazy_logits: ClassVar[bool] = True

    def __init__(
        self,
        language_model: nn.Module,
        args: RunArgs,
        *,
        show_pre: bool = True,
        show_inter: bool = True,
        summary_loss: bool = True,
    ):
        """`show_pre`, `show_inter`, `summary_loss`: whether terms are logged, as in the seed."""
        super().__init__()
        self.origin_model = language_model
        self.args = args
        self.show_pre, self.show_inter = show_pre and summary_loss, show_inter and summary_loss
        self.soft_labels = SoftLabels.of(args)
        self.terms: dict[str, Tensor] = {}  # of the last losses, for the log; see take_terms
        self.multi_teacher_model: nn.Module | None = None  # a Combiner; None: the average
        self.clock = Clock()  # of the current forward pass, set by the step
        if isinstance(language_model, nn.Module):  # a part of a mix only borrows one
            rename_keys(self, _to_file, _to_module)
        self.add_parts()

    # What a method says.

    def add_parts(self) -> None:
        """Add modules of the method's own, and what it remembers. Called once, by `__init__`."""

    @classmethod
    def problems(cls, run: RunArgs, head: HeadSpec) -> Iterable[str]:
        """What the method needs and this run lacks: a line each, `--flag=value: need; remedy`.

        Asked before any model is built. `distill.needs` has the usual ones.
        """
        return ()

    def pairs(self, t_no: int) -> Iterable[tuple[str, Point, Point]]:
        """(term, student's point, teacher's point): what is compared one by one."""
        return ()

    def loss(
        self, name: str, point: Point, student: Tensor, teacher: Tensor, ctx: LossContext
    ) -> Tensor:
        """The loss of one pair: [] or, ctx.keep_batch, [b]. Squared error, if not overridden."""
        rows = ctx.first_rows("all", "tokens")
        return mse(student, teacher, layout=point.layout, rows=rows, keep_batch=ctx.keep_batch)

    def student_points(self) -> list[Point]:
        """What to capture in the student."""
        return [student for _, student, _ in self.pairs(0)]

    def teacher_points(self, t_no: int) -> list[Point]:
        """What to capture in teacher `t_no`."""
        return [teacher for _, _, teacher in self.pairs(t_no)]

    def layer_losses(
        self, student: Captured, teacher: Captured, ctx: LossContext
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield (term, loss): [] or, ctx.keep_batch, [b]. `inter_loss` is their sum."""
        for name, s, t in self.pairs(ctx.t_no):
            yield name, self.loss(name, s, student[s], teacher[t], ctx)

    def prediction_terms(self, given: Predictions, ctx: LossContext) -> Terms:
        """{"soft", "hard"} of the prediction layer: [] or, ctx.keep_batch, [b]; 0.0 what is off.

        `pre_loss` is the sum of all values; ctx has layout and rows of the logits.
        """
        terms, stage = self.soft_labels.terms(given, ctx), self.soft_labels.stage
        if self.show_pre:
            for name, value in terms.items():
                self.add_summary(f"pre_loss/{name}", value)
        return {part: terms.get(f"{stage}_{part}", 0.0) for part in ("soft", "hard")}

    def planned(self, student: Logits, ctx: LossContext) -> Iterator[Planned]:
        """Losses over the vocabulary that will be asked for against teacher ctx.t_no.

        They are then computed together. What is missing here is computed alone, what is in vain
        costs time; no number depends on it.
        """
        yield from self.planned_predictions(student, ctx)
        yield from self.planned_layers(student, ctx)

    def planned_predictions(self, student: Logits, ctx: LossContext) -> Iterator[Planned]:
        """Those of `prediction_terms`."""
        weights = self.prediction_weights()
        if weights is not None:
            yield from self.soft_labels.planned(student, ctx, weights[0])

    def planned_layers(self, student: Logits, ctx: LossContext) -> Iterator[Planned]:
        """Those of `inter_loss`."""
        flags = self.args.distill
        if flags.distill_logits_parallel:
            squared, t = flags.distill_logit_mse, flags.distill_temperature
            term = squared_rows(student) if squared else SoftRows(t)
            yield Planned(term, self._logit_rows(ctx), 1.0 if squared else t**2)

    def prediction_weights(self) -> tuple[float, float] | None:
        """What `prediction_terms` multiplies soft and hard labels with; None: hard to say."""
        plain = type(self).prediction_terms is GLMStudent.prediction_terms
        return (1.0, 1.0) if plain else None

    def hard_weight(self) -> float:
        """Of the hard loss in the loss of the step, if `prediction_weights` are known; else 0."""
        weights, labels = self.prediction_weights(), self.soft_labels
        if weights is None or not labels.hard:
            return 0.0
        return weights[1] * labels.args.distill_hard_rate

    # Time, chance and memory.

    def begin_step(self, clock: Clock) -> None:
        """An optimizer step begins. For methods that decide once a step; called on every rank."""

    def begin_pass(self, clock: Clock) -> None:
        """A forward pass begins: hooks, edits and losses of `clock` follow."""
        self.clock = clock

    def generator(self, *words: int | str) -> torch.Generator:
        """A generator keyed by --seed, the method and these words: equal on every rank.

        Draws that are a function of iteration or epoch need no saving to resume exactly.
        """
        seed = mpu.derive_seed(self.args.train.seed, type(self).__name__, *words)
        return torch.Generator().manual_seed(seed)

    def method_state(self) -> dict[str, Any]:
        """What cannot be derived from the clock: plain values and tensors, for the checkpoint."""
        return {}

    def load_method_state(self, values: dict[str, Any]) -> None:
        """Go on from `method_state`."""
        assert not values, f"{type(self).__name__} keeps no state, the checkpoint has {values}"

    def gradient_points(self) -> list[Point]:
        """Captures of the first pass whose gradient `take_gradients` gets before the second."""
        return []

    def take_gradients(self, gradients: dict[Point, Tensor]) -> None:
        """Gradient of the first pass's loss at `gradient_points`, shaped as the captures."""

    # The seed's API: all that the training step calls.

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """The GLM's forward, hook and hook_op included."""
        return self.origin_model(*inputs, **kwargs)

    def get_teacher_hook(
        self, t_no: int = 0, hook_before_analysis: Hook | None = None, **kwargs: Any
    ) -> Hook:
        """What to capture in teacher `t_no`; with a hook given, that one and the base's."""
        points = [*self.teacher_points(t_no), *self.base_points()]
        return merge_hooks(hook_before_analysis, to_hook(points))

    def get_student_hook(self, hook_before_analysis: Hook | None = None, **kwargs: Any) -> Hook:
        """What to capture in the student; with a hook given, that one and the base's."""
        points = [*self.student_points(), *self.base_points()]
        return merge_hooks(hook_before_analysis, to_hook(points))

    def get_teacher_hook_op(self, t_no: int = 0, **kwargs: Any) -> Hook:
        """What to edit in teacher `t_no`'s forward: a hook with callables at its leaves."""
        return {}

    def get_student_hook_op(self, **kwargs: Any) -> Hook:
        """What to edit in the student's forward: a hook with callables at its leaves."""
        return {}

    def inter_loss(
        self,
        s_inter_vars: list[Tensor],
        t_inter_vars: list[Tensor],
        s_hook: Hook,
        t_hook: Hook,
        **kwargs: Any,
    ) -> Tensor | float:
        """Loss between captures: [] or, keep_batch, [b]; 0.0 if the method compares none.

        Keywords are LossContext's fields; another one is a TypeError.
        """
        ctx = LossContext(**kwargs)
        student, teacher = Captured(s_hook, s_inter_vars), Captured(t_hook, t_inter_vars)
        total: Tensor | float = 0.0
        for name, loss in self._all_layer_losses(student, teacher, ctx):
            total = total + loss
            if self.show_inter:
                self.add_summary(f"inter_loss/{name}", loss)
        return total

    def pre_loss(
        self,
        s_logits: Tensor,
        t_logits: Tensor | None,
        loss: Tensor,
        *,
        return_dict: bool = False,
        mse_t_w: float = 1.0,
        **kwargs: Any,
    ) -> Tensor | float | dict[str, Tensor | float]:
        """Soft and hard loss of the prediction layer: [] or, keep_batch, [b]; 0.0 if none is on.

        `loss` is the student's hard loss, [] or [b]. return_dict: `prediction_terms` and "loss".
        `mse_t_w`: the weight of the teacher's logits in it. Keywords are LossContext's fields;
        another one is a TypeError.
        """
        ctx = LossContext(**kwargs)
        targets = ctx.first_rows("targets") if self.needs_targets_only() else None
        given = Predictions(
            lazy_student=s_logits,
            lazy_teacher=t_logits,
            hard_loss=loss,
            teacher_weight=mse_t_w,
            places=None if targets is None else targets.index,
        )
        terms = self.prediction_terms(given, ctx)
        total = sum(terms.values(), start=0.0)
        return terms | {"loss": total} if return_dict else total

    def add_summary(self, name: str, value: Tensor | float) -> None:
        """Log a number of this step (its mean, if per sample). No effect on training."""
        if isinstance(value, Tensor):
            value = value.detach()
            value = value.float().mean() if value.dim() else value
        self.terms[name] = value

    def take_terms(self) -> dict[str, Tensor | float]:
        """What was logged since the last call."""
        terms, self.terms = self.terms, {}
        return terms

    def needs_targets_only(self) -> bool:
        """Whether `pre_loss` needs a language model's logits at target positions only.

        Those are then all that is computed: logits [n, v/p] instead of [b, s, v/p].
        """
        own = type(self).pre_loss is not GLMStudent.pre_loss
        return not own and self.soft_labels.targets_only

    def takes_lazily(self, name: str) -> bool:
        """Whether `pre_loss` or `inter_loss` is the base class's, or of one that says lazy_logits.

        So of all parts of a mix.
        """
        for method in (m for m in self.modules() if isinstance(m, GLMStudent)):
            scopes = (vars(each) for each in (method, *type(method).__mro__))
            if not next(s for s in scopes if name in s).get("lazy_logits", False):
                return False
        return True

    def handed(self, hook: Hook, inter_vars: list[Tensor]) -> list[Tensor]:
        """Captures as `inter_loss` takes them: numbers, if it is a class's own."""
        if self.takes_lazily("inter_loss") or logits() not in Captured(hook, inter_vars):
            return inter_vars
        place = hook[logits().path[0]]
        return [dense(x) if i == place else x for i, x in enumerate(inter_vars)]

    @classmethod
    def changes_pre_loss(cls) -> bool:
        """Whether the loss of the prediction layer is not the base class's alone."""
        names = "pre_loss", "prediction_terms"
        return any(getattr(cls, name) is not getattr(GLMStudent, name) for name in names)

    @property
    def vocab_map(self) -> VocabMap | None:
        """The GLM's map of a compressed vocabulary."""
        return getattr(self.origin_model, "vocab_map", None)

    @property
    def label_map(self) -> VocabMap | None:
        """That map, where the GLM's logits are over the ids that it keeps."""
        return getattr(self.origin_model, "label_map", None)

    def substitutes(self) -> Hook:
        """Edits with which a teacher reads what the student does: no dropped ids."""
        vocab_map = self.vocab_map
        if vocab_map is None:
            return {}
        return {"input_ids": lambda input_ids: vocab_map.substitutes(input_ids)}

    # The loss on the vocabulary's logits that every method can add: --distill_logits_parallel.

    def base_points(self) -> list[Point]:
        """What the base class captures in student and teachers, whatever the method does."""
        return [logits()] if self.args.distill.distill_logits_parallel else []

    def _all_layer_losses(
        self, student: Captured, teacher: Captured, ctx: LossContext
    ) -> Iterator[tuple[str, Tensor]]:
        name = "logits_parallel"
        for term, loss in self.layer_losses(student, teacher, ctx):
            if term == name:
                name = "distill_logits_parallel"  # the log keeps one number a name
            yield term, loss
        flags = self.args.distill
        if not flags.distill_logits_parallel:
            return
        pair = student.lazily(logits()), teacher.lazily(logits())
        rows = self._logit_rows(ctx)
        options = {"layout": logits().layout, "rows": rows, "keep_batch": ctx.keep_batch}
        if flags.distill_logit_mse:
            yield name, mse(*pair, **options)
        else:
            yield name, kl(*pair, temperature=flags.distill_temperature, **options)

    def _logit_rows(self, ctx: LossContext) -> Rows | None:
        padding = not self.args.distill.distill_logit_mask_pad
        return ctx.first_rows("all" if padding else "tokens", "tokens")


def build_student(
    language_model: nn.Module, run: RunArgs, shape: TaskShape | None = None
) -> nn.Module:
    """The student that --student_model asks for, around a GLM; without it the GLM itself.

    `shape`: sizes of the task, which combiners of several teachers may need.
    """
    import distill.methods  # noqa: F401 - fills METHODS
    from distill.teachers import build_combiner

    name = run.distill.student_model
    if name is None:
        return language_model
    student = METHODS[name](language_model, run)
    if run.teachers:
        student.multi_teacher_model = build_combiner(run, shape or TaskShape())
    return student


def find_student(module: nn.Module) -> GLMStudent | None:
    """The GLMStudent in a stack of heads and wrappers; None where a GLM is trained alone."""
    return next((m for m in module.modules() if isinstance(m, GLMStudent)), None)


def _to_file(name: str) -> str:
    return name[len(INNER) :] if name.startswith(INNER) else OWN + name


def _to_module(name: str) -> str:
    return name[len(OWN) :] if name.startswith(OWN) else INNER + name
