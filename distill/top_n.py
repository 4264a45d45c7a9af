"""The n largest logits of a row: which they are, and the terms over them of lazy logits (GLMD).

    columns C     the teacher's n largest of the whole last dim, and ties with the last one
    floor         the teacher's other logits at the row's minimum
    excess        over {j not in C: z_j > m} of z_j - m,    m = min over C of z

Of lazy logits the terms see a chunk of rows at a time, and autograd gives the gradient.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.divergence import NOWHERE, soft_rows_by_autograd
from distill.lazy_logits import Logits
from mpu import get_model_parallel_world_size, max_across, sum_across_model_parallel_region
from mpu.layout import Layout
from mpu.softmax import sum_last, top_k_threshold

LAYOUT = Layout.SHARD_LAST  # of a language model's logits


def whole_width(x: Tensor | Logits, layout: Layout) -> int:
    """Length of the whole last dim: v of [..., v/p]."""
    if isinstance(x, Logits):
        return x.whole_width
    shards = get_model_parallel_world_size() if layout is Layout.SHARD_LAST else 1
    return x.size(-1) * shards


def top_n_columns(teacher: Tensor, n: int, layout: Layout) -> Tensor:
    """[..., v/p] -> True on the n largest of the whole last dim, and on ties with the last one."""
    return teacher >= top_k_threshold(teacher, n, layout)


def floored(teacher: Tensor, n: int, layout: Layout) -> Tensor:
    """[..., v/p] -> the same, but what is below the n largest becomes the row's minimum."""
    lowest = teacher.detach().amin(-1, keepdim=True)
    if layout is Layout.SHARD_LAST:
        lowest = -max_across(-lowest)
    return torch.where(top_n_columns(teacher, n, layout), teacher, lowest)


def excess_rows(student: Tensor, columns: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Sum over the entries that exceed, and how many there are: [..., v/p] -> [...] twice."""
    student = student.float()
    theta = _smallest(student, columns, layout)
    above = torch.where(columns, 0.0, student - theta).clamp(min=0)
    return sum_last(above, layout), sum_last(above.detach() > 0, layout)


def _smallest(student: Tensor, columns: Tensor, layout: Layout) -> Tensor:
    """Minimum over the columns of the whole last dim, with gradient: [..., v/p] -> [..., 1].

    SHARD_LAST: the owner's value, replicated by a sum forward and backward, since each rank then
    compares its own entries with it.
    """
    local = torch.where(columns, student, -NOWHERE).amin(-1, keepdim=True)
    if layout is not Layout.SHARD_LAST:
        return local
    mine = (local.detach() == -max_across(-local.detach())).float()
    owners = sum_across_model_parallel_region(mine)
    return sum_across_model_parallel_region(local.where(mine.bool(), 0.0) / owners)


@dataclass(frozen=True)
class TopN:
    """What is compared."""

    n: int
    temperature: float | None  # of KL; None: squared error
    floor: bool = False  # keep all entries, the teacher's others at the row's minimum

    @property
    def squared(self) -> float:
        """T^2, by which KL is multiplied; 1 for the squared error."""
        return 1.0 if self.temperature is None else self.temperature**2


@dataclass(frozen=True)
class TopDivergence:
    """[r, v/p] twice -> [r], without T^2."""

    top: TopN

    def __call__(self, z: Tensor, teacher: Tensor) -> Tensor:
        top, columns, width = self.top, None, whole_width(z, LAYOUT)
        if top.floor:
            teacher = floored(teacher, top.n, LAYOUT)
        else:
            columns = top_n_columns(teacher, top.n, LAYOUT)
            width = sum_last(columns, LAYOUT)
        if top.temperature is not None:
            options = {"columns": columns, "temperature": top.temperature}
            return soft_rows_by_autograd(z, teacher, layout=LAYOUT, **options)
        square = (z - teacher).square()
        return sum_last(square if columns is None else square * columns, LAYOUT) / width


@dataclass(frozen=True)
class TopExcess:
    """[r, v/p] twice -> [r]: the mean, the sum or the number of what exceeds."""

    n: int
    kind: str

    def __call__(self, z: Tensor, teacher: Tensor) -> Tensor:
        sums, counts = excess_rows(z, top_n_columns(teacher, self.n, LAYOUT), LAYOUT)
        if self.kind == "mean":
            return sums / counts.clamp(min=1)
        return sums if self.kind == "sum" else counts
