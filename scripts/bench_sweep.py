"""What a sweep costs beside its runs: 200 runs that only sleep, on two slots.

    python -m scripts.bench_sweep --runs 200 --seconds 2

Overhead: wall time of the worker over that of the same sleeps, started one after the other on
each slot by nothing but a loop. Reading and checking the file is told apart.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from distill.tune.devices import Group
from distill.tune.sweep import read_options, work
from distill.tune.sweep_check import check_sweep
from distill.tune.sweep_file import read_sweep

PROGRAM = """
import json, os, sys, time
flags = dict(word[2:].partition("=")[::2] for word in sys.argv[1:])
folder = os.path.join(flags["save"], flags["experiment-name"])
os.makedirs(folder, exist_ok=True)
time.sleep({seconds})
with open(os.path.join(folder, "summary.json"), "w") as file:
    json.dump({{"metric": "accuracy", "val": {{"accuracy": 1.0}}}}, file)
"""
FILE = """
study: bench
out: out
seeds: [{seeds}]
metric: accuracy
tasks: {{copa: {{task: COPA, data-dir: data, epochs: 1}}}}
methods:
  plain: {{stages: [{{name: only}}]}}
"""


def bare(words: Sequence[str], runs: int, slots: int) -> float:
    """Seconds of the same programs in plain loops, one a slot."""

    def loop(slot: int) -> None:
        for run in range(slot, runs, slots):
            flags = ["--save=bare", f"--experiment-name={run}"]
            subprocess.run([sys.executable, *words, *flags], check=True)

    begin = time.perf_counter()
    threads = [threading.Thread(target=loop, args=(slot,)) for slot in range(slots)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begin


def measure(runs: int, seconds: float, slots: int) -> dict[str, float]:
    """Times in seconds, and the overhead in percent. Works in the current folder."""
    Path("distill").mkdir()
    Path("data").mkdir()
    Path("distill/finetune.py").write_text(PROGRAM.format(seconds=seconds))
    Path("sweep.yaml").write_text(FILE.format(seeds=", ".join(map(str, range(1, runs + 1)))))
    begin = time.perf_counter()
    sweep = read_sweep(Path("sweep.yaml"))
    assert check_sweep(sweep, 1) == []
    checked = time.perf_counter() - begin
    plain = bare(["distill/finetune.py"], runs, slots)
    begin = time.perf_counter()
    groups = [Group(f"cpu {number}") for number in range(slots)]
    assert work(sweep, read_options(["--sweep=sweep.yaml"]), groups)
    swept = time.perf_counter() - begin
    return {
        "runs": runs,
        "seconds_of_a_run": seconds,
        "slots": slots,
        "bare_seconds": round(plain, 4),
        "sweep_seconds": round(swept, 4),
        "reading_and_checking_seconds": round(checked, 4),
        "overhead_percent": round(100 * (swept + checked - plain) / plain, 2),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print json."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=2.0, help="that a run sleeps")
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the json there")
    options = parser.parse_args(argv)
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            found = measure(options.runs, options.seconds, options.slots)
        finally:
            os.chdir(before)
    text = json.dumps(found, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
