"""Several methods over one GLM: which ones, with which arguments, and what each gets to see.

For `distill/methods/mixbaseline.py`. A part of a mix is a method without a GLM of its own; it asks
for captures and makes losses as if it were alone.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from config import ArgGroup, ConfigError, RunArgs
from distill.capture import Captured, Hook, Point, merge_hooks
from distill.context import Clock, LossContext, Predictions
from distill.lazy_logits import Logits, Planned
from distill.registry import METHODS, OWN_CLASS
from distill.soft_labels import SoftLabels
from distill.student import GLMStudent
from model.build import HeadSpec
from mpu.hook import leaves, merge_ops

PROJECTS = "TinyBERT"  # has a flag of its own for T; in the seed it projects all parts' captures
HIDDEN_STATES = ("layernorm_output", "output")  # last names of their paths
BASE = "KD"  # what the base class's soft labels are called in the log
STUDENT = -1  # beside the numbers of teachers


# What the flags say -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Part:
    """One method of a mix."""

    label: str  # in the log, and in checkpoints: student.<label>.
    name: str  # as a flag spells it
    inter: bool  # it compares what is inside the models
    pre: bool  # it has a loss of the prediction layer,
    hard: bool  # with the hard labels in it
    weight: float  # of all its losses
    run: RunArgs  # its own view of the run

    def weighed(self, planned: Iterable[Planned]) -> list[Planned]:
        """Plans of its own, as they count in the mix."""
        return [replace(plan, weight=plan.weight * self.weight) for plan in planned]


@dataclass(frozen=True, kw_only=True)
class Lists:
    """What the flags say to one program: names of methods, and numbers for all or for none."""

    names: tuple[str, ...]
    inter: tuple[str, ...]
    pre: tuple[str, ...]
    weights: tuple[float, ...]
    temperatures: tuple[float, ...]
    tinybert_temperature: float

    def labels(self) -> dict[str, str]:
        """Label -> name of every method once, in the order of the flags."""
        found: dict[str, str] = {}
        for name in self.names:
            found.setdefault(label_of(name), name)
        return found

    def parts(self, run: RunArgs) -> tuple[Part, ...]:
        """The parts, in the order of the flags."""
        inter, pre = ([label_of(name) for name in names] for names in (self.inter, self.pre))
        labels = self.labels()
        weights = self.weights or (1.0,) * len(labels)
        temperatures = self.temperatures or tuple(
            self.tinybert_temperature if label == PROJECTS else run.distill.distill_temperature
            for label in labels
        )
        return tuple(
            Part(
                label=label,
                name=name,
                inter=label in inter,
                pre=label in pre,
                hard=label in pre[-1:],
                weight=weight,
                run=_run_of(run, name, temperature, hard=label in pre[-1:]),
            )
            for (label, name), weight, temperature in zip(
                labels.items(), weights, temperatures, strict=True
            )
        )

    def problems(self, run: RunArgs, head: HeadSpec) -> Iterator[str]:
        """A line for each thing that is not clear, or that a part needs and this run lacks."""
        lines = [*self._unclear(), *(line for name in self.names for line in self._no_part(name))]
        yield from lines
        if lines:
            return
        used = [part for part in self.parts(run) if part.inter or part.pre]
        labels = SoftLabels.of(run)
        on = labels.soft or labels.hard or run.distill.distill_logits_parallel
        if not (used or on):
            yield (
                "--student_model=mixbaseline: has no method and no labels to learn from; name "
                f"methods by --mixbaseline_inter_bl, or add --distill_{labels.stage}_soft"
            )
        for part in used:
            yield from METHODS[part.name].problems(part.run, head)
            own = METHODS[part.name].changes_pre_loss()
            if part.pre and not (own or labels.soft or labels.hard):
                yield (
                    f"--mixbaseline_pre_bl_{labels.stage}_soft: {part.label} learns from soft and "
                    f"hard labels, which are off; add --distill_{labels.stage}_soft"
                )
            if part.pre and part.label == BASE and labels.stage == "ft":
                yield (
                    f"--mixbaseline_pre_bl_ft_soft: {BASE} is there already, by --distill_ft_soft "
                    "and --distill_temperature; leave it out"
                )

    def _unclear(self) -> Iterator[str]:
        labels = self.labels()
        for flag, values in (("weights", self.weights), ("temperatures", self.temperatures)):
            if values and len(values) != len(labels):
                yield (
                    f"--mixbaseline_{flag}: has {len(values)} values, --mixbaseline_inter_bl and "
                    f"--mixbaseline_pre_bl_* name {len(labels)} methods ({', '.join(labels)}); "
                    "give one value for each"
                )
        for names in (self.inter, self.pre):
            counts = Counter(METHODS[name] for name in names)
            for name in dict.fromkeys(map(label_of, names)):
                if counts[METHODS[labels[name]]] > 1:
                    yield f"--student_model=mixbaseline: {name} is listed twice; list it once"

    def _no_part(self, name: str) -> Iterator[str]:
        cls, where = METHODS[name], f"--student_model=mixbaseline: {name}"
        other = self.labels()[label_of(name)]
        if cls.Args.mixes is not ArgGroup.mixes:
            yield f"{where} is a mix itself; list its methods"
        if cls.forward is not GLMStudent.forward:
            yield f"{where} has a forward of its own, which a mix does not call; edit by hook_op"
        if METHODS[other] is not cls:
            yield f"{where} and {other} are both called {label_of(name)}; rename one class"


def label_of(name: str) -> str:
    """The seed's spelling of a method, by whatever name it is called: RAIL_KD for rail_kd."""
    cls = METHODS[name]
    names = [n for n, other in METHODS.items() if other is cls and not OWN_CLASS.fullmatch(n)]
    return next((n for n in names if n != n.lower()), names[0] if names else cls.__name__)


def _run_of(run: RunArgs, name: str, temperature: float, *, hard: bool) -> RunArgs:
    """A part's own view: its flags and temperature; what the mix does once is off."""
    off = {"distill_logits_parallel": False}
    if not hard:
        off |= {"distill_pt_hard": False, "distill_ft_hard": False}
    distill = replace(run.distill, student_model=name, distill_temperature=temperature, **off)
    return replace(run, method=run.mixed[name], mixed={}, distill=distill)


def read_words(text: str) -> tuple[str, ...]:
    """`"a, b"` -> ("a", "b")"""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def read_numbers(flag: str, text: str) -> tuple[float, ...]:
    """`"1,0.5"` -> (1.0, 0.5). ConfigError, naming the flag, for what is no number above 0."""
    found = []
    for word in read_words(text):
        try:
            found.append(float(word))
        except ValueError:
            found.append(math.nan)
        if not 0 < found[-1] < math.inf:
            raise ConfigError(f"{flag}={text}: {word!r} is no number above 0")
    return tuple(found)


# What runs ----------------------------------------------------------------------------------------


class Borrowed:
    """The mix's GLM as a part sees it: it can be asked, but belongs to the mix alone."""

    def __init__(self, model: nn.Module):
        self.model = model

    def __getattr__(self, name: str) -> Any:
        if name == "model" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.model, name)


class MixedStudent(GLMStudent):
    """A GLM and several methods: their points united, everything else handed on to each."""

    def __init__(self, language_model: nn.Module, args: RunArgs, lists: Lists):
        super().__init__(language_model, args)
        self.parts = lists.parts(args)
        for part in self.parts:
            self.add_module(part.label, METHODS[part.name](Borrowed(language_model), part.run))
        self._asked: dict[tuple[str, int], Hook] = {}  # what a part captures, in which model

    def of(self, parts: Iterable[Part]) -> list[GLMStudent]:
        """The methods of these parts."""
        return [getattr(self, part.label) for part in parts]

    @property
    def inter(self) -> list[Part]:
        """The parts that compare what is inside the models."""
        return [part for part in self.parts if part.inter]

    @property
    def pre(self) -> list[Part]:
        """The parts with a loss of the prediction layer."""
        return [part for part in self.parts if part.pre]

    def begin_step(self, clock: Clock) -> None:
        """For every part."""
        for method in self.of(self.parts):
            method.begin_step(clock)

    def begin_pass(self, clock: Clock) -> None:
        """For every part."""
        super().begin_pass(clock)
        for method in self.of(self.parts):
            method.begin_pass(clock)

    def method_state(self) -> dict[str, Any]:
        """Label -> what that part must remember; parts without are left out."""
        states = {part.label: getattr(self, part.label).method_state() for part in self.parts}
        return {label: state for label, state in states.items() if state}

    def load_method_state(self, values: dict[str, Any]) -> None:
        """Each part its own; a part that the saved run did not have begins anew."""
        for part in self.parts:
            if part.label in values:
                getattr(self, part.label).load_method_state(values[part.label])

    def gradient_points(self) -> list[Point]:
        """Those of all parts."""
        points = [point for method in self.of(self.inter) for point in method.gradient_points()]
        return list(dict.fromkeys(points))

    def take_gradients(self, gradients: dict[Point, Tensor]) -> None:
        """Each part gets what it asked for, of the gradient of the whole loss."""
        for method in self.of(self.inter):
            mine = {point: gradients[point] for point in method.gradient_points()}
            if mine:
                method.take_gradients(mine)

    def get_student_hook(self, hook_before_analysis: Hook | None = None) -> Hook:
        """All that a part asks for, and the base class."""
        hook = hook_before_analysis
        for part, method in zip(self.inter, self.of(self.inter), strict=True):
            asked = self._asked[part.label, STUDENT] = method.get_student_hook()
            hook = merge_hooks(hook, asked)
        return super().get_student_hook(hook)

    def get_teacher_hook(self, t_no: int = 0, hook_before_analysis: Hook | None = None) -> Hook:
        """All that a part asks for, and the base class."""
        hook = hook_before_analysis
        for part, method in zip(self.inter, self.of(self.inter), strict=True):
            asked = self._asked[part.label, t_no] = method.get_teacher_hook(t_no=t_no)
            hook = merge_hooks(hook, asked)
        return super().get_teacher_hook(t_no, hook)

    def get_student_hook_op(self, teacher_models: Sequence[nn.Module] = ()) -> Hook:
        """The edits of all parts; those of one tensor one after the other."""
        methods, models = self.of(self.inter), teacher_models
        return merge_ops(*(m.get_student_hook_op(teacher_models=models) for m in methods))

    def get_teacher_hook_op(self, t_no: int = 0, teacher_models: Sequence[nn.Module] = ()) -> Hook:
        """The edits of all parts; those of one tensor one after the other."""
        options = {"t_no": t_no, "teacher_models": teacher_models}
        return merge_ops(*(m.get_teacher_hook_op(**options) for m in self.of(self.inter)))

    def prediction_weights(self) -> tuple[float, float] | None:
        """Of the mix's own labels; None where the parts alone have some."""
        return (1.0, 1.0) if self.args.program == "finetune" or not self.pre else None

    def planned_predictions(self, student: Logits, ctx: LossContext) -> Iterator[Planned]:
        """The mix's own, then each part's times its weight."""
        yield from super().planned_predictions(student, ctx)
        for part, method in zip(self.pre, self.of(self.pre), strict=True):
            yield from part.weighed(method.planned_predictions(student, ctx))

    def planned_layers(self, student: Logits, ctx: LossContext) -> Iterator[Planned]:
        """The base class's, then each part's times its weight."""
        yield from super().planned_layers(student, ctx)
        for part, method in zip(self.inter, self.of(self.inter), strict=True):
            yield from part.weighed(method.planned_layers(student, ctx))

    def hard_weight(self) -> float:
        """The weights of the parts that have hard labels, too."""
        parts = zip(self.pre, self.of(self.pre), strict=True)
        own = sum(part.weight * method.hard_weight() for part, method in parts if part.hard)
        return super().hard_weight() + own

    def part_loss(
        self, part: Part, student: Captured, teacher: Captured, ctx: LossContext, again: bool
    ) -> Tensor | float:
        """`inter_loss` of a part on its captures, its terms told, times its weight.

        `again`: computed once more in the backward pass instead of keeping what that needs; not
        where the loss also counts something.
        """
        method = getattr(self, part.label)
        again = again and torch.is_grad_enabled() and not counts(method)
        hooks = [
            narrowed(captured.hook, self._asked.get((part.label, number), captured.hook))
            for captured, number in ((student, STUDENT), (teacher, ctx.t_no))
        ]

        def loss() -> Tensor | float:
            given = map(method.handed, hooks, (student.inter_vars, teacher.inter_vars))
            return method.inter_loss(*given, *hooks, **ctx.keywords())

        value = recomputed(method, loss) if again else loss()
        self._tell(part)
        return value * part.weight

    def part_pre_loss(self, part: Part, given: Predictions, ctx: LossContext) -> Tensor | float:
        """`pre_loss` of a part, its terms told, times its weight."""
        hard = given.hard_loss if part.hard else torch.zeros_like(given.hard_loss)
        method = getattr(self, part.label)
        value = method.pre_loss(given.lazy_student, given.lazy_teacher, hard, **ctx.keywords())
        self._tell(part)
        return value * part.weight

    def _tell(self, part: Part) -> None:
        """`inter_loss/x` of a part is `inter_loss/TinyBERT/x` of the mix."""
        for name, value in getattr(self, part.label).take_terms().items():
            kind, _, term = name.partition("/")
            self.add_summary(f"{kind}/{part.label}/{term}", value)

    def take_terms(self) -> dict[str, Tensor | float]:
        """What was logged since the last call, by a part while it made its hooks, too."""
        for part in self.parts:
            self._tell(part)
        return super().take_terms()


def narrowed(hook: Hook, asked: Hook) -> Hook:
    """Of a hook what one part asked for, with the indices found: {"a": 3, "b": 5} -> {"a": 3}."""
    return {
        key: narrowed(hook.get(key) or {}, below) if isinstance(below, dict) else hook.get(key)
        for key, below in asked.items()
    }


def projected(captured: Captured, fit: Callable[[Tensor], Tensor]) -> Captured:
    """D32: the captures with every hidden state put through `fit`."""
    changed = list(captured.inter_vars)
    for path, index in leaves(captured.hook):
        if index is not None and path[-1] in HIDDEN_STATES:
            changed[index] = fit(changed[index])
    return Captured(captured.hook, changed)


def recomputed(method: GLMStudent, loss: Callable[[], Tensor | float]) -> Tensor | float:
    """`loss()`, computed once more in the backward pass.

    By then the method may be in a later pass, so its clock is turned back meanwhile.
    """
    methods = students(method)
    then = [each.clock for each in methods]

    def compute() -> Tensor | float:
        """`loss()` at the clocks of then."""
        now = [each.clock for each in methods]
        _turn(methods, then)
        try:
            return loss()
        finally:
            _turn(methods, now)

    return checkpoint(compute, use_reentrant=False)


def counts(method: GLMStudent) -> bool:
    """Whether a loss, of a part of a mix perhaps, changes what the method remembers."""
    plain = (GLMStudent.method_state, MixedStudent.method_state)
    own = (type(each).method_state for each in students(method))
    return "D20" in method.args.compat or any(state not in plain for state in own)


def students(method: GLMStudent) -> list[GLMStudent]:
    """The method, and the parts of a mix."""
    return [each for each in method.modules() if isinstance(each, GLMStudent)]


def _turn(methods: Sequence[GLMStudent], clocks: Sequence[Clock]) -> None:
    for method, clock in zip(methods, clocks, strict=True):
        method.clock = clock
