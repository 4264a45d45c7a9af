"""Warnings of the command line: told once, by the first process."""

import logging
import os

log = logging.getLogger("config")


def warn(message: str) -> None:
    """Log a warning on rank 0 only; launchers give the rank before any process group exists."""
    if os.environ.get("RANK", "0") == "0":
        log.warning(message)
