"""Comparison: the student's forward against every teacher's -> one loss and its named terms.

The loop over teachers, once. For each that runs in this pass: hooks, forward, the method's two
losses for each part of the combiner that compares it, and then its captures are gone.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from config import RunArgs
from config.notes import warn
from data_utils.batch import Batch
from distill.capture import Captured, Hook, logits, merge_hooks, to_hook
from distill.combiner import Answer, Combination, Combiner
from distill.context import Clock, LossContext
from distill.lazy_forward import find_lazy
from distill.lazy_logits import Logits, Planned
from distill.mix import counts, recomputed
from distill.rows import Rows
from distill.student import AFTER, GLMStudent
from distill.teacher import Teacher, TeacherOutput
from distill.teachers import build_combiner
from distill.vocabulary import Columns
from mpu.row_losses import RowLoss
from tasks.base import Task

Terms = dict[str, Tensor | float]


@dataclass(frozen=True)
class StudentPass:
    """The student's part of a pass."""

    task: Task
    batch: Batch
    own_batch: Batch  # with labels as the student's logits count words
    inputs: tuple[Tensor, ...]
    logits: Tensor | Logits  # [b, s, v/p], [n, v/p] of the rows with a target, or [b, c]
    hook: Hook
    captured: list[Tensor]
    hard_rows: Rows
    context: LossContext
    clock: Clock
    options: dict[str, Any]  # of every teacher's forward: output_rows, lazy_logits

    @cached_property
    def hard_loss(self) -> Tensor:
        """[]"""
        return self.hard_rows.mean(self.row_losses)

    @cached_property
    def hard_losses(self) -> Tensor:
        """[b], their mean is hard_loss."""
        return self.hard_rows.mean(self.row_losses, keep_batch=True)

    @cached_property
    def hard_term(self) -> RowLoss | None:
        """The hard loss of lazy logits; one object, so that it is computed once."""
        return self.task.hard_rows_term(self.own_batch)

    @cached_property
    def row_losses(self) -> Tensor:
        """Of every row, or of the picked ones."""
        term = self.hard_term if isinstance(self.logits, Logits) else None
        return row_losses(self.task, self.logits, self.own_batch, self.hard_rows, term)

    @property
    def suffix(self) -> str:
        """What the names of this pass's terms end with."""
        return f"_repeat{self.clock.repeat}" if self.clock.repeat else ""


@dataclass
class Tally:
    """What one part of the combiner has so far."""

    part: Combiner
    make: Callable[[], Combination]
    losses: list[Tensor | float] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    @cached_property
    def made(self) -> Combination:
        """Made when it is asked for: a lazy hard loss is computed with the first teacher's."""
        return self.make()


class Comparison:
    """Of one method with its teachers."""

    def __init__(self, method: GLMStudent, teachers: Sequence[Teacher], task: Task, run: RunArgs):
        self.method, self.teachers, self.task, self.run = method, teachers, task, run
        self.columns = Columns(method, task, run.distill.distill_logit_mask_map)
        self.combiner = method.multi_teacher_model or build_combiner(run, task.shape)
        needed = any(part.needs_teacher_loss for part in self.combiner.parts)
        if run.multi_teacher.mt_has_loss and not (needed or run.multi_teacher.mt_has_grad):
            warn(
                "--mt_has_loss: has no effect with --multi_teacher_model="
                f"{run.multi_teacher.combiner_name}, where no teacher is trained (--mt_has_grad)"
            )

    @property
    def takes_lazy_logits(self) -> bool:
        """Whether nobody needs a language model's logits as numbers."""
        lazy = all(find_lazy(teacher.module) is not None for teacher in self.teachers)
        return lazy and self.method.takes_lazily("pre_loss")

    @property
    def needs_targets_only(self) -> bool:
        """Whether a language model's logits are needed at target positions only."""
        return self.method.needs_targets_only() and not self.combiner.needs_all_logits

    def __call__(self, student: StudentPass, terms: Terms) -> Tensor:
        """The loss [] of a pass; `terms` gets its parts."""
        self.combiner.begin_pass(student.clock)
        make = partial(self._made, student, terms)
        tallies = [Tally(part, make) for part in self.combiner.parts]
        live: list[Tensor] = []
        for t_no, teacher in enumerate(self.teachers):
            if any(tally.part.runs(t_no) for tally in tallies):
                live += self._against(t_no, teacher, student, tallies, terms)
        totals = [tally.part.total(tally.losses, tally.answers, tally.made) for tally in tallies]
        total = self.combiner.join(totals, tallies[0].made)
        lazy = isinstance(student.logits, Logits)
        like = student.logits.states if lazy else student.logits
        return _as_tensor(sum(live, start=total), like)

    def _made(self, student: StudentPass, terms: Terms) -> Combination:
        def log(name: str, value: Tensor | float) -> None:
            terms[name + student.suffix] = _number(value)

        rate = self.run.distill.distill_hard_rate
        return Combination(student.logits, student.hard_loss, rate, student.context, log)

    def _against(
        self,
        t_no: int,
        teacher: Teacher,
        student: StudentPass,
        tallies: Sequence[Tally],
        terms: Terms,
    ) -> list[Tensor]:
        """One teacher. Returns its own hard loss, if it is trained on it."""
        hook, output = self._forward(t_no, teacher, student, tallies)
        hard = None
        if output.logits is not None and self._wants_hard(tallies):
            hard = self._hard_losses(output.logits, student)
        whole, output = output, self.columns.of_teacher(hook, output)
        if any(tally.part.compares(t_no) for tally in tallies):
            self._prepare(t_no, student, hook, output, [tally.part for tally in tallies])
        for tally in tallies:
            if tally.part.compares(t_no):
                self._compare(t_no, (hook, output), hard, student, tally, terms)
            elif tally.part.runs(t_no):
                captured = Captured(hook, output.captured)
                tally.part.see(t_no, captured, self.task.num_samples(student.batch))
        if not (self.run.multi_teacher.mt_has_grad and self.run.multi_teacher.mt_has_loss):
            return []
        loss = student.hard_rows.mean(self._row_losses(whole.logits, student))
        terms[f"teacher_loss/hard_t{t_no}{student.suffix}"] = loss.detach()
        return [loss]

    def _forward(
        self, t_no: int, teacher: Teacher, student: StudentPass, tallies: Sequence[Tally]
    ) -> tuple[Hook, TeacherOutput]:
        own = [point for tally in tallies for point in tally.part.teacher_points(t_no)]
        hook, hook_op = to_hook(own), {}
        if any(tally.part.compares(t_no) for tally in tallies):
            method = self.method.get_teacher_hook(t_no=t_no)
            hook = merge_hooks(method, to_hook([*self.method.base_points(), *own]))
            models = [each.module for each in self.teachers]
            hook_op = self.method.get_teacher_hook_op(t_no=t_no, teacher_models=models)
        if not self.run.teachers[t_no].runs:
            return hook, TeacherOutput(None, [])
        return hook, teacher(student.inputs, hook, hook_op, **student.options)

    def _prepare(
        self,
        t_no: int,
        student: StudentPass,
        hook: Hook,
        output: TeacherOutput,
        parts: Sequence[Combiner],
    ) -> None:
        """Compute together the losses over the vocabulary that will be asked for."""
        context = dataclasses.replace(student.context, t_no=t_no)
        planned: list[Planned] = []
        if isinstance(student.logits, Logits) and output.logits is not None:
            planned += self._planned_predictions(student, context, parts)
        own, its = Captured(student.hook, student.captured), Captured(hook, output.captured)
        both = logits() in own and logits() in its and self.method.takes_lazily("inter_loss")
        if both and isinstance(own.lazily(logits()), Logits):
            pair = own.lazily(logits()), its.lazily(logits())
            layers = _known(self.method.planned_layers(pair[0], context), parts)
            if pair[0] is student.logits and pair[1] is output.logits:
                planned += layers
            else:  # of other columns, or behind a cloze head
                pair[0].prepare(layers, pair[1])
        if planned:
            student.logits.prepare(planned, output.logits)

    def _planned_predictions(
        self, student: StudentPass, context: LossContext, parts: Sequence[Combiner]
    ) -> list[Planned]:
        """What `pre_loss`, the hard loss and combiners will ask for."""
        number = sum(parts[0].compares(i) for i in range(len(self.teachers)))
        weight = self.method.hard_weight() * number  # it is in the loss against each
        hard = Planned(student.hard_term, student.hard_rows, weight)
        soft = self.method.planned_predictions(student.logits, context)
        others = [plan for part in parts for plan in part.planned(context)]
        return [*_known([*soft, hard], parts), *others]

    def _compare(
        self,
        t_no: int,
        teacher: tuple[Hook, TeacherOutput],
        hard: Tensor | None,
        student: StudentPass,
        tally: Tally,
        terms: Terms,
    ) -> None:
        """The method's losses against one teacher, for one part of the combiner."""
        (hook, output), part = teacher, tally.part
        own, its = part.adapt(t_no, (student.hook, student.captured), (hook, output.captured))
        keep_pre, keep_inter = part.per_sample
        hard_loss = student.hard_losses if keep_pre else student.hard_loss
        # Staged methods rely on the order: prediction layer first.
        pre = self._recomputed(
            part.recomputes[0],
            lambda: self.method.pre_loss(
                student.logits,
                output.logits,
                hard_loss,
                **self._context(student, t_no, keep_pre),
            ),
        )
        inter = self._recomputed(
            part.recomputes[1],
            lambda: self.method.inter_loss(
                self.method.handed(student.hook, list(own)),
                self.method.handed(hook, list(its)),
                student.hook,
                hook,
                **self._context(student, t_no, keep_inter),
            ),
        )
        answer = Answer(t_no, pre, inter, output.logits, hard)
        loss = part.weigh(answer, tally.made)
        tally.losses.append(loss)
        tally.answers.append(answer)
        tail = "" if tally.part is self.combiner.parts[0] else f"_{type(part).__name__}"
        for name, value in self.method.take_terms().items():
            name, _, after = name.partition(AFTER)
            terms[f"{name}_t{t_no}{student.suffix}{after}{tail}"] = value
        terms[f"teacher_loss/teacher_{t_no}_t{t_no}{student.suffix}{tail}"] = _number(loss)

    def _context(self, student: StudentPass, t_no: int, keep_batch: bool) -> Mapping[str, Any]:
        context = dataclasses.replace(student.context, t_no=t_no, keep_batch=keep_batch)
        return context.keywords()

    def _recomputed(self, wanted: bool, loss: Callable[[], Tensor | float]) -> Tensor | float:
        """loss(), computed once more in the backward pass if wanted, and if it counts nothing."""
        if wanted and torch.is_grad_enabled() and not counts(self.method):
            return recomputed(self.method, loss)
        return loss()

    def _wants_hard(self, tallies: Sequence[Tally]) -> bool:
        wanted = any(tally.part.needs_teacher_loss for tally in tallies)
        return wanted or self.run.multi_teacher.mt_has_loss

    def _hard_losses(self, logits: Tensor | Logits, student: StudentPass) -> Tensor:
        """A teacher's hard loss of each sample: the mean over its own rows, [b]."""
        return student.hard_rows.of_samples(self._row_losses(logits, student))

    def _row_losses(self, logits: Tensor | Logits, student: StudentPass) -> Tensor:
        """Un-reduced hard loss [b, s], picked [n], or [b]."""
        return row_losses(self.task, logits, student.batch, student.hard_rows)


def row_losses(
    task: Task, logits: Tensor | Logits, batch: Batch, rows: Rows, term: RowLoss | None = None
) -> Tensor:
    """Hard loss of every row, or of the picked ones: logits of all rows, or [n, v/p] of those.

    Lazy logits: of every row, 0 on masked ones, by the task's `term`.
    """
    if isinstance(logits, Logits):
        return logits.rows(term or task.hard_rows_term(batch), None, rows)
    if rows.index is None:
        return task.hard_loss(logits, batch)
    picked = dataclasses.replace(batch, labels=rows.pick(batch.labels)[None])
    logits = rows.pick(logits) if logits.dim() == 3 else logits
    return task.hard_loss(logits[None], picked)[0]


def _known(planned: Iterable[Planned], parts: Sequence[Combiner]) -> list[Planned]:
    """The plans; where a combiner weighs losses per sample, of unknown weight."""
    factor = 0.0 if any(any(part.per_sample) for part in parts) else 1.0
    return [dataclasses.replace(plan, weight=plan.weight * factor) for plan in planned]


def _number(value: Tensor | float) -> Tensor | float:
    if not isinstance(value, Tensor):
        return value
    value = value.detach().float()
    return value.mean() if value.dim() else value


def _as_tensor(loss: Tensor | float, like: Tensor) -> Tensor:
    """A method without a term returns 0.0: still a tensor that backward accepts."""
    return loss if isinstance(loss, Tensor) else like.flatten()[:1].sum() * 0.0 + loss
