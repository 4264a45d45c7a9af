"""What stays on a device for a whole run, and what gradients and the update add: arithmetic.

Of DeepSpeed 0.19 it knows the buffers of each ZeRO stage (arXiv 1910.02054, section 3.1, and
deepspeed/runtime/zero); `tests/distill/test_zero_memory.py` compares it with what real ranks hold.
What comes and goes in a step is found by `distill/memory.py`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

import mpu

ALL_REDUCE = 5e8  # elements that DeepSpeed without ZeRO copies together to add them up


@dataclass(frozen=True, kw_only=True)
class ZeroBlock:
    """Settings of `zero_optimization` that take memory (elements), and DeepSpeed's defaults."""

    reduce_bucket_size: float = 5e8
    contiguous_gradients: bool = True
    overlap_comm: bool | None = None  # None: with stage 3
    sub_group_size: float = 1e9
    stage3_prefetch_bucket_size: float = 5e7
    stage3_max_reuse_distance: float = 1e9
    stage3_param_persistence_threshold: float = 1e5

    @classmethod
    def of(cls, block: Mapping[str, Any]) -> "ZeroBlock":
        """Of a DeepSpeed JSON's block; "auto" and what is absent have the defaults."""
        names = [f.name for f in dataclasses.fields(cls)]
        return cls(**{n: block[n] for n in names if block.get(n, "auto") not in ("auto", None)})


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a run is spread over devices."""

    tensor_parallel: int = 1
    data_parallel: int = 1
    micro_batch: int = 1  # samples
    accumulation: int = 1  # micro-batches of an optimizer step
    engine: str = "plain"  # or deepspeed
    stage: int = 0  # of ZeRO
    offload: bool = False  # optimizer states in host memory
    half: bool = False  # the student's weights in bf16 or fp16 (deepspeed)
    teacher_bytes: int = 4  # a parameter
    teacher_stage: int = 0  # 3: teachers cut over the data-parallel ranks
    zero: ZeroBlock = ZeroBlock()


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Bytes of one device when most is in use."""

    parameters: float = 0.0  # those gathered by ZeRO-3 included
    gradients: float = 0.0  # what they add to the most that is alive, and their buffers
    optimizer: float = 0.0
    teacher: float = 0.0
    activations: float = 0.0  # of a step: all that is not told apart below
    captures: float = 0.0  # of the teachers
    logits: float = 0.0  # of teachers and student, where they exist whole
    update: float = 0.0  # what the optimizer's step needs beyond what the backward pass had

    @property
    def total(self) -> float:
        """All together."""
        return sum(dataclasses.astuple(self))


@dataclass(frozen=True)
class Transient:
    """Bytes of a step that come and go."""

    peak: float  # each gradient let go when it is made
    kept: float  # all gradients kept
    captures: float
    logits: float


@dataclass(frozen=True)
class Counts:
    """Elements of a model-parallel rank's parameters."""

    all: float
    unit: float  # of the largest layer or table: what ZeRO-3 gathers at once
    largest: float  # of one parameter
    small: float  # of those that ZeRO-3 leaves whole

    @classmethod
    def of(cls, module: nn.Module, layout: Layout) -> "Counts":
        """The module is whole, on whatever device. Asked of `layout`: its TP and `zero`."""
        tp, limit = layout.tensor_parallel, layout.zero.stage3_param_persistence_threshold

        def sizes(part: nn.Module) -> list[float]:
            unique = {id(p): p for p in part.parameters()}.values()
            return [p.numel() / (1 if mpu.partition_of(p) is None else tp) for p in unique]

        stacks = [m for m in module.modules() if isinstance(m, nn.ModuleList)]
        units = [layer for stack in stacks for layer in stack]
        units += [m for m in module.modules() if isinstance(m, mpu.VocabParallelEmbedding)]
        own = sizes(module)
        return cls(
            sum(own),
            max((sum(sizes(part)) for part in units), default=0.0),
            max(own, default=0.0),
            sum(size for size in own if size <= limit),
        )


def account(own: Counts, teachers: Sequence[Counts], layout: Layout, step: Transient) -> Usage:
    """All that one device needs for a student of `own` parameters."""
    size = 2 if layout.half else 4
    buffers = _buffers(own.all, layout, size)
    gradients = _gradients(own.all, layout, size, step) + buffers
    update = _update(own.all, layout, size, buffers)
    if layout.offload and layout.stage < 3:
        gradients, update = gradients + size * own.largest, update + size * own.largest
    return Usage(
        parameters=_parameters(own, layout, size),
        gradients=gradients,
        optimizer=0.0 if layout.offload else _states(layout) * own.all / _cut(layout, 1),
        teacher=sum(_teacher(theirs, layout) for theirs in teachers),
        activations=max(step.peak - step.captures - step.logits, 0.0),
        captures=step.captures,
        logits=step.logits,
        update=max(update - gradients - step.peak, 0.0),
    )


def offloaded(own: Counts, layout: Layout) -> float:
    """Bytes of a process's host memory for the optimizer: states, gradients, staged weights."""
    if not layout.offload:
        return 0.0
    size = 2 if layout.half else 4
    share = (_states(layout) + 4 + size) * own.all / layout.data_parallel
    return share + (size * own.largest if layout.stage < 3 else 0.0)


def _cut(layout: Layout, stage: int) -> int:
    """Over how many ranks a part is cut from this stage on."""
    return layout.data_parallel if layout.stage >= stage else 1


def _states(layout: Layout) -> int:
    """Bytes of AdamW's moments a parameter and, where DeepSpeed has them, of its fp32 weights."""
    own_weights = layout.engine == "deepspeed" and (layout.half or layout.stage)
    return 8 + (4 if own_weights else 0)


def _parameters(own: Counts, layout: Layout, size: int) -> float:
    if layout.stage < 3:
        return size * own.all
    gathered = _gathered(own, layout.zero, reused=layout.zero.stage3_max_reuse_distance / 2)
    whole = min(own.all, own.small + gathered)  # the part of it that is this rank's counts once
    return size * (own.all / layout.data_parallel + whole * (1 - 1 / layout.data_parallel))


def _gathered(own: Counts, zero: ZeroBlock, reused: float) -> float:
    """A layer at work, those fetched ahead, and those kept, since the backward pass is near."""
    return own.unit + zero.stage3_prefetch_bucket_size + reused


def _teacher(own: Counts, layout: Layout) -> float:
    if layout.teacher_stage != 3:
        return layout.teacher_bytes * own.all
    gathered = min(own.all, _gathered(own, ZeroBlock(), reused=0.0))
    return layout.teacher_bytes * (own.all / layout.data_parallel + gathered)


def _buffers(own: float, layout: Layout, size: int) -> float:
    """Of gradients on their way to other ranks."""
    if layout.engine != "deepspeed" or layout.stage == 0:
        return 0.0
    zero = layout.zero
    if layout.stage == 3:  # one, for the whole run
        return size * zero.reduce_bucket_size * zero.contiguous_gradients
    number = 2 if zero.overlap_comm else 1
    most = zero.reduce_bucket_size
    return size * number * (most if zero.contiguous_gradients else min(most, own))


def _gradients(own: float, layout: Layout, size: int, step: Transient) -> float:
    """Gradients that are alive when most is: all, if they wait for further micro-batches."""
    if layout.stage == 3:
        share = 0.0 if layout.offload else own / layout.data_parallel
        waiting = min(layout.zero.reduce_bucket_size, own)  # and the shares made of them
        return size * (share + waiting * (1 + 1 / layout.data_parallel))
    if layout.stage == 2 and layout.offload:
        return 0.0
    cut = _cut(layout, 2)
    return size * own / cut if layout.accumulation > 1 else (step.kept - step.peak) / cut


def _update(own: float, layout: Layout, size: int, buffers: float) -> float:
    """Gradients around the optimizer's step, when a step's activations are gone."""
    share = own / layout.data_parallel
    if layout.stage == 0:
        sent = min(ALL_REDUCE, own) if layout.engine == "deepspeed" and share < own else 0.0
        return size * (own + sent) + 4 * own * layout.half
    if layout.stage == 3:
        group = min(share, layout.zero.sub_group_size)
        flat = 0.0 if layout.offload else size * share + (4 + size * layout.half) * group
        return flat + buffers
    flat = 0.0 if layout.offload else (2 * size + 4 * layout.half) * share
    reduced = size * (own + share) + buffers if layout.stage == 1 else 0.0  # all, and the share
    return max(reduced, flat)
