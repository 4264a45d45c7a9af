"""Programs that a sweep runs: started without a shell, output in a log, ended for good if need be.

They stay in the sweep's process group: what ends it ends them, too.
"""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

GRACE = 10.0  # seconds that a program has to end by itself


def start(
    words: Sequence[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    *,
    cwd: Path | None = None,
    title: str | None = None,
) -> subprocess.Popen[bytes]:
    """Start a command. `python` is this interpreter.

    title: the log's first line; default: the command.

    FileNotFoundError: there is no such program.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, *words[1:]] if words[0] == "python" else list(words)
    with log.open("wb") as file:
        file.write(f"{title or shlex.join(words)}\n".encode())
        file.flush()
        return subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=None if environment is None else dict(environment),
        )


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log; of a progress bar its last state."""
    text = path.read_bytes().decode("utf-8", errors="replace")
    kept = [line.rsplit("\r", 1)[-1] for line in text.split("\n")]
    return "\n".join(kept[-lines:]).rstrip()


def stop(process: subprocess.Popen[bytes], grace: float = GRACE) -> None:
    """End a program that still runs and all that it has started, kindly at first."""
    if process.poll() is not None:
        return
    below = list(descendants(process.pid))
    process.terminate()
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        below += list(descendants(process.pid))
        process.kill()
        process.wait()
    for pid, started in below:
        end(pid, started)


def end(pid: int, started: str) -> bool:
    """Kill a process if it is still the one that began at `started`; whether it was."""
    if start_time(pid) != started:
        return False
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def start_time(pid: int) -> str | None:
    """When a process began, in the kernel's words; with the pid it names a process for good.

    None if there is none, or it has ended and nobody has asked for its status yet.
    """
    found = _stat(pid)
    return None if found is None or found[0] == "Z" else found[2]


def descendants(pid: int) -> Iterator[tuple[int, str]]:
    """(pid, start time) of all processes below one."""
    parents: dict[int, list[tuple[int, str]]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        found = _stat(int(folder.name))
        if found is not None:
            parents.setdefault(found[1], []).append((int(folder.name), found[2]))
    waiting = [pid]
    while waiting:
        for child in parents.get(waiting.pop(), ()):
            waiting.append(child[0])
            yield child


def _stat(pid: int) -> tuple[str, int, str] | None:
    """State, parent and start time."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    words = text.rpartition(")")[2].split()
    return words[0], int(words[1]), words[19]
