"""change_mp.py: its time beside that of reading and writing the checkpoint once, and its memory.

    python -m scripts.bench_reshard                       # writes docs/benchmarks/reshard.json
    python -m scripts.bench_reshard --gigabytes 0.2 --repeats 1 --folder /path/on/a/disk

A checkpoint of random numbers goes 1 -> 2 -> 1 -> 4 -> 2 model-parallel ranks. Each conversion is a
process of its own: its wall time is that of the program without the start of Python and imports,
memory the most it was resident, all included. Beside it the checkpoint's files are copied in blocks
of 16 MiB and synced to the disk, as the program syncs what it writes. The two take turns.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from config.model import ModelArgs
from distill.engine.checkpoint import TRACKER
from distill.engine.tensor_files import Planned, TorchFile
from model.build import HeadSpec, build_model
from scripts.bench_step import conditions

FILE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "reshard.json"
STEPS = ((1, 2), (2, 1), (1, 4), (4, 2))
BLOCK = 16 * 2**20  # bytes
CHILD = """
import json, re, sys, time
from distill.engine.resharding import Target, change_model_parallel
start = time.perf_counter()
change_model_parallel(sys.argv[1], Target(size=int(sys.argv[2])), sys.argv[3])
seconds = time.perf_counter() - start
status = open("/proc/self/status").read()  # getrusage would count the process that started us
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024
print(json.dumps({"seconds": seconds, "peak_bytes": peak}))
"""


def make_checkpoint(folder: Path, gigabytes: float, width: int) -> int:
    """A GLM of this width and about this size in fp32, in one shard; returns its bytes."""
    layers = max(1, round((gigabytes * 1e9 / 4 - 30592 * width) / (12 * width**2)))
    args = ModelArgs(num_layers=layers, hidden_size=width, num_attention_heads=16, vocab_size=30592)
    with torch.device("meta"):
        module = build_model(args, HeadSpec("lm"))
    tensors = module.state_dict()
    plans = {name: Planned(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    (folder / "1").mkdir(parents=True)
    file = TorchFile(folder / "1" / "mp_rank_00_model_states.pt", plans, {"iteration": 1})
    for name, plan in plans.items():
        file.write(name, lambda plan=plan: random_chunks(plan))
    file.close()
    (folder / TRACKER).write_text("1")
    return sum(plan.nbytes for plan in plans.values())


def random_chunks(plan: Planned) -> Iterator[torch.Tensor]:
    """Random fp32 numbers, in blocks."""
    for first in range(0, plan.numel, BLOCK // 4):
        yield torch.randn(min(BLOCK // 4, plan.numel - first))


def copied(source: Path, target: Path) -> float:
    """Seconds to read the files of a folder and write them to another, synced."""
    start = time.perf_counter()
    target.mkdir(parents=True)
    for path in sorted(source.rglob("*.pt")):
        with path.open("rb") as read, (target / path.name).open("wb") as write:
            shutil.copyfileobj(read, write, BLOCK)
            write.flush()
            os.fsync(write.fileno())
    return time.perf_counter() - start


def converted(source: Path, size: int, target: Path) -> dict[str, float]:
    """Seconds and peak bytes of the conversion in a process of its own."""
    command = [sys.executable, "-c", CHILD, str(source), str(size), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def measure(folder: Path, repeats: int) -> list[dict[str, float]]:
    """A row for each step of `STEPS`: medians, the ratio that of pairs."""
    rows = []
    for source, target in STEPS:
        seen = []
        for _ in range(repeats):
            shutil.rmtree(folder / "copy", ignore_errors=True)
            plain = copied(folder / str(source), folder / "copy")
            shutil.rmtree(folder / "copy")
            shutil.rmtree(folder / str(target), ignore_errors=True)
            seen.append((plain, converted(folder / str(source), target, folder / str(target))))
        rows.append(
            {
                "from": source,
                "to": target,
                "seconds": statistics.median(s["seconds"] for _, s in seen),
                "copy_seconds": statistics.median(plain for plain, _ in seen),
                "ratio": statistics.median(s["seconds"] / plain for plain, s in seen),
                "peak_bytes": max(s["peak_bytes"] for _, s in seen),
            }
        )
        shown = {k: round(v, 2) if isinstance(v, float) else v for k, v in rows[-1].items()}
        print(shown, flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the checkpoint")
    parser.add_argument("--width", type=int, default=2048, help="hidden size")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--out", type=Path, default=FILE)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        size = make_checkpoint(Path(folder) / "1", options.gigabytes, options.width)
        rows = measure(Path(folder), options.repeats)
    words = sys.argv[1:] if argv is None else argv
    command = " ".join(["python -m scripts.bench_reshard", *words])
    found = {
        "command": command,
        "conditions": conditions(),
        "checkpoint_bytes": size,
        "steps": rows,
    }
    options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
