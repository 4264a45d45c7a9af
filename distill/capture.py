"""Points of a GLM that can be captured: their place in the hook tree and how they are sharded.

A specification is a list of points; `to_hook` spells it as the seed's nested dict, and
`Captured(hook, inter_vars)[point]` reads the seed's pair. The seed's numbering lives here alone:
the hidden state after block i is what block i + 1 normalises first, and the output after the last.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from distill.lazy_logits import Logits, dense
from mpu.layout import Layout

Hook = dict[Any, Any]


@dataclass(frozen=True)
class Point:
    """One tensor inside GLM."""

    path: tuple[str | int, ...]
    layout: Layout = Layout.REPLICATED

    def __str__(self) -> str:
        return ".".join(map(str, self.path))


def _in_layer(i: int, name: str, layout: Layout = Layout.REPLICATED) -> Point:
    assert i >= 1, f"blocks are counted from 1, not {i}"
    return Point(("transformer", "layers", i - 1, name), layout)


def hidden(i: int, num_layers: int) -> Point:
    """State after i blocks, normalised, [b, s, h]: 0 is the embedding, num_layers the output."""
    assert 0 <= i <= num_layers, (i, num_layers)
    return output() if i == num_layers else _in_layer(i + 1, "layernorm_output")


def output() -> Point:
    """Output of the final LayerNorm, [b, s, h]."""
    return Point(("transformer", "output"))


def block_output(i: int) -> Point:
    """Residual stream after block i (from 1), not normalised, [b, s, h]."""
    return _in_layer(i, "tf_output")


def attention_scores(i: int) -> Point:
    """Before the softmax, masked entries -65504, of block i (from 1), [b, n/p, s, s]."""
    return _in_layer(i, "attention_scores", Layout.SHARD_HEADS)


def attention_probs(i: int) -> Point:
    """After the softmax, before dropout, of block i (from 1), [b, n/p, s, s]."""
    return _in_layer(i, "attention_probs", Layout.SHARD_HEADS)


def query(i: int) -> Point:
    """Queries of block i (from 1), split into heads, [b, n/p, s, d]."""
    return _in_layer(i, "query_layer", Layout.SHARD_HEADS)


def key(i: int) -> Point:
    """Keys of block i (from 1), split into heads, [b, n/p, s, d]."""
    return _in_layer(i, "key_layer", Layout.SHARD_HEADS)


def value(i: int) -> Point:
    """Values of block i (from 1), split into heads, [b, n/p, s, d]."""
    return _in_layer(i, "value_layer", Layout.SHARD_HEADS)


def mixed_query(i: int) -> Point:
    """Queries of block i (from 1), heads side by side, [b, s, h/p]."""
    return _in_layer(i, "mixed_query_layer", Layout.SHARD_LAST)


def mixed_key(i: int) -> Point:
    """Keys of block i (from 1), heads side by side, [b, s, h/p]."""
    return _in_layer(i, "mixed_key_layer", Layout.SHARD_LAST)


def mixed_value(i: int) -> Point:
    """Values of block i (from 1), heads side by side, [b, s, h/p]."""
    return _in_layer(i, "mixed_value_layer", Layout.SHARD_LAST)


def embeddings() -> Point:
    """Word, position and block position together, before dropout, [b, s, h]."""
    return Point(("transformer", "embeddings"))


def logits() -> Point:
    """Logits of the vocabulary, [b, s, v/p]."""
    return Point(("logits_parallel",), Layout.SHARD_LAST)


def position_ids() -> Point:
    """The model's input, choices flattened, [b, 2, s]."""
    return Point(("position_ids",))


def to_hook(points: Iterable[Point]) -> Hook:
    """The seed's hook: nested dicts with None at the leaves; {} without points."""
    hook: Hook = {}
    for point in points:
        level = hook
        for name in point.path[:-1]:
            level = level.setdefault(name, {})
        level[point.path[-1]] = None
    return hook


def merge_hooks(*hooks: Hook | None) -> Hook:
    """One hook that asks for everything the given ones ask for. The given ones stay as they are."""
    merged: Hook = {}
    for hook in hooks:
        for name, below in (hook or {}).items():
            if isinstance(below, dict):
                known = merged.get(name)
                merged[name] = merge_hooks(known if isinstance(known, dict) else None, below)
            else:
                merged.setdefault(name, None)
    return merged


class Captured:
    """The tensors of one forward, by point: the seed's hook (indices at its leaves) and list."""

    def __init__(self, hook: Hook | None, inter_vars: list[Tensor | Logits]):
        self.hook, self.inter_vars = hook or {}, inter_vars

    def __getitem__(self, point: Point) -> Tensor:
        """The tensor. KeyError with the point's path if it was not captured."""
        return dense(self.lazily(point))

    def lazily(self, point: Point) -> Tensor | Logits:
        """As it was captured: of a vocabulary's logits perhaps a `Logits`, not computed yet."""
        level: Any = self.hook
        for name in point.path:
            level = level.get(name) if isinstance(level, dict) else None
        if not isinstance(level, int):
            raise KeyError(f"{point} was not captured; is it among the method's points?")
        return self.inter_vars[level]

    def __contains__(self, point: Point) -> bool:
        try:
            self.lazily(point)
        except KeyError:
            return False
        return True
