"""One file a task family. Importing this folder registers them all."""

from tasks.superglue.pvp import boolq, copa, multirc, nli, record, sst2, wic, wsc

__all__ = ["boolq", "copa", "multirc", "nli", "record", "sst2", "wic", "wsc"]
