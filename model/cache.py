"""KeyValueCache: keys and values of all positions so far, so that a new one costs only itself.

The context of a sample is encoded once and then held by every beam. Beams differ behind it only, so
that a reordering of beams moves nothing else.
"""

import torch
from torch import Tensor


class KeyValueCache:
    """Of one GLM: for each layer keys and values [b, n/p, capacity, d], filled up to a length.

    It grows by itself; `capacity` saves copies where the final length is known. The methods
    `update`, `get_seq_length` and `reorder_cache` are what transformers' generation calls.
    """

    def __init__(self, capacity: int = 0):
        self.capacity = capacity
        self.fixed = 0  # columns that all beams of a sample share, never reordered
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._lengths: dict[int, int] = {}

    def __len__(self) -> int:
        """Columns that every layer has; within a forward, those before it."""
        return min(self._lengths.values(), default=0)

    def get_seq_length(self) -> int:
        """`len`, under transformers' name."""
        return len(self)

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Append [b, n/p, s, d] each; returns all of the layer so far, [b, n/p, length + s, d]."""
        start = self._lengths.get(layer, 0)
        stop = start + key.size(2)
        stored = self._layers.get(layer)
        if stored is None or stored[0].size(2) < stop:
            room = max(self.capacity, stop, start * 2)
            grown = tuple(x.new_empty(*x.shape[:2], room, x.size(3)) for x in (key, value))
            for new, old in zip(grown, stored or (), strict=stored is not None):
                new[:, :, :start] = old[:, :, :start]
            self._layers[layer] = stored = grown
        for held, new in zip(stored, (key, value), strict=True):
            held[:, :, start:stop] = new
        self._lengths[layer] = stop
        return stored[0][:, :, :stop], stored[1][:, :, :stop]

    def beams(self, number: int, room: int) -> "KeyValueCache":
        """A copy with each sample `number` times, and room for so many more columns."""
        length = len(self)
        copy = KeyValueCache(length + room)
        copy.fixed = length
        for layer, pair in self._layers.items():
            keys, values = (x[:, :, :length].repeat_interleave(number, 0) for x in pair)
            copy.update(keys, values, layer)
        return copy

    def reorder_cache(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]`, another beam of the same sample, is: int64 [b]."""
        for layer, pair in self._layers.items():
            own = slice(self.fixed, self._lengths[layer])
            for x in pair:
                x[:, :, own] = torch.index_select(x[:, :, own], 0, rows)
