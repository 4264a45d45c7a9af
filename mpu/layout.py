"""How activations and parameters are cut over the model-parallel ranks.

`Layout` tells it of an activation, `Partition` of a parameter. A sharded parameter carries its
`Partition`; one without is replicated. Resharding, gradient norms and initialisation ask the
parameter, never its name.
"""

from dataclasses import dataclass
from enum import Enum

from torch import Tensor


class Layout(Enum):
    """How an activation lies on the ranks."""

    REPLICATED = "replicated"  # whole on every rank: hidden states [b, s, h]
    SHARD_HEADS = "shard_heads"  # dim 1 is cut: scores [b, n/p, s, s], queries [b, n/p, s, d]
    SHARD_LAST = "shard_last"  # the last dim is cut: logits [b, s, v/p], mixed q, k, v [b, s, h/p]

    @property
    def dim(self) -> int | None:
        """The dimension that is cut; None for REPLICATED."""
        return {"replicated": None, "shard_heads": 1, "shard_last": -1}[self.value]


@dataclass(frozen=True)
class Partition:
    """How a parameter is cut: along `dim`, in `stride` blocks that are each cut over the ranks.

    stride 3 is the fused query-key-value: rank r holds its slice of the queries, then of the keys,
    then of the values.
    """

    dim: int
    stride: int = 1


def set_partition(param: Tensor, partition: Partition) -> None:
    """Mark a parameter as a shard. Idempotent.

    `model_parallel` and `tensor_model_parallel` are the marks that DeepSpeed looks for when it
    counts a norm; without them its gradient norm, and so its clipping, is silently wrong.
    """
    param.model_partition = partition  # ZeRO-3 has a `partition` of its own
    param.model_parallel = True
    param.tensor_model_parallel = True


def partition_of(param: Tensor) -> Partition | None:
    """The partition of a parameter; None if it is replicated."""
    return getattr(param, "model_partition", None)
