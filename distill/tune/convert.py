"""Model-parallel conversion on the way: a checkpoint cut for another size is converted first."""

import re
from pathlib import Path

from distill.tune.command import Command, Flags

LOADED = ("--load-pretrained", "--teacher_load_pretrained", "--mt_load_pretrained")
_SUFFIX = re.compile(r"_MP\d+$")


def convert(flags: Flags) -> dict[str, Command]:
    """Point flags at checkpoints of --model-parallel-size; returns target -> command to make it.

    Only folders that exist are looked at: what a stage writes is cut for its own size already.
    Those of size n lie beside the whole one, as PATH_MPn; that of size 1 is PATH itself.
    """
    size = flags.get("--model-parallel-size")
    commands: dict[str, Command] = {}
    if not isinstance(size, str):
        return commands
    for name in LOADED:
        value = flags.get(name)
        if not isinstance(value, str):
            continue
        targets = []
        for path in value.split(":"):
            target = converted(path, size)
            targets.append(target)
            if target != path and not Path(target).is_dir():
                commands[target] = conversion(path.rstrip("/"), size, target)
        flags[name] = ":".join(targets)
    return commands


def converted(path: str, size: str) -> str:
    """Where the checkpoint is, cut for `size`; the path itself if it is there, or not a folder."""
    source = path.rstrip("/")
    if not Path(path).is_dir() or source.endswith(f"_MP{size}"):
        return path
    whole = _SUFFIX.sub("", source)
    target = whole if size == "1" else f"{whole}_MP{size}"
    return path if target == source else target


def conversion(source: str, size: str, target: str) -> Command:
    """`python change_mp.py PATH SIZE --out=TARGET`."""
    return Command("change_mp.py", {"--out": target}, places=(source, size))
