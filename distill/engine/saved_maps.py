"""Vocabulary maps in checkpoints: ours among the weights, the seed's in an entry of their own."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from model.vocab_map import PREFIX, TABLES, table_problem

if TYPE_CHECKING:
    from distill.engine.shards import Shards

WORDS = "word_embeddings.weight"
SEED = ("important_nonparameters", "glm.map_vocab_paras")


def with_tables(content: dict[str, Any]) -> dict[str, Any]:
    """A file's content; the tables of a map that the seed saved apart come behind the weights."""
    apart, weights = content.get(SEED[0]), content.get("module")
    tables = apart.get(SEED[1]) if isinstance(apart, Mapping) else None
    if not isinstance(tables, Mapping) or not isinstance(weights, Mapping):
        return content
    named = {PREFIX + name: tables[name] for name in TABLES if name in tables}
    mask = PREFIX + TABLES[1]
    if mask in named:
        named[mask] = named[mask].bool()
    return content | {"module": {**weights, **{k: named[k] for k in named if k not in weights}}}


def misfits(names: Mapping[str, str], shards: "Shards", own: Mapping[str, Tensor]) -> Iterator[str]:
    """What is wrong with the maps of a checkpoint for a model: a line each, with a remedy.

    `names`: key of the model -> its name in the checkpoint.
    """
    for key in own:
        if not (key == WORDS or key.endswith("." + WORDS)) or key not in names:
            continue
        keys = [key.removesuffix(WORDS) + PREFIX + name for name in TABLES]
        wanted, found = (all(name in state for name in keys) for state in (own, names))
        rows = shards.shapes(names[key]).size(0) * shards.size
        if wanted and not found:
            yield (
                f"{keys[0]}: the file has no vocabulary map, the model has one; leave out "
                "--map_vocab_size, or give the file as a teacher and build a map with "
                "--student_build_map_vocab"
            )
        elif found and not wanted:
            yield (
                f"{keys[0]}: the file has a vocabulary map, the model has none; give "
                f"--map_vocab_size={rows}"
            )
        elif found:
            tables = [torch.cat(list(shards.blocks(names[name], 0, shards.size))) for name in keys]
            problem = table_problem(dict(zip(TABLES, tables, strict=True)), rows)
            if problem is not None:
                yield f"{problem}; it is no map of this model"
