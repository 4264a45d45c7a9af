"""Task: all that the training step and the evaluation know about what a model is trained for."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from data_utils.batch import Batch
from model.build import HeadSpec
from mpu.row_losses import RowLoss


@dataclass(frozen=True)
class TaskShape:
    """Sizes that do not change from batch to batch."""

    classes: int = 0  # c of logits [b, c], the largest there is; 0: a language model
    rows: int = 1  # sequences of a sample: c where each choice is one


class Task(ABC):
    """One way to turn a batch into inputs, losses and scores. The step is the same for all.

    Losses are un-reduced; `distill.rows.Rows` reduces them over the rows of `row_masks`.
    """

    name: str
    head: HeadSpec
    vocab_parallel: ClassVar[bool]  # the logits are [b, s, v/p], not [b, c]
    hard_rows: ClassVar[str]  # the row mask that the hard loss is averaged over

    @property
    def shape(self) -> TaskShape:
        """Sizes of every batch."""
        return TaskShape()

    @abstractmethod
    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """The positional inputs of the model with this task's head."""

    @abstractmethod
    def hard_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Loss against the labels, un-reduced: [b, s] or [b]."""

    def hard_rows_term(self, batch: Batch) -> RowLoss | None:
        """`hard_loss` as a term over the vocabulary, row b * s + i for position i of sample b.

        None: it is none, and needs the logits whole.
        """
        return None

    @abstractmethod
    def row_masks(self, batch: Batch) -> dict[str, Tensor]:
        """Name -> float mask of the rows that a loss may count, fillers already 0."""

    def num_samples(self, batch: Batch) -> int:
        """Samples b of the batch, fillers included."""
        return batch.weight.shape[0]

    def class_mask(self, batch: Batch) -> Tensor | None:
        """[b, c]: 1 where a choice is real; None where all are."""
        return batch.choice_mask

    def answers(self, model: nn.Module, batch: Batch) -> list[Any]:
        """Predictions of a batch on the model's device: evaluation, no gradients.

        One forward and `predict`; a task that generates does it here.
        """
        outputs = model(*self.inputs(batch))
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        return self.predict(logits, in_model_labels(self, batch, model))

    @abstractmethod
    def predict(self, logits: Tensor, batch: Batch) -> list[Any]:
        """One prediction a sample, fillers included; collected by `batch.sample_ids`."""

    def predict_rows(self, losses: Tensor, batch: Batch) -> list[Any]:
        """`predict` from hard losses, where it needs no more of the logits; 0 on masked rows."""
        raise AssertionError(f"{type(self).__name__} predicts from logits")

    @classmethod
    def hard_loss_by_rows(cls) -> bool:
        """Whether `hard_rows_term` is said where `hard_loss` is, or below: so it means the same."""
        return _said_with(cls, "hard_rows_term", {"hard_loss"})

    @classmethod
    def predicts_by_rows(cls) -> bool:
        """Likewise `predict_rows`, and what evaluation calls."""
        return _said_with(cls, "predict_rows", {"predict", "answers"}) and cls.hard_loss_by_rows()

    @property
    @abstractmethod
    def metric_names(self) -> tuple[str, ...]:
        """Names that `metrics` returns, the one that selects the best epoch first."""

    @abstractmethod
    def metrics(self, predictions: Mapping[int, Any], split: str = "val") -> dict[str, float]:
        """Sample id -> prediction, for a whole split -> scores. {} if the split has no labels."""

    def submission(
        self, predictions: Mapping[int, Any], split: str
    ) -> tuple[str, list[str]] | None:
        """Name and lines of the file that the task's official server takes; None without one."""
        return None


class FinetuneTask(Task):
    """A task with files: `dataset(split)[i]` is a sample, `collate` makes batches of them."""

    @abstractmethod
    def dataset(self, split: str) -> Any:
        """The samples of "train", "val" or "test"; None for a split that the task has not.

        `dataset[~i]` is sample i with weight 0. Read and encoded at the first call.
        """

    @abstractmethod
    def collate(self, samples: Sequence[Any]) -> Batch:
        """Samples -> one micro-batch."""


def in_model_labels(task: Task, batch: Batch, module: nn.Module) -> Batch:
    """The batch as the module's logits count words: with `unmap_vocab_output` by kept ids.

    A dropped word's label is that of its substitute. Choices and classes stay what they are.
    """
    label_map = getattr(module, "label_map", None)
    if label_map is None or not task.vocab_parallel:
        return batch
    return dataclasses.replace(batch, labels=label_map(batch.labels))


def _said_with(cls: type[Task], name: str, others: set[str]) -> bool:
    """Whether the first class that says any of these says this one."""
    owner = next(each for each in cls.__mro__ if ({name} | others) & vars(each).keys())
    return owner is not Task and name in vars(owner)


def token_mask(position_ids: Tensor) -> Tensor:
    """[b, 2, s] or [b, s] -> float [b, s]: 1 on tokens.

    Padding has position 0; so has the first token, which stays.
    """
    row = position_ids[:, 0] if position_ids.dim() == 3 else position_ids
    mask = (row > 0).float()
    mask[:, 0] = 1.0
    return mask


def weighted(mask: Tensor, weight: Tensor) -> Tensor:
    """[b * c, s] x [b] -> [b * c, s]: rows of filler samples become 0."""
    each = weight.repeat_interleave(mask.shape[0] // weight.shape[0])
    return mask * each.to(mask.dtype)[:, None] if mask.dim() == 2 else mask * each


def as_float(mask: Tensor | None, like: Tensor) -> Tensor:
    """A mask in float32; ones like `like` where there is none."""
    return torch.ones_like(like, dtype=torch.float) if mask is None else mask.float()
