"""Teachers: models that answer on the student's inputs. Frozen, unless they are trained with it."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from config import ConfigError, RunArgs
from config.notes import warn
from distill.capture import Hook
from distill.lazy_forward import find_lazy, forward_lazily
from distill.lazy_logits import Logits
from distill.offload import Offloaded, Slot
from model.build import add_head, build_model
from mpu import hook_model
from tasks.base import Task

TEACHER = "teacher_model_{}"  # in the student, of a teacher that is trained; see `distill.live`
IN_FILE = "student.teacher_model_{}."  # and in checkpoints


@dataclass(frozen=True)
class TeacherOutput:
    """What a teacher gives for one micro-batch, in fp32; with gradient only if it is trained."""

    logits: Tensor | Logits | None  # as the student's; None: --mt_disable_operation
    captured: list[Tensor]  # the hook's leaves point into it


class Teacher:
    """A frozen model: in eval mode, without gradients, in its own precision.

    A *live* one is trained: in the mode of the module it is a part of, with gradients. Where
    gradients are off it runs as a frozen one would.
    """

    def __init__(
        self, module: nn.Module, *, live: bool = False, autocast: torch.dtype | None = None
    ):
        """`autocast`: what a live teacher computes in, if its weights are in fp32."""
        self.module, self.live, self._autocast = module, live, autocast
        self._offloaded: Offloaded | None = None
        if not live:
            module.requires_grad_(False).eval()

    def offload(self, slot: Slot) -> None:
        """From now on its weights are in host memory, and only while it runs in this slot."""
        assert not self.live, "weights that change stay on the device"
        self._offloaded = Offloaded(self.module, slot)

    def __call__(
        self,
        inputs: Sequence[Tensor],
        hook: Hook | None = None,
        hook_op: Hook | None = None,
        output_rows: Tensor | None = None,
        *,
        lazy_logits: bool = False,
    ) -> TeacherOutput:
        """One forward. The leaves of `hook` become indices into the captured tensors, in place.

        `output_rows`: as in `GLMModel.forward`. `lazy_logits`: see `distill.lazy_forward`.
        """
        options: dict[str, Any] = {"hook_op": hook_op} if hook_op else {}
        if output_rows is not None:
            options["output_rows"] = output_rows
        captured: list[Tensor] = []
        with self._ready(inputs[0].device.type):
            if lazy_logits:
                glm, away = find_lazy(self.module), self._offloaded is not None
                logits = forward_lazily(
                    self.module, glm, inputs, hook, captured, hook_op, keep_table=away
                )
                return TeacherOutput(logits, in_fp32(captured))
            outputs = hook_model(hook or None, captured, self.module, *inputs, **options)
            logits = outputs[0] if isinstance(outputs, tuple) else outputs
            return TeacherOutput(logits.float(), in_fp32(captured))

    @contextlib.contextmanager
    def _ready(self, device: str) -> Iterator[None]:
        """Weights on the device, gradients as they are wanted, the precision its own."""
        learns = self.live and torch.is_grad_enabled()
        training = self.module.training
        half = torch.autocast(device, self._autocast, enabled=self._autocast is not None)
        with (
            self._offloaded.fetched() if self._offloaded else contextlib.nullcontext(),
            torch.set_grad_enabled(learns),
            half,
        ):
            if training and not learns:
                self.module.eval()
            yield
        if training and not learns:
            self.module.train()


def in_fp32(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Floating-point tensors in fp32, others as they are: what losses are computed on."""
    return [t.float() if isinstance(t, Tensor) and t.is_floating_point() else t for t in tensors]


def build_teachers(
    run: RunArgs,
    task: Task,
    device: torch.device | str,
    *,
    fingerprint: str | None = None,
) -> tuple[Teacher, ...]:
    """All teachers of a run, loaded, on the device or beside it; () without --student_model.

    `fingerprint` is the student's tokenizer's. ConfigError, before any weights are read: teachers
    trained with another tokenizer or vocabulary, or without weights. ValueError: weights that do
    not fit.
    """
    check_teachers(run, fingerprint)
    slot, device = None, torch.device(device)
    if run.teachers and run.multi_teacher.teacher_offload == "cpu":
        if device.type == "cuda":
            slot = Slot(device)
        else:
            warn("--teacher_offload=cpu: has no effect on a CPU, where teachers are anyway")
    numbers = range(len(run.teachers))
    return tuple(build_teacher(t_no, run, task, device, slot) for t_no in numbers)


def build_teacher(
    t_no: int, run: RunArgs, task: Task, device: torch.device, slot: Slot | None = None
) -> Teacher:
    """Teacher `t_no` (from 0) with the task's head; with a slot its weights stay on the host."""
    from distill.engine.checkpoint import load_weights

    args, group = run.teachers[t_no], run.multi_teacher
    model_args = args.model_args(run.model)
    seed = run.train.seed + 1 + t_no  # of weights that are not loaded: not the student's
    module = build_model(model_args, task.head, seed=seed)
    module = add_head(module, task.head, model_args, seed=seed)
    if group.mt_load_from_s is not None:
        part = IN_FILE.format(t_no)
        what = "--mt_load_from_s"
        load_weights(group.mt_load_from_s, module, what=what, part=part, any_shards=True)
    elif not args.random_para:
        what = group.flag_of(t_no, "load_pretrained")
        load_weights(args.load_pretrained, module, what=what, any_shards=True)
    if group.mt_has_grad:
        return Teacher(module.to(device), live=True, autocast=_precision(run))
    dtype = torch.float16 if args.fp16 else torch.bfloat16 if args.bf16 else torch.float32
    if slot is None:
        return Teacher(module.to(device=device, dtype=dtype))
    teacher = Teacher(module.to(dtype))
    teacher.offload(slot)
    return teacher


def _precision(run: RunArgs) -> torch.dtype | None:
    """What the student's engine computes in, where the weights say nothing of it."""
    if run.parallel.deepspeed:
        return None
    if run.precision.fp16:
        return torch.float16
    return torch.bfloat16 if run.precision.bf16 else None


def check_teachers(run: RunArgs, fingerprint: str | None) -> None:
    """ConfigError with a line for each teacher that cannot go with this student."""
    problems = []
    for t_no in range(len(run.teachers)):
        try:
            _check_source(t_no, run, fingerprint)
        except (FileNotFoundError, ValueError) as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(dict.fromkeys(problems))


def _check_source(t_no: int, run: RunArgs, fingerprint: str | None) -> None:
    """An error where a teacher's checkpoint cannot go with this student."""
    from distill.engine.checkpoint import check_tokenizer, read_config, tag_folder

    args, group = run.teachers[t_no], run.multi_teacher
    path, what = args.load_pretrained, group.flag_of(t_no, "load_pretrained")
    if group.mt_load_from_s is not None:
        path, what = group.mt_load_from_s, "--mt_load_from_s"
    elif args.random_para:
        return
    if path is None:
        raise ConfigError(
            f"{what}: teacher {t_no} has no weights; give its checkpoint, or "
            "--teacher_random_para for a test"
        )
    tag_folder(path, what=what, prefer_best=True)
    if fingerprint is not None:
        check_tokenizer(path, fingerprint, what=what)
    width = (read_config(path) or {}).get("model", {}).get("vocab_size")
    if width is not None and width != run.model.vocab_size:
        raise ConfigError(
            f"{what}={path}: has {width} vocabulary entries, the student {run.model.vocab_size}; "
            "use the same tokenizer and --make-vocab-size-divisible-by"
        )
