"""Cost of a training step of every method, relative to a step of plain KD.

    python -m scripts.bench_methods                          # writes docs/benchmarks/methods.json
    python -m scripts.bench_methods --methods pkd --repeats 1

The stage of a method's recipe that captures most, beside KD with soft and hard labels in the same
program: same models, batches and sizes (those of the quick start, the pretraining batch for both
programs), half-way through the run. The two take turns; figures are medians, ratios those of pairs.
Memory is the peak that a process of its own adds by training one side.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from config import RunArgs, parse_args
from data_utils.batch import Batch
from data_utils.build_tokenizer import build_tokenizer
from distill.context import TrainState
from distill.engine.build import build_module, with_vocabulary
from distill.engine.checkpoint import Checkpoints
from distill.engine.launch import Runtime, launch
from distill.engine.summary import Summary
from distill.engine.trainer import Plan, Trainer
from distill.engine.wrap import wrap
from distill.finetune import loader
from distill.pretrain import load_data
from distill.registry import method_args
from distill.step import DistillStep
from distill.teacher import build_teachers
from scripts.bench_step import conditions, resident, timed
from scripts.methods_cost import methods, most_costly
from scripts.quickstart_plan import FULL, Sizes
from scripts.recipes import Stage, command, stages, tokenizer_command
from scripts.train_tokenizer import main as train_tokenizer
from tasks.base import Task
from tasks.block_lm import BlockLM
from tasks.registry import build_task

FILE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "methods.json"
TOTAL = 10_000  # iterations of the run in whose middle we are
KD = {
    "pretrain": ["--student_model=kd", "--distill_pt_soft", "--distill_pt_hard"],
    "finetune": ["--student_model=kd", "--distill_ft_soft", "--distill_ft_hard"],
}
SIDES = ("method", "kd")
#: Flags that are not those of a step: what is loaded, and lengths given otherwise.
NOT_HERE = ("--load-pretrained", "--teacher_load_pretrained", "--student_truncate_tn", "--epochs")
SHAPES = ("inverted_bottleneck_mode", "ib_hidden_size", "ib_ffn_num", "ib_word_emb")
SIZES = replace(FULL, ft_batch=FULL.batch)
SIZE_FLAGS = ("vocabulary", "hidden", "heads", "teacher_layers", "student_layers", "seq_length")


def kd_flags(stage: Stage) -> tuple[str, ...]:
    """Those of plain KD in the stage's program, with models of the stage's shapes."""
    shapes = tuple(f"--{teacher}{name}" for teacher in ("", "teacher_") for name in SHAPES)
    shape = tuple(flag for flag in stage.flags if flag.partition("=")[0] in shapes)
    return (*shape, *KD[stage.program], "--distill_temperature=10")


def build_run(stage: Stage, side: str, sizes: Sizes, folder: Path) -> RunArgs:
    """The stage's command line, or that of plain KD."""
    flags = kd_flags(stage) if side == "kd" else stage.flags
    words = command(replace(stage, flags=flags), sizes, folder)[1:]
    words = [word for word in words if word.partition("=")[0] not in NOT_HERE]
    words += [
        f"--train-iters={TOTAL}", "--teacher_random_para", "--lr=1e-4",
        "--lr-decay-style=constant", "--warmup=0", "--attention-dropout=0", "--hidden-dropout=0",
    ]  # fmt: skip
    words += ["--split=1,0,0"] if stage.program == "pretrain" else []
    return parse_args(words, program=stage.program, methods=method_args())


class Side:
    """The step of one run, as the programs put it together."""

    def __init__(self, run: RunArgs, task: Task, runtime: Runtime):
        state = TrainState(iteration=TOTAL // 2)
        teachers = build_teachers(run, task, runtime.device)
        engine = wrap(build_module(run, task), run, runtime)
        self.step_of_run = DistillStep(task, engine, teachers, run, state)
        self.trainer = Trainer(
            engine,
            self.step_of_run,
            [],
            Plan(total=TOTAL, log_every=TOTAL),
            state,
            run,
            runtime,
            checkpoints=Checkpoints(run, runtime, ""),
            summary=Summary(run, runtime),
        )
        engine.module.train()

    def step(self, batch: Batch) -> None:
        """One optimizer step."""
        self.trainer.train_step([batch])


def load(
    stage: Stage, side: str, sizes: Sizes, folder: Path, number: int
) -> tuple[RunArgs, Task, Runtime, list[Batch]]:
    """Run, task, device and so many batches."""
    run = build_run(stage, side, sizes, folder)
    runtime = Runtime(launch(run).device)
    tokenizer = build_tokenizer(run.tokenizer, run.blocks)
    run = with_vocabulary(run, tokenizer)
    if stage.program == "pretrain":
        task, found = BlockLM(), load_data(run, runtime, tokenizer).train
    else:
        task = build_task(run.finetuning, run.data, tokenizer, run.compat)
        found = loader(task, "train", run, runtime, 0)
    batches = [micro[0] for micro, _ in zip(found, range(number), strict=False)]
    return run, task, runtime, batches


def measure(
    name: str, options: argparse.Namespace, folder: Path, peaks: dict[tuple[str, ...], int]
) -> dict[str, Any]:
    """Time both sides in turns, then the memory of each; `peaks` are those known of KD."""
    stage, sizes = most_costly(name).stage, sizes_of(options)
    loaded = {side: load(stage, side, sizes, folder, options.steps) for side in SIDES}
    sides = {side: Side(run, task, runtime) for side, (run, task, runtime, _) in loaded.items()}
    _, _, runtime, batches = loaded["kd"]
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for turn in range(options.repeats + 1):
        for side in SIDES if turn % 2 else reversed(SIDES):
            elapsed = timed(sides[side], batches, runtime.device)
            if turn:  # the first turn warms up
                seconds[side].append(elapsed / len(batches))
    del sides
    ratios = [a / b for a, b in zip(seconds["method"], seconds["kd"], strict=True)]
    kd = kd_flags(stage)
    if kd not in peaks:
        peaks[kd] = peak(stage, "kd", options, folder)
    own = peak(stage, "method", options, folder)
    return {
        "recipe": stage.recipe,
        "stage": stage.name,
        "program": stage.program,
        "seconds": statistics.median(seconds["method"]),
        "kd_seconds": statistics.median(seconds["kd"]),
        "time_ratio": statistics.median(ratios),
        "time_ratio_range": [min(ratios), max(ratios)],
        "peak_bytes": own,
        "kd_peak_bytes": peaks[kd],
        "memory_ratio": own / peaks[kd],
    }


def peak(stage: Stage, side: str, options: argparse.Namespace, folder: Path) -> int:
    """Peak memory (bytes) that a process adds by training one side."""
    command = [sys.executable, "-m", "scripts.bench_methods", f"--folder={folder}"]
    command += [f"--memory-of={stage.key}:{side}", f"--batch={options.batch}", "--steps=3"]
    for name in SIZE_FLAGS:
        command.append(f"--{name.replace('_', '-')}={getattr(options, name)}")
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def memory_of(options: argparse.Namespace) -> int:
    """The other end of `peak`."""
    key, side = options.memory_of.split(":")
    loaded = load(stages()[key], side, sizes_of(options), options.folder, options.steps)
    run, task, runtime, batches = loaded
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    timed(Side(run, task, runtime), batches, runtime.device)
    if runtime.device.type == "cuda":
        return torch.cuda.max_memory_allocated(runtime.device)
    return resident("VmHWM") - before


def sizes_of(options: argparse.Namespace) -> Sizes:
    """The sizes that were asked for."""
    sizes = {name: getattr(options, name) for name in SIZE_FLAGS}
    return replace(SIZES, **sizes, batch=options.batch, ft_batch=options.batch)


def table(content: dict[str, Any]) -> str:
    """What was measured, as markdown."""
    heads = ("method", "stage", "step, ms", "KD, ms", "time / KD", "peak, MiB", "KD, MiB")
    heads += ("memory / KD",)
    rows = [f"| {' | '.join(heads)} |", "| --- | --- " + "| ---: " * 6 + "|"]
    for name, row in content["methods"].items():
        low, high = row["time_ratio_range"]
        cells = [f"`{name}`", f"{row['recipe']}, {row['stage']}"]
        cells += [f"{1000 * row[key]:.0f}" for key in ("seconds", "kd_seconds")]
        cells += [f"{row['time_ratio']:.2f} ({low:.2f}-{high:.2f})"]
        cells += [f"{row[key] / 2**20:.0f}" for key in ("peak_bytes", "kd_peak_bytes")]
        cells.append(f"{row['memory_ratio']:.2f}")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def conditions_text(content: dict[str, Any]) -> str:
    """On what, and how often."""
    about, s = content["conditions"], content["sizes"]
    return (
        f"Student {s['student_layers']} x {s['hidden']}, teacher {s['teacher_layers']} x "
        f"{s['hidden']}, {s['heads']} heads, vocabulary {s['vocabulary']}, {s['batch']} samples of "
        f"at most {s['seq_length']} tokens, fp32, {about['threads']} thread(s) of a "
        f"{about['cores']}-core {about['machine']} machine{_gpu(about)}, torch {about['torch']}, "
        f"load before {about['load_before']:.1f}; {s['repeats']} repeats of {s['steps']} steps, "
        "medians, range of the paired ratios in brackets. The row of KD is KD beside itself: what "
        "it differs from 1 by is noise. MobileBERT's KD has its bottleneck models, too."
    )


def _gpu(about: dict[str, Any]) -> str:
    return f" with {about['gpu']}" if about.get("gpu") else ""


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--methods", nargs="+", choices=list(methods()), help="default: all")
    for name in (*SIZE_FLAGS, "batch"):
        spelling = f"--{name.replace('_', '-')}"
        parser.add_argument(spelling, type=int, default=getattr(SIZES, name))
    parser.add_argument("--steps", type=int, default=4, help="in one turn")
    parser.add_argument("--repeats", type=int, default=9, help="turns")
    parser.add_argument("--json", type=Path, help="of all methods: docs/benchmarks/methods.json")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print a table."""
    options = build_parser().parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # here, and in the processes for memory
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if options.memory_of:
        print(memory_of(options))
        return 0
    about = conditions()
    names = options.methods or list(methods())
    sizes = {name: getattr(options, name) for name in (*SIZE_FLAGS, "batch", "steps", "repeats")}
    peaks: dict[tuple[str, ...], int] = {}
    content: dict[str, Any] = {"conditions": about, "sizes": sizes, "methods": {}}
    with tempfile.TemporaryDirectory() as folder:
        train_tokenizer(tokenizer_command(sizes_of(options), Path(folder))[1:])
        for name in names:
            content["methods"][name] = measure(name, options, Path(folder), peaks)
            print(table({"methods": {name: content["methods"][name]}}).splitlines()[-1], flush=True)
    print(f"\n{table(content)}\n\n{conditions_text(content)}")
    file = options.json or (None if options.methods else FILE)
    if file is not None:
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
