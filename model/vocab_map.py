"""Vocabulary compression: ids of the tokenizer -> rows of a smaller table (GLMD, arXiv 2306.06625).

The m most frequent ids are kept; a dropped id uses the row of its substitute. Tables, v long:

    origin_id_to_target_pos    id -> row
    origin_id_mask_map         id -> is it kept?
    target_pos_to_origin_id    row r < m -> the id that it belongs to; then the substitutes' ids

Word vectors are E[row(id)], E [m, e]. Logits are over all ids, z[id] = h E[row(id)]^T, so that a
dropped id has exactly its substitute's; or, `unmap_vocab_output`, over rows, z = h E^T [..., m].

The tables are buffers: whole on every rank, saved with the weights (`vocab_map.*`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mpu

TABLES = ("origin_id_to_target_pos", "origin_id_mask_map", "target_pos_to_origin_id")
PREFIX = "vocab_map."  # of the tables in checkpoints


@dataclass(frozen=True)
class VocabOutput:
    """How logits follow from hidden states: z = h W^T, W [c, e], whose rows are cut over the ranks.

    Columns c are ids or rows of the table. `of` restricts or orders them, `shard` gives W.
    """

    weight: Tensor  # [m/p, e]: this rank's rows of the table
    rows: Tensor | None = None  # int64 [c]: the table's row of each column; None: column i is row i

    @property
    def width(self) -> int:
        """Columns c of all ranks together."""
        if self.rows is not None:
            return len(self.rows)
        return len(self.weight) * mpu.get_model_parallel_world_size()

    def of(self, columns: Tensor) -> "VocabOutput":
        """The output of these columns only, int64 [k], in this order; p must divide k."""
        rows = columns if self.rows is None else self.rows.index_select(0, columns)
        return VocabOutput(self.weight, rows)

    def shard(self) -> Tensor:
        """This rank's part of W, [c/p, e], with gradient for every row wherever it lies.

        With `rows`, on several ranks: all-gather of the table forward, its sum backward.
        """
        if self.rows is None:
            return self.weight
        return _whole_columns(self.weight.t()).t().index_select(0, own_part(self.rows))

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., e], equal on all ranks -> [..., c/p]. The gradient is summed over the ranks."""
        return self.used(hidden, F.linear)

    def used(self, hidden: Tensor, use: Callable[[Tensor, Tensor], Any]) -> Any:
        """What `use` makes of hidden states [..., e] and the rank's W [c/p, e]."""
        return use(mpu.copy_to_model_parallel_region(hidden), self.shard())


def own_part(columns: Tensor) -> Tensor:
    """[c] -> [c/p]: those of this rank."""
    size = mpu.get_model_parallel_world_size()
    return columns.view(size, mpu.divide(len(columns), size))[mpu.get_model_parallel_rank()]


def take_columns(logits: Tensor, columns: Tensor) -> Tensor:
    """[..., v/p] -> [..., k/p]: entries of the whole last dim, int64 [k], in this order, cut anew.

    On several ranks: all-gather forward, sum backward.
    """
    return _whole_columns(logits).index_select(-1, own_part(columns))


def _whole_columns(x: Tensor) -> Tensor:
    """[..., c/p] -> [..., c], of which each rank then uses what it likes."""
    return mpu.copy_to_model_parallel_region(mpu.gather_from_model_parallel_region(x))


class VocabMap(nn.Module):
    """The tables of one model. Until they are set, ids from m on use row 0."""

    def __init__(self, vocab_size: int, num_rows: int):
        super().__init__()
        assert 0 < num_rows < vocab_size, (num_rows, vocab_size)
        self.num_rows = num_rows
        ids = torch.arange(vocab_size)
        kept = ids < num_rows
        for name, table in zip(TABLES, (ids * kept, kept, ids * kept), strict=True):
            self.register_buffer(name, table)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids, int64 [...] -> rows [...]. IndexError (CPU) for an id outside the vocabulary."""
        return self.origin_id_to_target_pos[ids]

    @property
    def kept_ids(self) -> Tensor:
        """int64 [m]: the id that each row belongs to."""
        return self.target_pos_to_origin_id[: self.num_rows]

    def substitutes(self, ids: Tensor) -> Tensor:
        """Ids [...] -> ids [...]: a dropped one becomes its substitute."""
        return self.kept_ids[self(ids)]

    def set_tables(self, tables: dict[str, Tensor]) -> None:
        """Use these tables. ValueError if they are none of a map of this size."""
        given = {name: tables[name].to(getattr(self, name)) for name in TABLES}
        problem = table_problem(given, self.num_rows)
        if problem is not None:
            raise ValueError(problem)
        for name, table in given.items():
            getattr(self, name).copy_(table)


def vocab_map_of(module: nn.Module) -> VocabMap | None:
    """The map of the first GLM in a stack of heads and wrappers; None where it has all ids."""
    return next((m for m in module.modules() if isinstance(m, VocabMap)), None)


def table_problem(tables: dict[str, Tensor], num_rows: int) -> str | None:
    """What is wrong with the tables of a map to so many rows; None for a good one."""
    rows, kept, ids = (tables[name] for name in TABLES)
    size = len(rows)
    if not len(kept) == len(ids) == size:
        return f"{PREFIX}*: tables of {size}, {len(kept)} and {len(ids)} ids"
    for name, table, end in ((TABLES[0], rows, num_rows), (TABLES[2], ids, size)):
        if table.min() < 0 or table.max() >= end:
            return f"{PREFIX}{name}: has values outside 0 to {end - 1}"
    number = int(kept.sum())
    if number != num_rows:
        return f"{PREFIX}{TABLES[1]}: keeps {number} ids, the word table has {num_rows} rows"
    own = ids[:num_rows]
    if not torch.equal(rows[own], torch.arange(num_rows, device=rows.device)):
        return f"{PREFIX}{TABLES[2]}: its first {num_rows} ids do not have these rows"
    if not bool(kept[own].all()):
        return f"{PREFIX}{TABLES[1]}: does not keep the ids that have rows"
    return None
