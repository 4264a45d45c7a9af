"""Evaluation: every sample once, whatever the number of processes."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import mpu
from data_utils.batch import Batch
from distill.engine.wrap import Engine
from distill.lazy_forward import find_lazy, forward_lazily, is_large, is_partitioned
from distill.rows import local_rows
from tasks.base import Task


@dataclass(frozen=True)
class Evaluation:
    """Scores of one split, and what they were computed from."""

    split: str
    metrics: dict[str, float]
    predictions: dict[int, Any] = field(repr=False)  # sample id -> prediction
    seconds: float = 0.0

    @property
    def samples_per_second(self) -> float:
        """Inference speed over all processes, loading included."""
        return len(self.predictions) / self.seconds if self.seconds else 0.0


@torch.no_grad()
def evaluate(
    engine: Engine,
    task: Task,
    steps: Iterable[list[Batch]],
    *,
    split: str,
    limit: int | None = None,
) -> Evaluation:
    """Score the batches of a loader (the first `limit` of them) in eval mode, without teachers.

    Rows that only fill a batch are left out; a sample that several processes saw counts once.
    """
    module, started = engine.module, time.perf_counter()
    mine: dict[int, Any] = {}
    training = module.training
    module.eval()
    try:
        with engine.autocast():
            for batch in (b for step in islice(steps, limit) for b in step):
                moved = batch.to(engine.device)
                rows = zip(
                    batch.sample_ids.tolist(),
                    batch.weight.tolist(),
                    _answers(task, module, moved),
                    strict=True,
                )
                mine |= {sample: found for sample, weight, found in rows if weight > 0}
    finally:
        module.train(training)
    engine.settle()
    merged = {k: v for part in gather_over_replicas(mine) for k, v in part.items()}
    predictions = dict(sorted(merged.items()))
    seconds = time.perf_counter() - started
    return Evaluation(split, task.metrics(predictions, split), predictions, seconds)


def _answers(task: Task, module: nn.Module, batch: Batch) -> list[Any]:
    """The task's predictions; of many logits of a language model without computing them whole."""
    glm = find_lazy(module) if task.vocab_parallel and task.predicts_by_rows() else None
    if glm is None or not (is_partitioned(glm) or is_large(glm, batch.tokens.numel())):
        return task.answers(module, batch)
    logits = forward_lazily(module, glm, task.inputs(batch), None, [])
    mask = task.row_masks(batch)[task.hard_rows]
    rows = local_rows(mask, task.num_samples(batch))
    return task.predict_rows(logits.rows(task.hard_rows_term(batch), None, rows), batch)


def gather_over_replicas(value: Any) -> list[Any]:
    """The value of every data-parallel rank, in rank order, on all of them."""
    size = mpu.get_data_parallel_world_size()
    if size == 1:
        return [value]
    found: list[Any] = [None] * size
    dist.all_gather_object(found, value, group=mpu.get_data_parallel_group())
    return found
