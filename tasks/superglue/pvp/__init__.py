"""One file a task family. Importing this folder registers them all."""

from tasks.superglue.pvp import boolq, copa, nli, sst2, wic

__all__ = ["boolq", "copa", "nli", "sst2", "wic"]
