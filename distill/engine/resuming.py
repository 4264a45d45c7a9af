"""Can this run go on from that checkpoint? Asked before anything is built or written.

Weights fit any layout (`change_mp.py`). An optimizer's state is cut for one: the engine, its ZeRO
stage, and the numbers of data- and model-parallel processes must be those of the checkpoint.
"""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mpu
from config import RunArgs
from distill.engine.shards import Shards

PLAIN = "plain"


def kind_of(run: RunArgs) -> str:
    """The engine of a run, as checkpoints call it: "plain", "plain adafactor",

    "deepspeed stage 1".
    """
    if run.parallel.deepspeed:
        return f"deepspeed stage {run.parallel.zero_stage}"
    return PLAIN if run.optim.optimizer == "adam" else f"{PLAIN} {run.optim.optimizer}"


def check_resumable(folder: Path, saved: dict[str, Any], kind: str) -> None:
    """ValueError if the state in a tag's folder is not that of this layout, torn or incomplete.

    `saved`: its config.json. `kind`: this run's engine.
    """
    where, hint = f"--load={folder}", f"or start from its weights: --load-pretrained={folder}"
    if not saved.get("resumable", any(folder.glob("*optim_states.pt"))):
        raise ValueError(f"{where}: has no optimizer states, cannot be resumed; {hint}")
    its = saved.get("engine", kind)
    if its != kind:
        raise ValueError(
            f"{where}: was written by the engine '{its}', this run has '{kind}'; use the same "
            f"flags, {hint}"
        )
    ranks, here = saved.get("data_parallel_size"), mpu.get_data_parallel_world_size()
    if _is_cut(kind) and ranks not in (None, here):
        raise ValueError(
            f"{where}: ZeRO's optimizer is cut for {ranks} data-parallel processes, this run has "
            f"{here}; start {ranks}, {hint}"
        )
    for problem in _damage(folder, kind):
        raise ValueError(f"{where}: {problem}; resume an earlier checkpoint, {hint}")
    Shards(folder, what="--load")


def _is_cut(kind: str) -> bool:
    """Whether every data-parallel process has a part of the optimizer's state."""
    return not _is_plain(kind) and not kind.endswith(" 0")


def _is_plain(kind: str) -> bool:
    return kind.startswith(PLAIN)


def _damage(folder: Path, kind: str) -> Iterator[str]:
    """What is missing or torn, as after a copy that was broken off."""
    size, ranks = mpu.get_model_parallel_world_size(), mpu.get_data_parallel_world_size()
    parts = size * (ranks if _is_cut(kind) else 1)
    found = len(list(folder.glob("*optim_states.pt")))
    if found != parts and (_is_plain(kind) or _is_cut(kind)):
        yield f"has {found} files of optimizer states (*optim_states.pt), it needs {parts}"
    for file in sorted(folder.glob("*.pt")):
        if not zipfile.is_zipfile(file):
            yield f"{file.name} is not whole"
