"""Is a killed sweep worth anything? Kill one at random points, go on, compare with a whole one.

    python -m scripts.kill_sweep --sweep config/sweeps/example.yaml --reference runs/example \
        --out runs/example-killed --slots=2

The file is run once more below --out, with a database of its own, in its own process group. When a
random number of its runs has ended, and a random time after that, SIGKILL ends the whole group;
then the same command goes on. At the end: results.csv has the rows of the reference study, each
score with the same digits; what had ended before a kill was neither started nor written again.

Ends with exit code 1 if that is not so. --slots and --gpus must be those of the reference: the
share of cores, and so the order of sums, depends on them.
"""

import argparse
import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from config import ConfigError
from distill.engine import files
from distill.engine.launch import run_program
from distill.engine.run_dir import SUMMARY
from distill.tune import process
from distill.tune.progress import result_of
from distill.tune.results import MEASURED
from distill.tune.sweep import DATABASE, TABLE
from distill.tune.yaml_lines import Reader

ROOT = Path(__file__).resolve().parent.parent
POLL = 0.1  # seconds between looks
#: Of results.csv: what depends on time, on places and on what happened meanwhile.
LEFT_OUT = {"failures", "interrupted", "seconds", "reason", "command", "code"}
LEFT_OUT |= {name for name in MEASURED if name not in ("parameters", "iterations")}
STARTED = re.compile(r" (\S+) started, log (\S+)\.\d+\.log$", re.MULTILINE)


@dataclass(frozen=True)
class Kill:
    """How things were when the group was killed."""

    after_seconds: float  # of this session
    ended: int  # runs that had ended
    running: tuple[str, ...]  # folders of runs that had begun and not ended


@dataclass(frozen=True)
class Mark:
    """What would change if a run that has ended was run again."""

    summary: tuple[int, int]  # inode, time of the last change
    log: tuple[int, int, int]  # and size


class Killed:
    """The sweep that is killed, in a folder of its own."""

    def __init__(self, file: Path, out: Path, more: Sequence[str]):
        self.out, self.sessions = out, 0
        self.file = copy_for(file, out)
        storage = f"sqlite:///{out / 'study' / DATABASE}"
        program = [sys.executable, str(ROOT / "distill" / "auto_tune.py")]
        self.words = [*program, f"--sweep={self.file}", f"--storage={storage}", *more]

    def start(self) -> subprocess.Popen[bytes]:
        """The next session, in a process group of its own."""
        self.sessions += 1
        with self.log(self.sessions).open("wb") as log:
            return subprocess.Popen(
                self.words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log(self, session: int) -> Path:
        """What a session wrote."""
        return self.out / f"session-{session}.log"

    def marks(self) -> dict[str, Mark]:
        """Folder -> mark, of every run that has ended."""
        runs = (self.out / "study" / "runs").glob("*/")
        return {run.name: self._mark(run) for run in runs if result_of(run) is not None}

    def _mark(self, run: Path) -> Mark:
        logs = self.out / "study" / "logs"
        last = max(logs.glob(f"{glob_word(run.name)}.*.log"), key=lambda path: path.stat().st_mtime)
        summary, log = (run / SUMMARY).stat(), last.stat()
        return Mark(
            (summary.st_ino, summary.st_mtime_ns), (log.st_ino, log.st_mtime_ns, log.st_size)
        )

    def begun(self, session: int) -> Counter[str]:
        """Folder -> how often a session started the run."""
        text = self.log(session).read_text(encoding="utf-8", errors="replace")
        return Counter(Path(found[1]).name for found in STARTED.findall(text))


def glob_word(name: str) -> str:
    """A name as a pattern that matches itself only."""
    return re.sub(r"([*?[])", r"[\1]", name)


def copy_for(file: Path, out: Path) -> Path:
    """The sweep's file with another folder for its results."""
    reader, target = Reader(file), out / "sweep.yaml"
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"--out={out}: is not empty; choose another folder, or remove it")
    place = reader.mapping(reader.root, "a sweep").get("out") if reader.root else None
    if place is None:
        raise ConfigError(f"--sweep={file}: has no out; is it a sweep's file?")
    text = file.read_text(encoding="utf-8")
    begin, end = place.start_mark.index, place.end_mark.index
    files.write_text(target, f"{text[:begin]}{json.dumps(str(out / 'study'))}{text[end:]}")
    return target


def read_table(path: Path) -> dict[str, dict[str, str]]:
    """Key of a run -> its row of results.csv."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {row["key"]: row for row in csv.DictReader(file)}
    except (OSError, KeyError) as error:
        raise ConfigError(
            f"--reference={path.parent}: has no {TABLE} of a sweep; let it end first"
        ) from error


def scores(row: Mapping[str, str]) -> dict[str, str]:
    """What the run scored, on validation and test."""
    return {name: text for name, text in row.items() if text and name.startswith(("val/", "test/"))}


def differences(
    expected: Mapping[str, Mapping[str, str]], actual: Mapping[str, Mapping[str, str]]
) -> Iterator[str]:
    """What two tables say differently; texts are compared, and so every digit."""
    for key in sorted(expected.keys() | actual.keys()):
        one, other = expected.get(key), actual.get(key)
        if one is None or other is None:
            name = (one or other or {}).get("name")
            yield f"{name} ({key}): only in the {'killed' if one is None else 'reference'} study"
            continue
        for name in sorted((one.keys() | other.keys()) - LEFT_OUT):
            if one.get(name) != other.get(name):
                yield f"{one['name']} ({key}): {name} {one.get(name)} became {other.get(name)}"


def kill_at(killed: Killed, number: int, delay: float) -> Kill:
    """Start, wait until so many runs have ended and `delay` seconds more, kill the whole group.

    ConfigError: the sweep ended before.
    """
    started, begin, reached = killed.start(), time.monotonic(), None
    try:
        while reached is None or time.monotonic() - reached < delay:
            if started.poll() is not None:
                log = killed.log(killed.sessions)
                raise ConfigError(f"{log}: ended before {number} runs\n{process.tail(log)}")
            if reached is None and len(killed.marks()) >= number:
                reached = time.monotonic()
            time.sleep(POLL)
        seconds = time.monotonic() - begin
    finally:
        kill_group(started)
    ended = killed.marks()
    running = set(killed.begun(killed.sessions)) - set(ended)
    return Kill(round(seconds, 1), len(ended), tuple(sorted(running)))


def kill_group(leader: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process group; returns when none of its processes is left."""
    below = list(process.descendants(leader.pid))
    try:
        os.killpg(leader.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    leader.wait()
    while any(process.start_time(pid) == started for pid, started in below):
        time.sleep(POLL)


def repeated(killed: Killed, marks: Sequence[Mapping[str, Mark]]) -> Iterator[str]:
    """Runs that were started or written again; `marks`: what had ended at each kill."""
    last = killed.marks()
    for session, before in enumerate(marks, 1):
        for folder, mark in before.items():
            if last.get(folder) != mark:
                yield f"{folder}: had ended before kill {session}, and was written again"
            for later in range(session + 1, killed.sessions + 1):
                if killed.begun(later)[folder]:
                    yield f"{folder}: had ended before kill {session}, session {later} began it"


def measure(options: argparse.Namespace, more: Sequence[str]) -> dict[str, object]:
    """Kill, go on, compare. See the module."""
    expected = read_table(options.reference / TABLE)
    draw = random.Random(options.seed)
    if options.kills >= len(expected):
        raise ConfigError(f"--kills={options.kills}: the study has {len(expected)} runs only")
    points = sorted(draw.sample(range(1, len(expected)), options.kills))
    killed = Killed(options.sweep, options.out, more)
    kills, marks, problems = [], [], []
    for point in points:
        kills.append(kill_at(killed, point, draw.uniform(0, options.delay)))
        marks.append(killed.marks())
        print(f"killed after {kills[-1].ended} of {len(expected)} runs: {kills[-1]}", flush=True)
    last = killed.start()
    try:
        if last.wait():
            problems.append(f"the last session failed; see {killed.log(killed.sessions)}")
    finally:
        kill_group(last)
    actual = read_table(options.out / "study" / TABLE)
    problems += [*differences(expected, actual), *repeated(killed, marks)]
    begun = sum((killed.begun(session) for session in range(1, killed.sessions + 1)), Counter())
    codes = {row["code"] for table in (expected, actual) for row in table.values()}
    return {
        "sweep": str(options.sweep),
        "runs": len(expected),
        "rows_compared": len(actual),
        "scores_compared": sum(len(scores(row)) for row in actual.values()),
        "kills": [asdict(kill) for kill in kills],
        "runs_ended": len(killed.marks()),
        "runs_started": sum(begun.values()),
        "started_more_than_once": {name: n for name, n in sorted(begun.items()) if n > 1},
        "same_code": len(codes) == 1,
        "problems": problems,
    }


def build_parser() -> argparse.ArgumentParser:
    """The flags; others go to auto_tune."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sweep", type=Path, required=True, help="file of the sweep")
    parser.add_argument(
        "--reference", type=Path, required=True, help="folder of the study that was left alone"
    )
    parser.add_argument("--out", type=Path, required=True, help="new folder for the killed one")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1, help="of the points of the kills")
    parser.add_argument(
        "--delay", type=float, default=30.0, help="longest wait after a point, in seconds"
    )
    parser.add_argument("--json", type=Path, help="write what was found there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Kill, go on, compare; 1 if the two studies differ or a run was repeated."""
    options, more = build_parser().parse_known_args(argv)
    found = measure(options, more)
    text = json.dumps(found, indent=2)
    print(text)
    if options.json:
        files.write_text(options.json, text + "\n")
    return 1 if found["problems"] else 0


if __name__ == "__main__":
    run_program(lambda: sys.exit(main()))
