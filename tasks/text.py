"""ContinuedText: predict every next token of text that goes on from batch to batch."""

import torch
from torch import Tensor

from data_utils.batch import Batch
from tasks.block_lm import BlockLM


class ContinuedText(BlockLM):
    """Language modelling from left to right, as in Transformer-XL (arXiv 1901.02860).

    loss = mean over target tokens of -log softmax(z)[label],  z [b, s, v/p], in nats
    """

    name = "text"

    def __init__(self, mem_length: int = 0):
        """mem_length: states that the model remembers, at most."""
        super().__init__()
        self.mem_length = mem_length

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """(tokens [b, s], position_ids [b, s], mask [b, 1, s, mem_length + s])."""
        return batch.tokens, batch.position_ids, own_document(batch.position_ids, self.mem_length)


def own_document(position_ids: Tensor, memory: int) -> Tensor:
    """Positions [b, s], from 1 in each document -> bool [b, 1, s, memory + s].

    A token sees itself and what its own document has before it, of the batch and of the `memory`
    states before the batch. Padding (position 0) sees itself.
    """
    length, device = position_ids.size(1), position_ids.device
    row = torch.arange(length, device=device)[:, None]
    distance = row - torch.arange(-memory, length, device=device)
    seen = position_ids.clamp(min=1)[:, None, :, None]
    return (distance >= 0) & (distance < seen)
