"""DistillStep: one micro-batch through the student and its teachers -> loss and named terms.

The only code that knows the order: hooks, student forward, hard loss, teachers, terms. It is the
same for pretraining and for every task, with and without teachers.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from config import ConfigError, RunArgs
from data_utils.batch import Batch
from distill.capture import Hook, merge_hooks, to_hook
from distill.context import LossContext, TrainState
from distill.rows import Rows, count_rows, exact_rows, local_rows, seed_rows
from distill.student import GLMStudent, find_student
from distill.teacher import Teacher, in_fp32
from distill.teachers.combine import average
from model.build import HeadSpec
from mpu import hook_model
from mpu.layout import Layout
from tasks.base import Task, token_mask, weighted

if TYPE_CHECKING:
    from distill.engine.wrap import Engine


@dataclass(frozen=True)
class Counts:
    """Divisors of all row masks, for one optimizer step."""

    totals: Mapping[str, Tensor]  # name -> []


@dataclass(frozen=True)
class StepOutput:
    """What a micro-batch gives."""

    loss: Tensor  # [] with gradient
    terms: dict[str, Tensor | float] = field(default_factory=dict)  # [] each, detached, in order


class DistillStep:
    """The training step of a run. `student` is the engine, so that wrappers see the forward."""

    def __init__(
        self,
        task: Task,
        student: "Engine",
        teachers: Sequence[Teacher],
        run: RunArgs,
        state: TrainState,
    ):
        self.task, self.student, self.run, self.state = task, student, run, state
        self.teachers = tuple(teachers)
        self.method = find_student(student.module)
        assert self.method is not None or not self.teachers, "teachers, but the student is a GLM"

    def count(self, micro_batches: Sequence[Batch]) -> Counts:
        """Count the rows of an optimizer step: this rank's micro-batches. One all-reduce.

        On CPU batches it costs a GPU no synchronisation.
        """
        return Counts(
            count_rows(
                [self._masks(batch) for batch in micro_batches],
                accumulation=self.run.train.gradient_accumulation_steps,
                device=self.student.device,
            )
        )

    def __call__(self, batch: Batch, counts: Counts) -> StepOutput:
        """Forward of one micro-batch, on whatever device it is."""
        masks = self._masks(batch)
        hard_rows = self._hard_rows(batch, masks, counts)
        if self.method is None or not self.teachers:
            batch = batch.to(self.student.device)
            options = self._output_rows(hard_rows)
            outputs = self.student(*self.task.inputs(batch), **options)
            return StepOutput(self._hard_loss(_logits(outputs), batch, hard_rows))
        rows = self._rows(batch, masks, counts, hard_rows)
        return self._distill(batch.to(self.student.device), rows, hard_rows)

    def _distill(self, batch: Batch, rows: dict[str, Rows], hard_rows: Rows) -> StepOutput:
        method, inputs = self.method, self.task.inputs(batch)
        base = to_hook(method.base_points())
        hook = merge_hooks(method.get_student_hook(), base)
        hook_op = method.get_student_hook_op(teacher_models=self._teacher_models())
        options = self._output_rows(hard_rows) if method.needs_targets_only() else {}
        captured: list[Tensor] = []
        outputs = _forward(self.student, inputs, hook, hook_op, captured, options)
        logits, captured = _logits(outputs), in_fp32(captured)
        hard_loss = self._hard_loss(logits, batch, hard_rows)
        method.take_terms()  # of a forward outside this step
        terms: dict[str, Tensor | float] = {"Train/hard_loss": hard_loss.detach()}
        losses = []
        for t_no, teacher in enumerate(self.teachers):
            t_hook = merge_hooks(method.get_teacher_hook(t_no=t_no), base)
            t_hook_op = method.get_teacher_hook_op(t_no=t_no, teacher_models=self._teacher_models())
            output = teacher(inputs, t_hook, t_hook_op, **options)
            context = self._context(batch, rows, t_no).keywords()
            # Staged methods rely on the order: prediction layer first.
            loss = method.pre_loss(logits, output.logits, hard_loss, **context)
            loss = loss + method.inter_loss(captured, output.captured, hook, t_hook, **context)
            losses.append(_as_tensor(loss, logits))
            for name, value in method.take_terms().items():
                terms[f"{name}_t{t_no}"] = value
            terms[f"teacher_loss/teacher_{t_no}_t{t_no}"] = losses[-1].detach()
        return StepOutput(average(losses), terms)

    def _teacher_models(self) -> list[nn.Module]:
        return [teacher.module for teacher in self.teachers]

    def _output_rows(self, rows: Rows) -> dict[str, Tensor]:
        """Of a language model only rows with a target are computed, where that saves work."""
        if rows.index is None or self.task.head.kind != "lm":
            return {}
        return {"output_rows": rows.index}

    def _hard_loss(self, logits: Tensor, batch: Batch, rows: Rows) -> Tensor:
        """[] exact mean over the rows. Logits of all rows, or [n, v/p] of those with a target."""
        if rows.index is None:
            return rows.mean(self.task.hard_loss(logits, batch))
        picked = dataclasses.replace(batch, labels=rows.pick(batch.labels)[None])
        logits = rows.pick(logits) if logits.dim() == 3 else logits
        return rows.mean(self.task.hard_loss(logits[None], picked)[0])

    def _context(self, batch: Batch, rows: dict[str, Rows], t_no: int) -> LossContext:
        whole = self.task.vocab_parallel
        return LossContext(
            rows=rows,
            t_no=t_no,
            labels=batch.labels,
            loss_mask=batch.loss_mask if whole else None,
            logit_mask=batch.logit_mask,
            class_mask=None if "D6" in self.run.compat else self.task.class_mask(batch),
            layout=Layout.SHARD_LAST if whole else Layout.REPLICATED,
            iteration=self.state.iteration,
            epoch=self.state.epoch,
        )

    def _masks(self, batch: Batch) -> dict[str, Tensor]:
        """The task's row masks; under D6 padded choices stay in."""
        masks = dict(self.task.row_masks(batch))
        with_choices = batch.choice_mask is not None and batch.tokens.dim() == 3
        if with_choices and "D6" in self.run.compat:
            masks["tokens"] = weighted(token_mask(batch.position_ids.flatten(0, 1)), batch.weight)
            if batch.logit_mask is not None:
                answers = batch.logit_mask.flatten(0, 1).float()
                masks["answers"] = weighted(answers, batch.weight)
        return masks

    def _hard_rows(self, batch: Batch, masks: Mapping[str, Tensor], counts: Counts) -> Rows:
        """What the hard loss is a mean over."""
        name, number = self.task.hard_rows, self.task.num_samples(batch)
        if "D3" in self.run.compat:
            return local_rows(masks[name], number).to(self.student.device)
        return exact_rows({name: masks[name]}, counts.totals, number, self.student.device)[name]

    def _rows(
        self, batch: Batch, masks: Mapping[str, Tensor], counts: Counts, hard_rows: Rows
    ) -> dict[str, Rows]:
        """What soft and intermediate losses are means over, by name."""
        device = self.student.device
        if "D3" in self.run.compat:
            return {name: r.to(device) for name, r in seed_rows(masks, batch.weight).items()}
        name, number = self.task.hard_rows, self.task.num_samples(batch)
        others = {key: mask for key, mask in masks.items() if key != name}
        rows = exact_rows(others, counts.totals, number, device) | {name: hard_rows}
        return rows | {"all": rows["tokens"]}


def check_method(method: GLMStudent, head: HeadSpec, run: RunArgs) -> None:
    """ConfigError for captures that the head cannot give, and for a method without any loss."""
    name = f"--student_model={run.distill.student_model}"
    hook = merge_hooks(method.get_student_hook(), to_hook(method.base_points()))
    if head.kind == "classification" and "logits_parallel" in hook:
        raise ConfigError(
            f"{name}: compares vocabulary logits, which a classification head does not have; "
            "fine-tune with --cloze-eval"
        )
    if head.kind == "multi_token_fast" and hook:
        raise ConfigError(
            f"{name}: compares what is inside the models, which --fast-decode computes for "
            "contexts and answers apart; leave out --fast-decode"
        )
    labels = method.soft_labels
    overrides = (
        type(method).pre_loss is not GLMStudent.pre_loss
        or type(method).inter_loss is not GLMStudent.inter_loss
    )
    if not (hook or overrides or labels.soft or labels.hard):
        stage = labels.stage
        raise ConfigError(
            f"{name}: no loss is on, so nothing would be learned; add --distill_{stage}_soft or "
            f"--distill_{stage}_hard, with --distill_soft_rate or --distill_hard_rate above 0"
        )


def _forward(
    model: "Engine",
    inputs: Sequence[Tensor],
    hook: Hook,
    hook_op: Hook,
    captured: list[Tensor],
    options: Mapping[str, Tensor],
) -> object:
    """Call with hooks only where there are some."""
    edits = {"hook_op": hook_op} if hook_op else {}
    return hook_model(hook or None, captured, model, *inputs, **edits, **options)


def _logits(outputs: object) -> Tensor:
    return outputs[0] if isinstance(outputs, tuple) else outputs


def _as_tensor(loss: Tensor | float, like: Tensor) -> Tensor:
    """A method without a term returns 0.0: still a tensor that backward accepts."""
    return loss if isinstance(loss, Tensor) else like.flatten()[:1].sum() * 0.0 + loss
