"""Runs with two toy teachers, and formulas of single losses, written out."""

import torch
import torch.nn.functional as F
from torch import Tensor

from config import ConfigError
from data_utils.batch import Batch
from distill.step import DistillStep, check_needs
from model.build import HeadSpec
from tasks.base import Task, TaskShape
from tasks.choice import ChoiceTask
from tests.distill.runs import lm_task, toy_run, toy_step
from tests.toy import toy_cloze_batch, toy_lm_batch

TWO = ["--mt_hidden_size=24:16", "--mt_num_layers=4:3", "--mt_num_attention_heads=4:8"]
THREE = ["--mt_hidden_size=24:16:8", "--mt_num_layers=4:3:2", "--mt_num_attention_heads=4:8:4"]
KD = ["--student_model=kd", "--distill_ft_soft", "--distill_pt_soft", "--distill_temperature=3"]
PKD = ["--student_model=pkd", "--distill_ft_soft", "--pkd_alpha=1", "--pkd_beta=1"]


def task_of(program: str) -> Task:
    """A language model; or cloze with up to 3 choices, each a row."""
    if program == "pretrain":
        return lm_task()
    return ChoiceTask("toy", HeadSpec("multi_token"), shape=TaskShape(classes=3, rows=3))


def batch_of(program: str, batch: int = 4) -> Batch:
    """Samples of unequal length, the last with a choice less."""
    if program == "pretrain":
        return toy_lm_batch(batch)
    return toy_cloze_batch(batch, choices=3, variable=True)


def step_of(*flags: str, program: str = "finetune", iteration: int = 0) -> DistillStep:
    """A step with two teachers; flags given later win."""
    return toy_step(toy_run(*TWO, *flags, program=program), task_of(program), iteration)


def logits_of(step: DistillStep, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """The student's, with gradient, and the teachers'."""
    inputs = step.task.inputs(batch)
    teachers = [teacher.module(*inputs)[0].detach() for teacher in step.teachers]
    return step.student.module(*inputs)[0], teachers


def real(logits: Tensor, batch: Batch) -> Tensor:
    """[b, c] with choices that only fill the batch far below."""
    return logits if batch.choice_mask is None else logits.masked_fill(batch.choice_mask == 0, -1e9)


def hard_each(logits: Tensor, batch: Batch) -> Tensor:
    """Hard loss [b]; of a language model each sample's own mean over its targets."""
    if logits.dim() == 2:
        return F.cross_entropy(real(logits, batch), batch.labels, reduction="none")
    losses = []
    for i in range(len(logits)):
        mask = batch.loss_mask[i] > 0
        each = F.cross_entropy(logits[i][mask], batch.labels[i][mask], reduction="none")
        losses.append(each.sum() / max(1, len(each)))
    return torch.stack(losses)


def hard_of(logits: Tensor, batch: Batch) -> Tensor:
    """Hard loss [], over all targets."""
    if logits.dim() == 2:
        return hard_each(logits, batch).mean()
    mask = batch.loss_mask > 0
    return F.cross_entropy(logits[mask], batch.labels[mask])


def soft_each(s: Tensor, t: Tensor, batch: Batch, temperature: float = 3.0) -> Tensor:
    """kd's soft loss [b], whose mean is the loss: CE of choices, KL of target positions."""
    if s.dim() == 2:
        s, t = (real(x, batch) / temperature for x in (s, t))
        return -(temperature**2) * (t.softmax(-1) * s.log_softmax(-1)).sum(-1)
    log_q, log_p = ((x / temperature).log_softmax(-1) for x in (s, t))
    rows = (log_p.exp() * (log_p - log_q)).sum(-1) * batch.loss_mask
    return temperature**2 * rows.sum(1) * len(s) / batch.loss_mask.sum()


def entropy_each(s: Tensor, batch: Batch, mask: Tensor | None = None) -> Tensor:
    """u [b] of the student, loop by loop, no gradient; mask [b, s] of a language model."""
    found = []
    for i, row in enumerate(s.detach()):
        if s.dim() == 2:
            z = row if batch.choice_mask is None else row[batch.choice_mask[i] > 0]
            p = z.softmax(-1)
            found.append(-(p * p.log()).sum() / torch.tensor(float(len(p))).log())
        else:
            p = row[mask[i] > 0].softmax(-1)
            each = -(p * p.log()).sum(-1) / torch.tensor(float(s.size(-1))).log()
            found.append(each.sum() / max(1, len(each)))
    return torch.stack(found)


def problems(*flags: str, program: str = "finetune") -> list[str]:
    """What a run with two teachers lacks, before any model is built."""
    try:
        check_needs(toy_run(*TWO, *flags, program=program), task_of(program).head)
    except ConfigError as error:
        return list(error.problems)
    return []
