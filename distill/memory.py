"""What a training run needs of a device's memory, by part, without running it.

What stays for the whole run is counted by `distill/resident.py`. What comes and goes in a step is
found out by doing the step on PyTorch's meta device, on which tensors have a shape but no memory:
the very code of student, teachers and method, at its real sizes, with a process group of pretended
ranks. The bytes of tensors that are alive at once are added up, op by op. So recomputation,
captures, chunked losses and every method are what they are.

Not counted: what CUDA itself takes (0.5 to 1 GiB), the allocator's gaps (leave 10%), work space
inside kernels.
"""

import contextlib
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
from distill.resident import Counts, Layout, Transient, Usage, account
from distill.step import DistillStep
from distill.student import build_student
from distill.teacher import Teacher, TeacherOutput
from model.build import add_head, build_model
from tasks.base import Task

META = torch.device("meta")
TARGETS = 0.2  # part of the tokens of a pretraining sample that are predicted


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


def transient(run: RunArgs, task: Task, layout: Layout, *, seq_length: int) -> Transient:
    """The most bytes of a step that are alive at once, weights left out."""
    with _pretended_ranks(layout.tensor_parallel), _as_on_a_gpu():
        dtype = torch.bfloat16 if layout.half else torch.float32
        student, modules = build(run, task, dtype)
        half = torch.bfloat16 if layout.teacher_bytes == 2 else torch.float32
        teachers = [_Watched(module.to(half)) for module in modules]
        engine = _Engine(student.train())
        mpu.seed_step(run.train.seed, 0, 0, 0)
        step = DistillStep(task, engine, teachers, run, TrainState(), total=1)
        batch = sample(layout.micro_batch, seq_length)
        with LiveBytes(student, *modules) as live:
            for parameter in student.parameters():
                parameter.register_post_accumulate_grad_hook(lambda p: live.put_aside(p.grad))
            output = step(batch, step.count([batch]))
            output.loss.backward()
    captured, logits = sum(t.captured for t in teachers), sum(2 * t.logits for t in teachers)
    return Transient(live.peak_without, live.peak, captured, logits)


def usage(run: RunArgs, task: Task, layout: Layout, *, seq_length: int) -> Usage:
    """All that one device needs."""
    student, teachers = build(run, task, torch.float32)
    own, *theirs = (Counts.of(module, layout) for module in (student, *teachers))
    return account(own, theirs, layout, transient(run, task, layout, seq_length=seq_length))


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

    The weights of `modules` are left out; those have to stay while it counts. `peak_without` is the
    most without tensors that were put aside.
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.now, self.peak, self.peak_without = 0, 0, 0
        tensors = [t for m in modules for t in (*m.parameters(), *m.buffers())]
        self._known = {t.untyped_storage()._cdata: 0 for t in tensors}  # storage -> bytes
        self._aside: dict[int, int] = {}
        self._all_aside = 0

    def put_aside(self, tensor: Tensor) -> None:
        """From now on it does not count in `peak_without`."""
        key = tensor.untyped_storage()._cdata
        if key in self._known and key not in self._aside:
            self._aside[key] = self._known[key]
            self._all_aside += self._known[key]

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
            self.peak_without = max(self.peak_without, self.now - self._all_aside)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._known.pop(key)
        self._all_aside -= self._aside.pop(key, 0)


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
