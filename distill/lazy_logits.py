"""Vocabulary logits that nobody has computed: losses compute them, a chunk of rows at a time.

    z [b, s, v/p] = x W^T      x [b, s, h] the states before the product, W [v/p, h] the table

A method compares two `Logits` by the same functions as two tensors (`distill.losses`). Each such
loss is then one pass over the rows that count (`mpu.row_losses`), which computes z anew; so losses
that are known beforehand are computed together, in one pass: `prepare`. Whoever needs the numbers
themselves takes `dense()`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from distill.rows import Rows
from mpu import divide, get_model_parallel_world_size
from mpu.row_losses import RowLoss, Side, row_losses

# Fewer logits than this are computed whole: in one product, which costs less (elements, 16 MB).
FEW = 1 << 22

Output = Callable[..., Any]  # as `model.glm.VocabularyOutput.forward`


@dataclass(frozen=True)
class Planned:
    """A loss that will be asked for."""

    term: RowLoss
    rows: Rows | None  # those it is a mean over; None: all
    weight: float  # of its mean in the loss of the step; 0: it may be any, or gives no gradient


class Logits:
    """See the module. `states` carry the gradient; `output` makes logits of them."""

    def __init__(self, states: Tensor, output: Output, width: int, dtype: torch.dtype):
        """`width`: the rank's entries v/p. `dtype`: what the product is computed in."""
        self.states, self.output, self.width, self.dtype = states, output, width, dtype
        # By where their columns are, which they keep.
        self._parts: dict[tuple[int, int], Logits] = {}
        # Key -> values, and what the key names by `id`, so that nothing else gets that number.
        self._ready: dict[tuple[Any, ...], tuple[Tensor, object]] = {}

    @property
    def whole_width(self) -> int:
        """v, of all ranks."""
        return self.width * get_model_parallel_world_size()

    def dense(self, places: Tensor | None = None) -> Tensor:
        """The logits themselves, [b, s, v/p] fp32, with gradient. Computed at every call.

        `places` int64 [n]: of these rows of b * s only, [n, v/p].
        """
        states = self.states
        if places is not None:
            states = states.flatten(0, -2).index_select(0, places)
        return self._product(states).float()

    def over_rows(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """A linear function of rows, [b, s, ...] -> [b, ...], of the logits: [b, v/p], fp32.

        It is applied to the states: f(x) W^T = f(x W^T).
        """
        return self._product(function(self.states.float()).to(self.states.dtype)).float()

    def of(self, columns: Tensor) -> "Logits":
        """The logits of these columns only, int64 [k], in this order; p must divide k."""
        place = columns.data_ptr(), len(columns)
        if place not in self._parts:
            width = divide(len(columns), get_model_parallel_world_size())
            output = partial(self.output, columns=columns)
            self._parts[place] = Logits(self.states, output, width, self.dtype)
        return self._parts[place]

    def rows(
        self,
        term: RowLoss,
        teacher: "Logits | None" = None,
        rows: Rows | None = None,
        *,
        weight: float = 1.0,
    ) -> Tensor:
        """The term's value of each row, [b, s] fp32: 0 on masked rows.

        What `prepare` made, if it was planned; else computed alone, each time (nothing is kept, so
        that a recomputation in the backward pass does what the forward did).
        """
        key = _key(term, teacher, rows)
        if key in self._ready:
            return self._ready[key][0]
        return self._together([Planned(term, rows, weight)], teacher)[0]

    def prepare(self, planned: Iterable[Planned], teacher: "Logits | None" = None) -> None:
        """Compute these losses, with this teacher or none, in one pass over their rows.

        What has been prepared before is left out.
        """
        plans: dict[tuple[Any, ...], Planned] = {}
        for plan in planned:
            key = _key(plan.term, None if plan.term.teacher is None else teacher, plan.rows)
            if key not in self._ready:
                weight = plans[key].weight if key in plans else 0.0
                plans[key] = replace(plan, weight=weight + plan.weight)
        if plans:
            values = self._together(list(plans.values()), teacher)
            for (key, plan), value in zip(plans.items(), values, strict=True):
                self._ready[key] = value, (teacher, plan.rows)

    def _together(self, planned: Sequence[Planned], teacher: "Logits | None") -> list[Tensor]:
        """Values [b, s] of each, in one pass."""
        number = self.states[..., 0].numel()
        places = _places([plan.rows for plan in planned], number)
        states = self._picked(places)
        terms = [p.term if places is None else p.term.at(places) for p in planned]
        expected = [_expected(plan, places, number, states.device) for plan in planned]
        found = self._run(terms, states, teacher, places, expected)
        if places is not None:
            found = tuple(x.new_zeros(number).index_copy(0, places, x) for x in found)
        return [x.view(self.states.shape[:-1]) for x in found]

    def _run(
        self,
        terms: Sequence[RowLoss],
        states: Tensor,
        teacher: "Logits | None",
        places: Tensor | None,
        expected: Sequence[Tensor | None],
    ) -> tuple[Tensor, ...]:
        """Inside both models' output layers, where the tables are whole."""
        if teacher is None:
            return self.output(states, use=lambda x, w: row_losses(terms, Side(x, w), (), expected))

        def with_teacher(other: Tensor, table: Tensor) -> tuple[Tensor, ...]:
            sides = [Side(other, table)]
            return self.output(
                states, use=lambda x, w: row_losses(terms, Side(x, w), sides, expected)
            )

        return teacher.output(teacher._picked(places), use=with_teacher)

    def _picked(self, places: Tensor | None) -> Tensor:
        """States of these rows, [n, h], in the precision of the product."""
        states = self.states.flatten(0, -2)
        states = states if places is None else states.index_select(0, places)
        return states.to(self.dtype)

    def _product(self, states: Tensor) -> Tensor:
        """[..., h] -> [..., v/p], as the model's own forward computes it."""
        half = self.dtype is not torch.float32 and states.dtype is torch.float32
        with torch.autocast(states.device.type, self.dtype, enabled=half):
            return self.output(states)


def dense(logits: "Tensor | Logits | None", places: Tensor | None = None) -> Tensor | None:
    """Numbers, whatever it was; of lazy ones perhaps of some rows only: see `Logits.dense`."""
    return logits.dense(places) if isinstance(logits, Logits) else logits


def over_rows(logits: "Tensor | Logits", function: Callable[[Tensor], Tensor]) -> Tensor:
    """A linear function of rows, [b, s, ...] -> [b, ...], fp32: of lazy ones by their states."""
    if isinstance(logits, Logits):
        return logits.over_rows(function)
    return function(logits.float())


def _key(term: RowLoss, teacher: Logits | None, rows: Rows | None) -> tuple[Any, ...]:
    return term, id(teacher), id(rows)


def _places(rows: Sequence[Rows | None], number: int) -> Tensor | None:
    """[n] places of the rows that any of them counts, of so many; None: all."""
    if any(r is None for r in rows):
        return None
    first = rows[0]
    if all(r is first for r in rows) and first.index is not None:
        return first.index
    counts = sum(r.mask.flatten() for r in rows)
    places = counts.nonzero().squeeze(1)
    return None if len(places) == number else places


def _expected(
    plan: Planned, places: Tensor | None, number: int, device: torch.device
) -> Tensor | None:
    """Weights [n] of a plan's row values in the loss of the step, up to a common factor."""
    if plan.weight == 0.0:
        return None
    if plan.rows is None:
        return torch.full((number,), plan.weight / number, device=device)
    weights = plan.rows.mask.flatten() * (plan.weight / plan.rows.total)
    return weights if places is None else weights.index_select(0, places)
