"""What a method or combiner costs, read from itself: passes, captured tensors, extra parameters.

It is built at its published sizes around an empty model: its hooks say what it captures.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from config import ModelArgs, RunArgs, parse_args
from distill.capture import Hook, to_hook
from distill.combiner import COMBINERS, Combiner, combiner_args
from distill.context import Clock
from distill.registry import METHODS, method_args
from distill.student import GLMStudent
from mpu.hook import leaves
from scripts.recipes import PUBLISHED, PUBLISHED_OF, Stage, command, recipes_of
from tasks.base import TaskShape

BYTES = 4  # fp32: losses are computed in it
#: Name at a hook's leaf -> (what it is, entries of one token: a symbol of the model's sizes).
KINDS = {
    "layernorm_output": ("hidden states", "h"),
    "output": ("hidden states", "h"),
    "tf_output": ("block outputs", "h"),
    "embeddings": ("embeddings", "h"),
    "words_embeddings": ("word vectors", "h"),
    "post_attention_layernorm": ("MLP inputs", "u"),
    "context_layer": ("attention contexts", "u"),
    "mixed_query_layer": ("queries", "u"),
    "mixed_key_layer": ("keys", "u"),
    "mixed_value_layer": ("values", "u"),
    "query_layer": ("queries", "u"),
    "key_layer": ("keys", "u"),
    "value_layer": ("values", "u"),
    "attention_scores": ("attention scores", "n s"),
    "attention_probs": ("attention probabilities", "n s"),
    "logits_parallel": ("logits", "v"),
}
PADDING = 128  # the vocabulary is padded to a multiple of it
CLASSES = 2  # of the task of fine-tuning stages
FRACTIONS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.99)  # of a run: staged methods capture ever more


@dataclass(frozen=True)
class Captures:
    """What one model keeps for the losses."""

    what: str  # "hidden states 0-6; attention scores 1-6"
    formula: str  # entries of one token: "7 h + 6 n s"
    entries: int  # the same as a number, at the published sizes

    @property
    def bytes(self) -> int:
        """Memory of one token."""
        return BYTES * self.entries


@dataclass(frozen=True)
class Cost:
    """The cost of one stage of a method."""

    stage: Stage
    student: Captures
    teacher: Captures
    student_passes: int
    teacher_passes: int
    takes_gradient: bool  # a backward pass in between
    parameters: dict[str, tuple[int, ...]]  # name -> shape, of all that the method adds
    trained: frozenset[str]  # those of them that are

    @property
    def entries(self) -> int:
        """Of a token, in both models together."""
        return self.student.entries + self.teacher.entries

    @property
    def added(self) -> int:
        """Number of added parameters."""
        return sum(math.prod(shape) for shape in self.parameters.values())


def cost(stage: Stage) -> Cost:
    """Of a stage with a method, at the published sizes and at its most costly moment."""
    sizes = PUBLISHED_OF.get(stage.recipe, PUBLISHED)
    words = command(stage, sizes)[1:]
    run = parse_args(words, program=stage.program, methods=method_args(), check=False)
    method = METHODS[stage.method](nn.Module(), run)
    models = run.model, run.teachers[0].model_args(run.model)
    student, teacher = max(
        (
            tuple(captures(hook, model) for hook, model in zip(hooks, models, strict=True))
            for hooks in moments(method, run)
        ),
        key=lambda pair: sum(each.entries for each in pair),
    )
    passes = 1 + run.distill.forward_repeat_num
    return Cost(
        stage=stage,
        student=student,
        teacher=teacher,
        student_passes=passes,
        teacher_passes=passes if run.teachers[0].runs else 0,
        takes_gradient=bool(method.gradient_points()),
        parameters={name: tuple(p.shape) for name, p in method.named_parameters()},
        trained=frozenset(n for n, p in method.named_parameters() if p.requires_grad),
    )


def methods() -> dict[str, type[GLMStudent]]:
    """The first name of every method of this package -> its class."""
    method_args()
    names: dict[type[GLMStudent], str] = {}
    for name, cls in METHODS.items():
        if cls.__module__.startswith("distill."):
            names.setdefault(cls, name)
    return {name: cls for cls, name in names.items()}


def most_costly(name: str) -> Cost:
    """The cost of the stage that captures most; the first of equals."""
    found = [cost(s) for recipe in recipes_of(name).values() for s in recipe if s.method == name]
    return max(found, key=lambda each: each.entries)


def moments(method: GLMStudent, run: RunArgs) -> Iterator[tuple[Hook, Hook]]:
    """The hooks of student and teacher in every pass of steps all over a run."""
    total = 1000
    for fraction in FRACTIONS:
        for repeat in range(1 + run.distill.forward_repeat_num):
            clock = Clock(iteration=int(fraction * total), total=total, repeat=repeat)
            method.begin_step(clock)
            method.begin_pass(clock)
            yield method.get_student_hook(), method.get_teacher_hook(t_no=0)


def captures(hook: Hook, model: ModelArgs) -> Captures:
    """What a hook asks for, in words and in numbers."""
    layers: dict[str, list[int]] = {}
    symbols: Counter[str] = Counter()
    for path, _ in leaves(hook):
        if path[-1] not in KINDS:  # position_ids: the model's own input
            continue
        what, symbol = KINDS[path[-1]]
        symbols[symbol] += 1
        number = model.num_layers if path[-1] == "output" else None
        if len(path) > 2:
            number = path[2] + (path[-1] != "layernorm_output")  # states from 0, layers from 1
        layers.setdefault(what, []).extend([] if number is None else [number])
    sizes = {
        "h": model.hidden_size,
        "u": model.inner_size,
        "n s": model.num_attention_heads * PUBLISHED.seq_length,
        "v": -(-model.vocab_size // PADDING) * PADDING,
    }
    if not model.inverted_bottleneck_mode:  # queries are as wide as the model
        symbols["h"] += symbols.pop("u", 0)
    symbols = +symbols
    return Captures(
        what="; ".join(f"{what} {spans(found)}".strip() for what, found in layers.items()),
        formula=" + ".join(f"{n if n > 1 else ''} {s}".strip() for s, n in symbols.items()),
        entries=sum(sizes[s] * n for s, n in symbols.items()),
    )


def spans(numbers: Iterable[int]) -> str:
    """`0-6`, or `0, 2, ... 12`, or the numbers one by one."""
    found = sorted(set(numbers))
    steps = {b - a for a, b in zip(found, found[1:], strict=False)}
    if len(found) > 2 and steps == {1}:
        return f"{found[0]}-{found[-1]}"
    if len(found) > 3 and len(steps) == 1:
        return f"{found[0]}, {found[1]}, ... {found[-1]}"
    return ", ".join(map(str, found))


@dataclass(frozen=True)
class CombinerCost:
    """The cost of combining teachers in one stage, at the published sizes."""

    stage: Stage
    teachers: int
    passes: float  # of teachers in a step; a mean where they are drawn
    captured: dict[int, Captures]  # in teachers for the combiner itself, by number
    hard_losses: bool  # those of every teacher
    per_sample: bool  # losses of each sample instead of their mean
    every_position: bool  # of a language model: logits at all positions, not at targets only
    parameters: dict[str, tuple[int, ...]]  # name -> shape, of all that the combiner adds
    trained: frozenset[str]  # those of them that are

    @property
    def added(self) -> int:
        """Number of added parameters."""
        return sum(math.prod(shape) for shape in self.parameters.values())


def combiner_cost(stage: Stage) -> CombinerCost:
    """Of a stage that combines teachers."""
    words = command(stage, PUBLISHED)[1:]
    kinds = {"methods": method_args(), "combiners": combiner_args()}
    run = parse_args(words, program=stage.program, **kinds, check=False)
    combiner = COMBINERS[stage.combiner](run, run.combiner, TaskShape(classes=CLASSES))
    runs = [t_no for t_no in range(len(run.teachers)) if combiner_runs(combiner, t_no)]
    captured = {
        t_no: captures(to_hook(points), run.teachers[t_no].model_args(run.model))
        for t_no in runs
        if (points := [p for part in combiner.parts for p in part.teacher_points(t_no)])
    }
    return CombinerCost(
        stage=stage,
        teachers=len(run.teachers),
        passes=len(runs) * getattr(run.combiner, "avgmt_teacher_survival_p", 1.0),
        captured=captured,
        hard_losses=any(part.needs_teacher_loss for part in combiner.parts),
        per_sample=any(any(part.per_sample) for part in combiner.parts),
        every_position=combiner.needs_all_logits,
        parameters={name: tuple(p.shape) for name, p in combiner.named_parameters()},
        trained=frozenset(n for n, p in combiner.named_parameters() if p.requires_grad),
    )


def combiner_runs(combiner: Combiner, t_no: int) -> bool:
    """Whether any part of it asks for this teacher."""
    return any(part.runs(t_no) for part in combiner.parts)


def combiners() -> dict[str, type[Combiner]]:
    """The first name of every combiner -> its class."""
    combiner_args()
    names: dict[type[Combiner], str] = {}
    for name, cls in COMBINERS.items():
        names.setdefault(cls, name)
    return {name: cls for cls, name in names.items()}
