"""Teachers: frozen models that answer on the student's inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from config import ConfigError, RunArgs, TeacherArgs
from distill.capture import Hook
from model.build import add_head, build_model
from mpu import hook_model
from tasks.base import Task


@dataclass(frozen=True)
class TeacherOutput:
    """What a teacher gives for one micro-batch, in fp32 and without gradient."""

    logits: Tensor | None  # as the student's; None: --mt_disable_operation
    captured: list[Tensor]  # the hook's leaves point into it


class Teacher:
    """A model that is never trained: in eval mode, without gradients, in its own precision."""

    def __init__(self, module: nn.Module):
        self.module = module.requires_grad_(False).eval()

    @torch.no_grad()
    def __call__(
        self,
        inputs: Sequence[Tensor],
        hook: Hook | None = None,
        hook_op: Hook | None = None,
        output_rows: Tensor | None = None,
    ) -> TeacherOutput:
        """One forward. The leaves of `hook` become indices into the captured tensors, in place.

        `output_rows`: as in `GLMModel.forward`.
        """
        options: dict[str, Any] = {"hook_op": hook_op} if hook_op else {}
        if output_rows is not None:
            options["output_rows"] = output_rows
        captured: list[Tensor] = []
        with torch.autocast(inputs[0].device.type, enabled=False):
            outputs = hook_model(hook or None, captured, self.module, *inputs, **options)
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        return TeacherOutput(logits.float(), in_fp32(captured))


def in_fp32(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Floating-point tensors in fp32, others as they are: what losses are computed on."""
    return [t.float() if t.is_floating_point() else t for t in tensors]


def build_teachers(
    run: RunArgs,
    task: Task,
    device: torch.device | str,
    *,
    fingerprint: str | None = None,
) -> tuple[Teacher, ...]:
    """All teachers of a run, loaded and on the device; () without --student_model.

    `fingerprint` is the student's tokenizer's. ConfigError: a teacher trained with another
    tokenizer or vocabulary, or without weights. ValueError: weights that do not fit.
    """
    return tuple(
        build_teacher(args, number, run, task, device, fingerprint)
        for number, args in enumerate(run.teachers)
    )


def build_teacher(
    args: TeacherArgs,
    number: int,
    run: RunArgs,
    task: Task,
    device: torch.device | str,
    fingerprint: str | None,
) -> Teacher:
    """Teacher `number` (0-based) with the task's head."""
    from distill.engine.checkpoint import load_weights

    model_args = args.model_args(run.model)
    seed = run.train.seed + 1 + number  # of weights that are not loaded: not the student's
    if not args.random_para:
        _check_source(args, number, run, fingerprint)
    module = build_model(model_args, task.head, seed=seed)
    module = add_head(module, task.head, model_args, seed=seed)
    if not args.random_para:
        load_weights(args.load_pretrained, module, what="--teacher_load_pretrained")
    dtype = torch.float16 if args.fp16 else torch.bfloat16 if args.bf16 else torch.float32
    return Teacher(module.to(device=device, dtype=dtype))


def _check_source(args: TeacherArgs, number: int, run: RunArgs, fingerprint: str | None) -> None:
    """ConfigError where a teacher's checkpoint cannot go with this student."""
    from distill.engine.checkpoint import check_tokenizer, read_config

    path, what = args.load_pretrained, "--teacher_load_pretrained"
    if path is None:
        raise ConfigError(
            f"{what}: teacher {number} has no weights; give its checkpoint, or "
            "--teacher_random_para for a test"
        )
    if fingerprint is not None:
        check_tokenizer(path, fingerprint, what=what)
    width = (read_config(path) or {}).get("model", {}).get("vocab_size")
    if width is not None and width != run.model.vocab_size:
        raise ConfigError(
            f"{what}={path}: has {width} vocabulary entries, the student {run.model.vocab_size}; "
            "use the same tokenizer and --make-vocab-size-divisible-by"
        )
