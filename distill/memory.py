"""What a training run needs of a device's memory, by part, without running it.

What stays for the whole run is counted: weights, gradients, optimizer, each over the ranks that
share it. What comes and goes in a step is found out by doing the step on PyTorch's meta device, on
which tensors have a shape but no memory: the very code of student, teachers and method, at its real
sizes, with a process group of pretended ranks. The bytes of tensors that are alive at once are
added up, op by op. So recomputation, captures, chunked losses and every method are what they are.

Not counted: what CUDA itself takes (0.5 to 1 GiB), the allocator's gaps (leave 10%), work space
inside kernels.
"""

import contextlib
import dataclasses
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental import _config as symbolic
from torch.utils._python_dispatch import TorchDispatchMode

import mpu
from config import RunArgs
from data_utils.batch import Batch
from distill.context import TrainState
from distill.engine.wrap import given
from distill.step import DistillStep
from distill.student import build_student
from distill.teacher import Teacher, TeacherOutput
from model.build import add_head, build_model
from tasks.base import Task

META = torch.device("meta")
TARGETS = 0.2  # part of the tokens of a pretraining sample that are predicted
BUCKET = 5e7  # elements of one buffer of DeepSpeed for gradients, two of them


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a run is spread over devices."""

    tensor_parallel: int = 1
    data_parallel: int = 1
    micro_batch: int = 1  # samples
    engine: str = "plain"  # or deepspeed
    stage: int = 0  # of ZeRO
    offload: bool = False  # optimizer states in host memory
    half: bool = False  # the student's weights in bf16 or fp16 (deepspeed)
    teacher_bytes: int = 4  # a parameter
    teacher_stage: int = 0  # 3: teachers cut over the data-parallel ranks


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Bytes of one device."""

    parameters: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    teacher: float = 0.0
    activations: float = 0.0  # of a step: all that is not told apart below
    captures: float = 0.0  # of the teachers
    logits: float = 0.0  # of teachers and student, where they exist whole

    @property
    def total(self) -> float:
        """All together."""
        return sum(dataclasses.astuple(self))


@dataclass(frozen=True)
class Transient:
    """Bytes of a step that come and go."""

    peak: float
    captures: float
    logits: float


# What stays --------------------------------------------------------------------------------------


def resident(student: nn.Module, teachers: list[nn.Module], layout: Layout) -> Usage:
    """What stays for the whole run. The modules are whole, on whatever device."""
    tp, dp = layout.tensor_parallel, layout.data_parallel
    own, largest = _parameters(student, tp)
    size = 2 if layout.half else 4
    cut = [dp if layout.stage >= s else 1 for s in (1, 2, 3)]  # optimizer, gradients, weights
    master = 4 if layout.engine == "deepspeed" and (layout.half or layout.stage) else 0
    parameters = size * own / cut[2] + (size * largest if layout.stage == 3 else 0)
    buckets = 2 * BUCKET * size if layout.engine == "deepspeed" and layout.stage in (1, 2) else 0
    gradients = size * own / cut[1] + min(buckets, 2 * size * own)
    optimizer = 0.0 if layout.offload else (8 + master) * own / cut[0]
    theirs = 0.0
    for module in teachers:
        number, unit = _parameters(module, tp)
        shared = dp if layout.teacher_stage == 3 else 1
        theirs += layout.teacher_bytes * (number / shared + (unit if shared > 1 else 0))
    return Usage(parameters=parameters, gradients=gradients, optimizer=optimizer, teacher=theirs)


def _parameters(module: nn.Module, tp: int) -> tuple[float, float]:
    """(all parameters of a rank, those of its largest layer or table: what is gathered at once)."""

    def on_rank(part: nn.Module) -> float:
        unique = {id(p): p for p in part.parameters()}.values()
        return sum(p.numel() / (1 if mpu.partition_of(p) is None else tp) for p in unique)

    stacks = [m for m in module.modules() if isinstance(m, nn.ModuleList)]
    layers = [on_rank(layer) for stack in stacks for layer in stack]
    tables = [on_rank(m) for m in module.modules() if isinstance(m, mpu.VocabParallelEmbedding)]
    return on_rank(module), max((*layers, *tables), default=0.0)


# What comes and goes -----------------------------------------------------------------------------


def build(run: RunArgs, task: Task, dtype: torch.dtype) -> tuple[nn.Module, list[nn.Module]]:
    """Student with head, and teachers, without memory."""
    with META:
        model = build_model(run.model, task.head)
        student = add_head(build_student(model, run, task.shape), task.head, run.model)
        teachers = []
        for args in run.teachers:
            shape = args.model_args(run.model)
            teachers.append(add_head(build_model(shape, task.head), task.head, shape))
    return student.to(dtype), teachers


def transient(
    run: RunArgs, task: Task, layout: Layout, *, seq_length: int, keep_gradients: bool = False
) -> Transient:
    """The most bytes of a step that are alive at once, weights and gradients left out.

    `keep_gradients`: with gradients as they come, as one process without DeepSpeed has them.
    """
    with _pretended_ranks(layout.tensor_parallel), _as_on_a_gpu():
        dtype = torch.bfloat16 if layout.half else torch.float32
        student, modules = build(run, task, dtype)
        if not keep_gradients:
            for parameter in student.parameters():
                parameter.register_post_accumulate_grad_hook(_let_go)
        half = torch.bfloat16 if layout.teacher_bytes == 2 else torch.float32
        teachers = [_Watched(module.to(half)) for module in modules]
        engine = _Engine(student.train())
        mpu.seed_step(run.train.seed, 0, 0, 0)
        step = DistillStep(task, engine, teachers, run, TrainState(), total=1)
        batch = sample(layout.micro_batch, seq_length)
        with LiveBytes(student, *modules) as live:
            output = step(batch, step.count([batch]))
            output.loss.backward()
    return Transient(
        live.peak, sum(t.captured for t in teachers), sum(2 * t.logits for t in teachers)
    )


def usage(run: RunArgs, task: Task, layout: Layout, *, seq_length: int) -> Usage:
    """All that one device needs."""
    student, teachers = build(run, task, torch.float32)
    stays = resident(student, teachers, layout)
    return with_step(stays, transient(run, task, layout, seq_length=seq_length))


def with_step(stays: Usage, step: Transient) -> Usage:
    """What stays and what comes and goes."""
    rest = max(step.peak - step.captures - step.logits, 0.0)
    return dataclasses.replace(stays, activations=rest, captures=step.captures, logits=step.logits)


def sample(size: int, length: int) -> Batch:
    """A pretraining micro-batch of full length; the last `TARGETS` of each sample are predicted."""
    context = length - int(length * TARGETS)
    position = torch.arange(1, length + 1).clamp(max=context)
    block = (torch.arange(length) - context + 1).clamp(min=0)
    mask = (torch.arange(length) >= context).long()
    return Batch(
        tokens=torch.ones(size, length, dtype=torch.long),
        position_ids=torch.stack((position, block)).expand(size, 2, length).contiguous(),
        attention_mask=torch.full((size,), context),
        labels=torch.ones(size, length, dtype=torch.long),
        loss_mask=mask.expand(size, length).contiguous(),
    )


def _let_go(parameter: nn.Parameter) -> None:
    parameter.grad = None


@dataclass
class _Engine:
    """A module without memory, as the step calls it."""

    module: nn.Module
    device: torch.device = META

    def __call__(
        self,
        *inputs: Any,
        output_rows: Tensor | None = None,
        hook: Any = None,
        hook_op: Any = None,
    ) -> Any:
        return self.module(*inputs, **given(output_rows, hook, hook_op))

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()


class _Watched(Teacher):
    """A teacher that remembers how large its answers were (bytes)."""

    captured = logits = 0

    def __call__(
        self, *args: Any, output_rows: Tensor | None = None, lazy_logits: bool = False
    ) -> TeacherOutput:
        output = super().__call__(*args, output_rows=output_rows, lazy_logits=lazy_logits)
        tensors = [x for x in output.captured if isinstance(x, Tensor)]
        whole = output.logits if isinstance(output.logits, Tensor) else None
        self.logits = 0 if whole is None else whole.nbytes
        self.captured = sum(x.nbytes for x in tensors if x is not whole)
        return output


class LiveBytes(TorchDispatchMode):
    """Bytes of all tensors that ops have made and that are still in use: now, and at most.

    The weights of `modules` are left out; those have to stay while it counts.
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
        self._known = {t.untyped_storage()._cdata: 0 for t in tensors}  # storage -> bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return torch.zeros((), dtype=args[0].dtype, device="cpu").item()  # `if x`: it is not
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._known.pop(key)


def _fused_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *_: Any) -> Tensor:
    """It keeps what a fused kernel keeps: no scores. The mask becomes a bias, as there."""
    bias = torch.empty(mask.shape, dtype=query.dtype, device=query.device)
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return fused(query, key, value, attn_mask=bias)[0]


@contextlib.contextmanager
def _pretended_ranks(size: int) -> Iterator[None]:
    """Model-parallel groups of this size, of which only this process exists; then as before.

    Whatever fails, no pretended group is left: a program that ends inside one takes itself for a
    rank among others, and leaves without a word to them.
    """
    assert not dist.is_initialized(), "memory is planned in a process without process groups"
    if size == 1:
        yield
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    alone = mpu.model_parallel_is_initialized()  # without process groups that is one of size 1
    mpu.destroy_model_parallel()
    try:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
        mpu.initialize_model_parallel(size)
        yield
    finally:
        mpu.destroy_model_parallel()
        if dist.is_initialized():
            dist.destroy_process_group()
        if alone:
            mpu.initialize_model_parallel(1)


@contextlib.contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    """What the meta device lacks: autocast, so types are those of the weights; fused attention."""
    real, asked = torch.autocast, torch.is_autocast_enabled

    def autocast(device: str, *args: Any, enabled: bool = True) -> Any:
        return (
            contextlib.nullcontext() if device == "meta" else real(device, *args, enabled=enabled)
        )

    def enabled(*device: str) -> bool:
        return False if device == ("meta",) else asked(*device)

    with (
        mock.patch.object(torch, "autocast", autocast),
        mock.patch.object(torch, "is_autocast_enabled", enabled),
        mock.patch.object(F, "scaled_dot_product_attention", _fused_attention),
        symbolic.patch(meta_nonzero_assume_all_nonzero=True),  # all rows count: the most there is
    ):
        yield
