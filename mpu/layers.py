"""Linear and embedding layers whose weight is cut over the model-parallel ranks (arXiv 1909.08053).

The initial weights, seen as full matrices, do not depend on p: every rank draws the full matrix
with `init_method` (in place, from torch's default generator, as fp32) and keeps its slice. So all
ranks must seed alike before they build a model, and all consume the generator equally. The full
matrix lives only while it is drawn. Biases start at 0.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .initialize import get_model_parallel_rank, get_model_parallel_world_size
from .layout import Partition, set_partition
from .mappings import (
    copy_to_model_parallel_region,
    gather_from_model_parallel_region,
    reduce_from_model_parallel_region,
    scatter_to_model_parallel_region,
)
from .reshard import split
from .utils import VocabUtility, divide

InitMethod = Callable[[Tensor], object]


def sharded_tensor(
    shape: tuple[int, ...], partition: Partition, init_method: InitMethod | None = None
) -> Tensor:
    """This rank's shard of a full tensor of `shape`; zeros without `init_method`.

    Raises ValueError when p does not divide the cut dimension.
    """
    full = torch.zeros(shape)
    if init_method is not None:
        with torch.no_grad():
            init_method(full)
    return split(full, partition, get_model_parallel_rank(), get_model_parallel_world_size())


class ShardedModule(nn.Module):
    """A module that knows which of its parameters are shards: `partitions`, by attribute name.

    They are marked whenever they come into being, so that the marks survive deepcopy, pickle and
    `load_state_dict(assign=True)`, all of which make new parameters.
    """

    def __init__(self, partitions: dict[str, Partition]):
        super().__init__()
        self.partitions = partitions

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As nn.Module, which sends assignments here too."""
        super().register_parameter(name, param)
        if param is not None and name in self.partitions:
            set_partition(param, self.partitions[name])

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        for name, partition in self.partitions.items():
            if self._parameters.get(name) is not None:
                set_partition(self._parameters[name], partition)


class ColumnParallelLinear(ShardedModule):
    """y = x W^T + b with W cut by rows: [..., in] -> [..., out/p], or [..., out] when gathered.

    weight [out/p, in], bias [out/p]. `stride` is the number of fused matrices stacked along `out`
    (3 for query-key-value), each of which is cut.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        bias: bool = True,
        gather_output: bool = False,
        stride: int = 1,
        init_method: InitMethod = nn.init.xavier_normal_,
    ):
        rows = Partition(dim=0, stride=stride)
        super().__init__({"weight": rows, "bias": rows})
        self.input_size, self.output_size = input_size, output_size
        self.gather_output = gather_output
        self.weight = nn.Parameter(sharded_tensor((output_size, input_size), rows, init_method))
        if bias:
            self.bias = nn.Parameter(sharded_tensor((output_size,), rows))
        else:
            self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out/p] or [..., out]; the gradient of x is summed over the ranks."""
        y = F.linear(copy_to_model_parallel_region(x), self.weight, self.bias)
        return gather_from_model_parallel_region(y) if self.gather_output else y

    def extra_repr(self) -> str:
        """Full sizes, as in nn.Linear."""
        return f"{self.input_size}, {self.output_size}, bias={self.bias is not None}"


class RowParallelLinear(ShardedModule):
    """y = x W^T + b with W cut by columns: [..., in/p] -> [..., out], replicated.

    weight [out, in/p], bias [out] whole on every rank, added once, after the all-reduce.
    `input_is_parallel=False` takes the whole [..., in] and cuts it.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        bias: bool = True,
        input_is_parallel: bool = True,
        init_method: InitMethod = nn.init.xavier_normal_,
    ):
        columns = Partition(dim=1)
        super().__init__({"weight": columns})
        self.input_size, self.output_size = input_size, output_size
        self.input_is_parallel = input_is_parallel
        self.weight = nn.Parameter(sharded_tensor((output_size, input_size), columns, init_method))
        if bias:
            self.bias = nn.Parameter(torch.zeros(output_size))
        else:
            self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in/p] (or [..., in]) -> [..., out], summed over the ranks."""
        if get_model_parallel_world_size() == 1:
            return F.linear(x, self.weight, self.bias)
        if not self.input_is_parallel:
            x = scatter_to_model_parallel_region(x)
        y = reduce_from_model_parallel_region(F.linear(x, self.weight))
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Full sizes, as in nn.Linear."""
        return f"{self.input_size}, {self.output_size}, bias={self.bias is not None}"


class VocabParallelEmbedding(ShardedModule):
    """Word vectors with the vocabulary cut over the ranks: ids [...] -> [..., h], replicated.

    weight [v/p, h]; rank r holds rows r*v/p to (r+1)*v/p.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        init_method: InitMethod = nn.init.xavier_normal_,
    ):
        rows = Partition(dim=0)
        super().__init__({"weight": rows})
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        rank, size = get_model_parallel_rank(), get_model_parallel_world_size()
        self.vocab_start_index, self.vocab_end_index = (
            VocabUtility.vocab_range_from_per_partition_vocab_size(
                divide(num_embeddings, size), rank
            )
        )
        shape = (num_embeddings, embedding_dim)
        self.weight = nn.Parameter(sharded_tensor(shape, rows, init_method))

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [...] -> [..., h]. IndexError (CPU) for an id outside the whole vocabulary."""
        shard_size = self.vocab_end_index - self.vocab_start_index
        if shard_size == self.num_embeddings:
            return F.embedding(ids, self.weight)
        local, elsewhere = local_ids(ids, self.vocab_start_index, shard_size, self.num_embeddings)
        vectors = F.embedding(local, self.weight)
        return reduce_from_model_parallel_region(vectors.masked_fill(elsewhere.unsqueeze(-1), 0.0))

    def extra_repr(self) -> str:
        """Full sizes, as in nn.Embedding."""
        return f"{self.num_embeddings}, {self.embedding_dim}"


def local_ids(ids: Tensor, first: int, shard_size: int, total: int) -> tuple[Tensor, Tensor]:
    """Ids counted from this rank's first one, and a mask of those that other ranks hold.

    Ids of other ranks become 0. Ids outside [0, total) stay out of range, so that the lookup that
    follows fails as it does with one process, instead of giving zeros.
    """
    local = ids - first
    elsewhere = ((local < 0) | (local >= shard_size)) & (ids >= 0) & (ids < total)
    return local.masked_fill(elsewhere, 0), elsewhere
