"""The programs in forked processes that have imported everything already: `world.forked`.

A start of its own costs 4 s of imports, with DeepSpeed's launcher 20 s; this one costs less than 1.
"""

import os
import runpy
import sys
from pathlib import Path

# The server of `run_ranks` imports this module once, and with it what programs import on their way.
import pandas  # noqa: F401
import pyarrow  # noqa: F401
import tokenizers  # noqa: F401

import data_utils.build  # noqa: F401
import distill.engine.build
import distill.engine.evaluate
import distill.engine.plain
import distill.engine.trainer  # noqa: F401
import tasks.registry  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent.parent
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE")


def run(rank: int, world_size: int, program: str, flags: tuple[str, ...], port: int) -> str:
    """`python distill/PROGRAM.py FLAGS` in this process; what it told on stderr, if it succeeds.

    With several processes it finds the environment that a launcher makes. A program that fails
    raises SystemExit or its own exception: an error of this rank, with what it told.
    """
    if world_size == 1:
        for name in LAUNCHER_VARIABLES:
            del os.environ[name]
    else:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    sys.argv = [f"distill/{program}.py", *flags]
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
    sys.stderr.flush()
    return Path("/proc/self/fd/2").read_text()  # the file that `run_ranks` has put there
