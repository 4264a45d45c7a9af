"""DistillStep: one micro-batch through the student and its teachers -> loss and named terms.

The only code that knows the order: hooks, student forward, hard loss, teachers, terms. It is the
same for pretraining and for every task, with and without teachers.

With --forward_repeat_num=k all of it is done k more times on the same micro-batch (a *pass*), and
the losses are added; with --ignore_first_backward_gard that of the first pass is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from config import ConfigError, RunArgs
from data_utils.batch import Batch
from distill.analysis import Analysis
from distill.capture import Captured, Hook, Point, merge_hooks, to_hook
from distill.combiner import chosen_combiner
from distill.comparison import Comparison, StudentPass, row_losses
from distill.context import Clock, LossContext, TrainState
from distill.kinds import Counts, count_step, kind_terms
from distill.lazy_forward import LOGITS, find_lazy, forward_lazily, is_large, is_partitioned
from distill.lazy_logits import Logits
from distill.random_data import RandomData
from distill.registry import METHODS
from distill.rows import Rows, exact_rows, local_rows, seed_rows
from distill.soft_labels import SoftLabels
from distill.student import GLMStudent, find_student
from distill.teacher import Teacher, in_fp32
from distill.text_memory import Memories
from model.build import HeadSpec
from mpu import hook_model
from mpu.layout import Layout
from tasks.base import Task, in_model_labels, token_mask, weighted

if TYPE_CHECKING:
    from distill.engine.wrap import Engine


GRADIENT_SCALE = 2.0**10  # of the first pass's gradient, so that half precision keeps it


@dataclass(frozen=True)
class StepOutput:
    """What a micro-batch gives."""

    loss: Tensor  # [] with gradient
    terms: dict[str, Tensor | float] = field(default_factory=dict)  # detached, in order: [] each,
    # or [2]: a sum and a count, whose ratio is told over many micro-batches


class DistillStep:
    """The training step of a run. `student` is the engine, so that wrappers see the forward."""

    def __init__(
        self,
        task: Task,
        student: "Engine",
        teachers: Sequence[Teacher],
        run: RunArgs,
        state: TrainState,
        *,
        total: int | None = None,
    ):
        """`total`: optimizer steps of the whole run; --train-iters if not given."""
        self.task, self.student, self.run, self.state = task, student, run, state
        self.total = run.train.train_iters if total is None else total
        self.teachers = tuple(teachers)
        self.memories = Memories(run, student.module, self.teachers)
        self.method = find_student(student.module)
        assert self.method is not None or not self.teachers, "teachers, but the student is a GLM"
        self._random_data = RandomData(run, run.model.vocab_size)
        self._analysis = Analysis(run)
        self.comparison: Comparison | None = None
        if self.method is not None and self.teachers:
            self.comparison = Comparison(self.method, self.teachers, task, run)
        lazy = self.comparison is None or self.comparison.takes_lazy_logits
        lazy = lazy and (task.hard_loss_by_rows() if task.vocab_parallel else True)
        self._glm = find_lazy(student.module) if lazy else None
        models = (student.module, *(teacher.module for teacher in self.teachers))
        self._cut = any(map(is_partitioned, models))
        if state.method:
            self.method.load_method_state(state.method)
        if state.combiner:
            self.comparison.combiner.load_combiner_state(state.combiner)

    def remember(self) -> None:
        """Bring what method and combiner must remember into the state, before a checkpoint."""
        if self.method is not None:
            self.state.method = self.method.method_state()
        if self.comparison is not None:
            self.state.combiner = self.comparison.combiner.combiner_state()

    def count(self, micro_batches: Sequence[Batch]) -> Counts:
        """Count the rows of an optimizer step: this rank's micro-batches. One all-reduce.

        On CPU batches it costs a GPU no synchronisation.
        """
        if self.method is not None:
            self.method.begin_step(self._clock(0, 0))
        masks = [self._masks(batch) for batch in micro_batches]
        groups = self.run.data, self.run.train
        return count_step(micro_batches, masks, *groups, self.student.device)

    def __call__(self, batch: Batch, counts: Counts, micro_step: int = 0) -> StepOutput:
        """All passes over one micro-batch, on whatever device it is."""
        self.memories.begin(micro_step, self.state.iteration)
        counts = counts.of(batch)
        if self.comparison is None:
            hard_rows = self._hard_rows(batch, self._masks(batch), counts)
            kinds, batch = self._kinds(batch), batch.to(self.student.device)
            lazy = self._lazy(batch, hard_rows, {})
            options = {} if lazy else self._output_rows(hard_rows)
            with self.student.autocast():
                logits = self._forward(self.task.inputs(batch), options, lazy=lazy)
            losses = row_losses(self.task, logits, self._own(batch), hard_rows)
            return StepOutput(hard_rows.mean(losses), kind_terms(kinds, losses, hard_rows))
        flags, losses, terms = self.run.distill, [], {}
        for repeat in range(1 + flags.forward_repeat_num):
            output = self._pass(batch, counts, self._clock(micro_step, repeat))
            if repeat > 0 or not flags.ignores_first_pass:
                losses.append(output.loss)
            terms |= output.terms
        return StepOutput(sum(losses[1:], start=losses[0]), terms)

    def _clock(self, micro_step: int, repeat: int) -> Clock:
        return Clock(
            iteration=self.state.iteration,
            total=self.total,
            epoch=self.state.epoch,
            micro_step=micro_step,
            repeat=repeat,
        )

    def _pass(self, batch: Batch, counts: Counts, clock: Clock) -> StepOutput:
        """One forward of student and teachers, and what they give."""
        batch, copies = self._random_data(batch, clock)
        counts = counts.times(copies)
        masks = self._masks(batch)
        hard_rows = self._hard_rows(batch, masks, counts)
        rows = self._rows(batch, masks, counts, hard_rows)
        output, student = self._distill(batch.to(self.student.device), rows, hard_rows, clock)
        of_kinds = kind_terms(self._kinds(batch), student.row_losses, hard_rows)
        terms = {name + student.suffix: pair for name, pair in of_kinds.items()}
        return StepOutput(output.loss, output.terms | terms)

    def _kinds(self, batch: Batch) -> Tensor | None:
        """[b] the kind of each sample, where the log tells their losses apart."""
        return batch.kinds if self.run.data.multi_task_ratio > 0 else None

    def _distill(
        self, batch: Batch, rows: dict[str, Rows], hard_rows: Rows, clock: Clock
    ) -> tuple[StepOutput, StudentPass]:
        method = self.method
        method.begin_pass(clock)
        method.take_terms()  # of a forward outside this step
        again = self.run.distill.forward_repeat_num > 0
        gradient_points = method.gradient_points() if clock.repeat == 0 and again else []
        student, raw = self._student_pass(batch, rows, hard_rows, clock, gradient_points)
        terms: dict[str, Tensor | float] = method.take_terms()  # of hooks and edits
        name = f"Train/hard_loss{student.suffix}"
        terms[name] = 0.0  # first in the log; known when a teacher's logits are
        loss = self.comparison(student, terms)
        terms[name] = student.hard_loss.detach()
        if self._analysis.wanted(clock):
            mask = rows["tokens"].mask
            found = self._analysis(self.student, self.teachers, student.inputs, mask)
            terms |= {name + student.suffix: value for name, value in found}
        if gradient_points:
            self._hand_gradients(loss, gradient_points, Captured(student.hook, raw))
        return StepOutput(loss, terms), student

    def _student_pass(
        self,
        batch: Batch,
        rows: dict[str, Rows],
        hard_rows: Rows,
        clock: Clock,
        gradient_points: Sequence[Point],
    ) -> tuple[StudentPass, list[Tensor]]:
        """The student's forward; its captures as they are, for gradients, besides."""
        method, inputs = self.method, self.task.inputs(batch)
        points = to_hook([*method.base_points(), *gradient_points])
        hook = merge_hooks(method.get_student_hook(), points)
        models = [teacher.module for teacher in self.teachers]
        hook_op = method.get_student_hook_op(teacher_models=models)
        lazy = self._lazy(batch, hard_rows, hook)
        targets_only = self.comparison.needs_targets_only and not lazy
        options = self._output_rows(hard_rows) if targets_only else {}
        raw: list[Tensor] = []
        # The engine would take the backward pass of a gradient for the step's own.
        alone = bool(gradient_points)
        with self.student.autocast():
            logits = self._forward(inputs, options, hook, hook_op, raw, lazy=lazy, alone=alone)
        student = StudentPass(
            task=self.task,
            batch=batch,
            own_batch=self._own(batch),
            inputs=inputs,
            logits=logits,
            hook=hook,
            captured=self.comparison.columns.of_student(hook, in_fp32(raw)),
            hard_rows=hard_rows,
            context=self._context(batch, rows),
            clock=clock,
            options={"lazy_logits": True} if lazy else options,
        )
        return student, raw

    def _forward(
        self,
        inputs: Sequence[Tensor],
        options: Mapping[str, Tensor],
        hook: Hook | None = None,
        hook_op: Hook | None = None,
        captured: list[Tensor] | None = None,
        *,
        lazy: bool = False,
        alone: bool = False,
    ) -> Tensor | Logits:
        """The student's logits; `alone`: of the module without its engine."""
        model = self.student.module if alone else self.student
        captured = [] if captured is None else captured
        if lazy:
            return forward_lazily(model, self._glm, inputs, hook, captured, hook_op)
        edits = {"hook_op": hook_op} if hook_op else {}
        outputs = hook_model(hook or None, captured, model, *inputs, **edits, **options)
        return outputs[0] if isinstance(outputs, tuple) else outputs

    def _lazy(self, batch: Batch, hard_rows: Rows, hook: Hook) -> bool:
        """Whether logits of this batch are never to be whole: they need not, and are many."""
        captured = LOGITS in hook
        if self._glm is None or not (self.task.vocab_parallel or captured):
            return False
        if self._cut:  # as the flags say, not as this rank's batch is
            return is_large(self._glm, self.run.train.batch_size * self.run.data.seq_length)
        targets_only = self.comparison is None or self.comparison.needs_targets_only
        number = batch.tokens.numel()
        if targets_only and not captured and hard_rows.index is not None:
            number = len(hard_rows.index)
        return is_large(self._glm, number)

    def _own(self, batch: Batch) -> Batch:
        """The batch with labels as the student's logits count words."""
        return in_model_labels(self.task, batch, self.student.module)

    def _hand_gradients(self, loss: Tensor, points: Sequence[Point], captured: Captured) -> None:
        """The gradient of the first pass's loss at the method's points; nothing accumulates it."""
        gradients = torch.autograd.grad(
            loss * GRADIENT_SCALE,
            [captured[point] for point in points],
            retain_graph=not self.run.distill.ignores_first_pass,
        )
        gradients = (gradient.float() / GRADIENT_SCALE for gradient in gradients)
        self.method.take_gradients(dict(zip(points, gradients, strict=True)))

    def _output_rows(self, rows: Rows) -> dict[str, Tensor]:
        """Of a language model only rows with a target are computed, where that saves work."""
        if rows.index is None or self.task.head.kind != "lm":
            return {}
        return {"output_rows": rows.index}

    def _context(self, batch: Batch, rows: dict[str, Rows]) -> LossContext:
        whole = self.task.vocab_parallel
        return LossContext(
            rows=rows,
            labels=batch.labels,
            loss_mask=batch.loss_mask if whole else None,
            logit_mask=batch.logit_mask,
            class_mask=None if "D6" in self.run.compat else self.task.class_mask(batch),
            layout=Layout.SHARD_LAST if whole else Layout.REPLICATED,
            token_mask=rows["tokens"].mask,
            keys=None if "D3" in self.run.compat else rows["tokens"].mask[:, None, None] > 0,
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
        return masks | {"sequences": masks["tokens"][:, 0]}  # its first position is a token

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


def check_needs(run: RunArgs, head: HeadSpec) -> None:
    """ConfigError with all that the method needs and this run lacks. No model is built yet."""
    name = run.distill.student_model
    if name is None:
        return
    combiner, args = chosen_combiner(run)
    problems = [
        *METHODS[name].problems(run, head),
        *combiner.problems(run, args, head),
        *Analysis.problems(run, head),
    ]
    if not all(teacher.runs for teacher in run.teachers) and SoftLabels.of(run).soft:
        problems.append(
            f"--mt_disable_operation={run.multi_teacher.mt_disable_operation}: soft labels need "
            "the teacher's forward; leave out one"
        )
    if problems:
        raise ConfigError(dict.fromkeys(problems))


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
    overrides = method.changes_pre_loss() or (type(method).inter_loss is not GLMStudent.inter_loss)
    alone = run.multi_teacher.trains_teachers_alone
    if not (hook or overrides or labels.soft or labels.hard or alone):
        stage = labels.stage
        raise ConfigError(
            f"{name}: no loss is on, so nothing would be learned; add --distill_{stage}_soft or "
            f"--distill_{stage}_hard, with --distill_soft_rate or --distill_hard_rate above 0"
        )
