"""Where a run is (`TrainState`), what a method sees of it (`Clock`), what a loss may know besides

its tensors (`Predictions`, `LossContext`)."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

from torch import Tensor

from distill.lazy_logits import Logits, dense
from distill.rows import Rows
from mpu.layout import Layout


@dataclass
class TrainState:
    """Where we are. Saved with every checkpoint; arguments never change, this does."""

    iteration: int = 0  # optimizer steps done
    epoch: int = 0  # of fine-tuning, 0-based
    best: float | None = None  # best value of the metric that selects
    best_epoch: int | None = None
    switched_at: int | None = None  # --switch-linear: the schedule is linear from this step on
    bad_steps: int = 0  # skipped updates in a row (NaN, infinite)
    skipped_steps: int = 0  # skipped updates in all
    samples: int = 0  # samples seen, all data-parallel ranks together
    tokens: int = 0  # tokens seen, padding left out
    seconds: float = 0.0  # time spent in training steps
    method: dict[str, Any] = field(default_factory=dict)  # what the method must remember
    combiner: dict[str, Any] = field(default_factory=dict)  # likewise, of several teachers

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return dataclasses.asdict(self)

    def load_state_dict(self, values: Mapping[str, Any]) -> Self:
        """Take the values of a checkpoint; unknown ones (of another version) are left out."""
        for f in dataclasses.fields(self):
            if f.name in values:
                setattr(self, f.name, values[f.name])
        return self


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Where one forward pass is: what a method's schedules and draws depend on."""

    iteration: int = 0  # optimizer steps done
    total: int = 0  # optimizer steps of the whole run; 0: not known
    epoch: int = 0  # of fine-tuning
    micro_step: int = 0  # micro-batch of this optimizer step
    repeat: int = 0  # pass over this micro-batch: 0, or 1.. with --forward_repeat_num

    @property
    def progress(self) -> float:
        """Part of the run that is done, 0 to 1."""
        return self.iteration / max(1, self.total)


Terms = dict[str, Tensor | float]  # losses by name


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What the loss of the prediction layer is made of."""

    # Logits [b, s, v/p], or [n, v/p] of targets only, or [b, c] of choices; as they came.
    lazy_student: Tensor | Logits
    lazy_teacher: Tensor | Logits | None  # as the student's; None where no soft labels are in use
    hard_loss: Tensor  # the student's, [] or [b]
    teacher_weight: float = 1.0  # times the teacher's logits under the squared error (annealing)
    places: Tensor | None = None  # of targets in b * s: all that is computed of lazy logits

    @cached_property
    def student(self) -> Tensor:
        """The student's logits as numbers, which lazy ones become here."""
        return dense(self.lazy_student, self.places)

    @cached_property
    def teacher(self) -> Tensor | None:
        """The teacher's, likewise."""
        return dense(self.lazy_teacher, self.places)


@dataclass(frozen=True, kw_only=True)
class LossContext:
    """What a loss may know. Its fields are the keywords of the seed's `pre_loss`, `inter_loss`.

    Every field has a default, so a method can be called by hand with tensors only: losses are then
    plain means. `rows` holds, by name, what `Rows.mean` needs:

    | name      | shape        | rows that count                                                  |
    |-----------|--------------|------------------------------------------------------------------|
    | targets   | [b, s]       | language model: positions with a target                          |
    | tokens    | [b * c, s]   | every token, padding and padded choices left out                 |
    | answers   | [b * c, s]   | cloze: positions that score an answer                            |
    | samples   | [b]          | one row a sample                                                 |
    | sequences | [b * c]      | one row a sequence: padded choices left out                      |
    | all       | [b * c, s]   | the tokens; under --compat=D3 every position, padding included   |
    """

    rows: Mapping[str, Rows] = field(default_factory=dict)
    keep_batch: bool = False  # losses are [b], their mean over b is the scalar loss
    t_no: int = 0  # number of the teacher, 0-based
    labels: Tensor | None = None  # [b, s] targets or [b] classes
    loss_mask: Tensor | None = None  # [b, s] language model only, as in the seed
    logit_mask: Tensor | None = None  # as target_ids of the batch, cloze only
    class_mask: Tensor | None = None  # [b, c] 1 for a real choice
    layout: Layout = Layout.REPLICATED  # of the logits: SHARD_LAST where they are [b, s, v/p]
    token_mask: Tensor | None = None  # [b * c, s] 1 for a token of a real choice of a real sample
    keys: Tensor | None = None  # [b * c, 1, 1, s] True on keys that are tokens; None under D3: all

    def keywords(self) -> dict[str, Any]:
        """The fields by name, to be passed on as keywords."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def first_rows(self, *names: str) -> Rows | None:
        """The first of these rows that this task has; None (a plain mean) without any."""
        return next((self.rows[name] for name in names if name in self.rows), None)
