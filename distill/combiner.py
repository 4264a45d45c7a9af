"""Combiner: from the student's losses against each teacher to one loss.

The loop over teachers is the step's. For each teacher that takes part it asks the student's method
for both losses, per sample where the combiner wants them so, and hands them over as an `Answer`;
the combiner gives that teacher's loss (`weigh`), and at the end the loss of the step (`total`).
A combiner is a module of the student: its parameters are trained, saved and restored with it,
under `student.multi_teacher_model.`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

import mpu
from config import ArgGroup, NoArgs, RunArgs
from distill.capture import Captured, Hook, Point
from distill.context import Clock, LossContext
from distill.lazy_logits import Logits, Planned, dense
from model.build import HeadSpec
from tasks.base import TaskShape


@dataclass(frozen=True)
class Answer:
    """One teacher's part in a forward pass."""

    t_no: int
    pre_loss: Tensor | float  # [] or, if the combiner wants it per sample, [b]
    inter_loss: Tensor | float  # likewise
    lazy_logits: Tensor | Logits | None  # the teacher's, as they came; None: it did not run
    hard_loss: Tensor | None  # [b] the teacher's own hard loss, where it is computed

    @cached_property
    def logits(self) -> Tensor | None:
        """The teacher's logits as numbers, which lazy ones become here."""
        return dense(self.lazy_logits)


@dataclass(frozen=True)
class Combination:
    """What a combiner may know of the student's part of the pass."""

    lazy_logits: Tensor | Logits  # the student's, as they came
    hard_loss: Tensor  # [] the student's exact mean
    hard_rate: float  # --distill_hard_rate
    context: LossContext  # rows, masks, labels
    log: Callable[[str, Tensor | float], None]  # a number of this step, by name

    @cached_property
    def logits(self) -> Tensor:
        """The student's logits as numbers, which lazy ones become here."""
        return dense(self.lazy_logits)

    @property
    def real(self) -> Tensor | None:
        """[b] 0 for a sample that only fills the batch; None: all are real."""
        rows = self.context.first_rows("samples", "tokens")
        if rows is None:
            return None
        return rows.mask.reshape(rows.num_samples, -1).amax(1)


class Combiner(nn.Module):
    """Base of all combiners."""

    Args: ClassVar[type[ArgGroup]] = NoArgs
    needs_teacher_loss: ClassVar[bool] = False  # every teacher's hard loss

    def __init__(self, run: RunArgs, args: ArgGroup, shape: TaskShape):
        """`args`: the combiner's own group of flags; `shape`: sizes of the task."""
        super().__init__()
        self.run, self.args, self.shape = run, args, shape
        self.clock = Clock()

    @classmethod
    def problems(cls, run: RunArgs, args: ArgGroup, head: HeadSpec) -> Iterable[str]:
        """What it needs and this run lacks, before any model is built."""
        return ()

    @classmethod
    def converts_width(cls, run: RunArgs, args: ArgGroup) -> bool:
        """Whether states of another width are made comparable, so that a method need not."""
        return False

    @classmethod
    def learns_from(cls, args: ArgGroup, t_no: int) -> bool:
        """Whether the student is ever compared with this teacher."""
        return True

    @property
    def parts(self) -> "Sequence[Combiner]":
        """The combiners that are asked, one after the other."""
        return (self,)

    @property
    def needs_all_logits(self) -> bool:
        """Whether it looks at all positions of a language model, not at targets only."""
        return False

    @property
    def recomputes(self) -> tuple[bool, bool]:
        """Whether `pre_loss` and `inter_loss` are recomputed in the backward pass."""
        return False, False

    @property
    def per_sample(self) -> tuple[bool, bool]:
        """Whether it wants `pre_loss` and `inter_loss` per sample."""
        return False, False

    def begin_pass(self, clock: Clock) -> None:
        """A forward pass begins."""
        self.clock = clock

    def generator(self, *words: int | str) -> torch.Generator:
        """Keyed by --seed, the combiner and these words: equal on every rank."""
        seed = mpu.derive_seed(self.run.train.seed, type(self).__name__, *words)
        return torch.Generator().manual_seed(seed)

    def runs(self, t_no: int) -> bool:
        """Whether this teacher's forward is computed in this pass."""
        return True

    def compares(self, t_no: int) -> bool:
        """Whether the student is compared with this teacher."""
        return True

    def teacher_points(self, t_no: int) -> list[Point]:
        """What to capture in a teacher for the combiner itself."""
        return []

    def planned(self, ctx: LossContext) -> Iterable[Planned]:
        """Losses of the student's rows over the vocabulary that it will ask for, without a teacher.

        As `GLMStudent.planned`: they are then computed beside those of the method.
        """
        return ()

    def see(self, t_no: int, captured: Captured, num_samples: int) -> None:
        """The captures of a teacher that runs but is not compared."""

    def adapt(
        self,
        t_no: int,
        student: tuple[Hook, list[Tensor]],
        teacher: tuple[Hook, list[Tensor]],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The captures that the method is to compare: those given, or projections of them."""
        return student[1], teacher[1]

    def weigh(self, answer: Answer, made: Combination) -> Tensor | float:
        """This teacher's loss: [] or, where `total` needs it so, [b]."""
        return answer.pre_loss + answer.inter_loss

    def total(
        self, losses: Sequence[Tensor | float], answers: Sequence[Answer], made: Combination
    ) -> Tensor | float:
        """The loss of the pass, []. `losses` are of `weigh`, in the order of the answers."""
        return sum(losses, start=0.0) / len(losses)

    def join(self, totals: Sequence[Tensor | float], made: Combination) -> Tensor | float:
        """The loss of the pass, from that of each part."""
        return totals[0]

    def combiner_state(self) -> dict[str, Any]:
        """What is no parameter and must survive a checkpoint."""
        return {}

    def load_combiner_state(self, values: Mapping[str, Any]) -> None:
        """Go on from `combiner_state`."""
        assert not values, f"{type(self).__name__} keeps no state"


Kind = TypeVar("Kind", bound=type[Combiner])

#: Every name and alias of --multi_teacher_model and --mixmt_model -> class.
COMBINERS: dict[str, type[Combiner]] = {}


def register_combiner(name: str, *aliases: str) -> Callable[[Kind], Kind]:
    """Class decorator: the flag's value, then other names."""

    def add(cls: Kind) -> Kind:
        for each in (name, *aliases):
            assert each not in COMBINERS or COMBINERS[each].__name__ == cls.__name__, each
        COMBINERS.update(dict.fromkeys((name, *aliases), cls))
        return cls

    return add


def chosen_combiner(run: RunArgs) -> tuple[type[Combiner], ArgGroup]:
    """What --multi_teacher_model asks for, and its flags; the average without it."""
    import distill.teachers  # noqa: F401 - fills COMBINERS

    cls = COMBINERS[run.multi_teacher.combiner_name]
    return cls, run.combiner if isinstance(run.combiner, cls.Args) else cls.Args()


def combiner_args() -> dict[str, type[ArgGroup]]:
    """Name -> group of flags, for `config.parse_args`."""
    import distill.teachers  # noqa: F401 - fills COMBINERS

    return {name: cls.Args for name, cls in COMBINERS.items()}
