"""SuperGLUE's tasks and SST-2: classification by cloze patterns or by a head."""

from tasks.superglue import pvp

__all__ = ["pvp"]
