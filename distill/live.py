"""Live teachers: they are trained with the student, as a part of it.

--mt_has_grad: teacher i becomes `teacher_model_i` of the student, so that engine, optimizer and
checkpoints have its parameters (`student.teacher_model_i.*`). It runs in training mode, with
gradient, in the run's precision. What it learns from: the student's losses against it, which have a
gradient for it too, and with --mt_has_loss its own hard loss. Evaluation is the student's.

--mt_load_from_s=CHECKPOINT takes all teachers from such a checkpoint, to train them further or to
learn from them; --mt_model_load=CHECKPOINT takes the combiner's parameters from one.

--student_use_empty_glm leaves the student out: its logits are ones. So the teachers are trained
alone, together, on one stream of data.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import mpu
from config import ConfigError, RunArgs
from config.model import ModelArgs
from config.notes import warn
from distill.capture import to_hook
from distill.student import OWN, GLMStudent
from distill.teacher import TEACHER, Teacher
from model.build import HeadSpec
from model.cache import KeyValueCache
from mpu import Recorder

log = logging.getLogger(__name__)


class EmptyGLM(nn.Module):
    """No parameters; its logits (or hidden states) are ones. Captures nothing."""

    def __init__(self, args: ModelArgs, head: HeadSpec):
        super().__init__()
        shards = mpu.get_model_parallel_world_size() if head.kind == "lm" else 1
        words = args.vocab_size // shards
        self.width = args.hidden_size if head.kind == "classification" else words

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | int,
        *mems: Tensor,
        return_memory: bool = False,
        detach_memory: bool = True,
        output_rows: Tensor | None = None,
        hook: dict | None = None,
        hook_op: dict | None = None,
        cache: KeyValueCache | None = None,
    ) -> tuple:
        """As `GLMModel.forward`: ids [b, s] -> (ones [b, s, v/p] or [r, v/p],)."""
        shape = input_ids.shape if output_rows is None else output_rows.shape
        ones = torch.ones(*shape, self.width, device=input_ids.device)
        return Recorder(hook, hook_op).result((ones,))


def check_empty(student: GLMStudent, run: RunArgs) -> None:
    """ConfigError for a method that looks into a student that is left out."""
    hook = student.get_student_hook() or to_hook(student.base_points())
    if run.multi_teacher.student_use_empty_glm and hook:
        raise ConfigError(
            f"--student_use_empty_glm: --student_model={run.distill.student_model} compares what "
            "is inside the student; use --student_model=kd"
        )


def add_live_teachers(student: nn.Module, teachers: Sequence[Teacher]) -> None:
    """Make the teachers that are trained a part of the student."""
    for t_no, teacher in enumerate(teachers):
        if teacher.live:
            student.add_module(TEACHER.format(t_no), teacher.module)


def restore_combiner(student: nn.Module, run: RunArgs) -> None:
    """Put the combiner's parameters of --mt_model_load into the student's."""
    from distill.engine.checkpoint import load_weights

    path, name = run.multi_teacher.mt_model_load, "multi_teacher_model"
    combiner = getattr(student, name, None)
    if path is None or combiner is None or run.checkpoint.load is not None:
        return
    if not combiner.state_dict():
        warn(
            f"--mt_model_load: has no effect with --multi_teacher_model="
            f"{run.multi_teacher.combiner_name}, which has no parameters"
        )
        return
    load_weights(path, combiner, what="--mt_model_load", part=f"{OWN}{name}.")
