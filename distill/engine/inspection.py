"""What a checkpoint holds, in lines of text: `change_mp.py --inspect PATH`."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

from config.saved import ARCHITECTURE
from distill.engine.checkpoint import read_config, tag_folder
from distill.engine.shards import Shards
from model.partition import spell

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def report(path: str | Path) -> Iterator[str]:
    """The checkpoint that `--load-pretrained=path` would read, a line each.

    Tensors that differ only in the number of their layer are one line: name, shape when whole,
    type, how they are cut, how many they are.
    """
    folder = tag_folder(path, what="PATH", prefer_best=True)
    shards = Shards(folder, what="PATH")
    one = {name: shards.size if name in shards.unknown else 1 for name in shards.names}
    whole = {name: shards.shape(name, one[name]) for name in shards.names}
    tensors = {name: shards.shapes(name) for name in shards.names}
    cut = sum(tensors[n].nbytes for n in tensors if shards.partitions[n] is not None)
    replicated = sum(tensors[n].nbytes for n in tensors if shards.partitions[n] is None)
    numbers = sum(math.prod(shape) for shape in whole.values())
    yield f"checkpoint   {folder}"
    yield f"shards       {shards.size} ({shards.paths[0].suffix.removeprefix('.')})"
    yield f"parameters   {numbers:,} in {len(whole)} tensors"
    yield f"bytes        {cut * shards.size + replicated:,} whole, {cut + replicated:,} a shard"
    yield f"partitions   {'from config.json' if shards.config.get('partition') else 'by name'}"
    yield from _told(path, shards)
    yield "tensors"
    groups: dict[tuple, list[str]] = {}
    for name in shards.names:
        kind = (NUMBER.sub("*", name), whole[name], str(tensors[name].dtype).split(".")[1])
        how = "of one shard, not known how cut" if name in shards.unknown else None
        groups.setdefault((*kind, how or spell(shards.partitions[name])), []).append(name)
    width = max(len(key[0]) for key in groups)
    for (name, shape, dtype, how), members in groups.items():
        times = f" x {len(members)}" if len(members) > 1 else ""
        yield f"  {name:{width}}  {list(shape)} {dtype}, {how}{times}"


def _told(path: str | Path, shards: Shards) -> Iterator[str]:
    """What is written beside the tensors."""
    model = (read_config(path) or {}).get("model", {})
    known = [f"{name}={model[name]}" for name in ARCHITECTURE if model.get(name)]
    yield f"model        {', '.join(known) or 'not told (no config.json)'}"
    for key, value in shards.entries.items():
        if isinstance(value, int | float | str):
            yield f"{key:12} {value}"
    others = [k for k, v in shards.entries.items() if not isinstance(v, int | float | str)]
    if others:
        yield f"also holds   {', '.join(others)}"
