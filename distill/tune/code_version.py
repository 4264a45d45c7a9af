"""Which code a run was made with: a hash of all that trains, and the commit if there is one."""

import hashlib
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("config", "mpu", "data_utils", "model", "tasks", "distill")
#: What arranges runs and does not train.
LEFT_OUT = ("distill/tune", "distill/auto_tune.py", "config/sweeps")


@cache
def code_version() -> str:
    """The first 16 digits of the hash."""
    total = hashlib.sha256()
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*"))
    for path in sorted(path for path in files if path.suffix in (".py", ".json", ".txt")):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(LEFT_OUT):
            total.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()[:16]


@cache
def commit() -> str:
    """Git's name of the code, with `-dirty` if it was changed since; "" outside a repository."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
