"""One file a task family. Importing this folder registers them all."""

from tasks.superglue.pvp import (
    boolq,
    clue,
    copa,
    glue,
    multirc,
    nli,
    race,
    record,
    squad,
    sst2,
    topics,
    wic,
    wsc,
)

__all__ = [
    "boolq",
    "clue",
    "copa",
    "glue",
    "multirc",
    "nli",
    "race",
    "record",
    "squad",
    "sst2",
    "topics",
    "wic",
    "wsc",
]
