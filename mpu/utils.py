"""Arithmetic of shards: even division, slices of the last dimension, ranges of the vocabulary."""

from torch import Tensor


def divide(numerator: int, denominator: int) -> int:
    """The exact quotient; ValueError when there is a rest."""
    if denominator <= 0 or numerator % denominator:
        raise ValueError(f"{numerator} is not divisible by {denominator}")
    return numerator // denominator


def split_tensor_along_last_dim(
    tensor: Tensor, num_partitions: int, contiguous_split_chunks: bool = False
) -> tuple[Tensor, ...]:
    """[..., x] -> num_partitions views of [..., x / num_partitions], in order.

    `contiguous_split_chunks` copies each view into memory of its own.
    """
    width = divide(tensor.size(-1), num_partitions)
    chunks = tensor.split(width, dim=-1)
    return tuple(c.contiguous() for c in chunks) if contiguous_split_chunks else chunks


class VocabUtility:
    """Which vocabulary rows a rank holds: contiguous blocks of equal size, [first, last)."""

    @staticmethod
    def vocab_range_from_per_partition_vocab_size(
        per_partition_vocab_size: int, rank: int
    ) -> tuple[int, int]:
        """First row of this rank and first row of the next one, from the size of a shard."""
        first = rank * per_partition_vocab_size
        return first, first + per_partition_vocab_size

    @staticmethod
    def vocab_range_from_global_vocab_size(
        global_vocab_size: int, rank: int, world_size: int
    ) -> tuple[int, int]:
        """The same from the size of the whole vocabulary."""
        size = divide(global_vocab_size, world_size)
        return VocabUtility.vocab_range_from_per_partition_vocab_size(size, rank)
