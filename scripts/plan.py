"""Which layouts of a distillation run fit into a device's memory, and what each part of it takes.

    python -m scripts.plan --student 36x2048 --teacher 48x4096 --gpus 8 --gpu-memory 40
    python -m scripts.plan --gpus 8 --gpu-memory 80 -- FLAGS OF distill/pretrain.py

Layouts: model-parallel size x data-parallel size x ZeRO stage x optimizer on the device or in host
memory x where the teachers are x micro-batch. Rows are sorted by speed, as far as that is known:
more samples at once, less communication, nothing in host memory. The first one is recommended.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from config import ConfigError, RunArgs, parse_args
from config.parser import read_json
from distill.combiner import combiner_args
from distill.memory import build, transient
from distill.registry import method_args
from distill.resident import Counts, Layout, Transient, Usage, ZeroBlock, account, offloaded
from tasks.block_lm import BlockLM

GB = 2**30
MARGIN = 0.9  # of a device's memory that may be used; the rest is CUDA's and the allocator's
CUDA = 0.75 * GB
MICRO_BATCHES = (64, 32, 16, 8, 4, 2, 1)
PROBES = (1, 8, 64)  # micro-batches whose steps are done without memory; others lie between
HEAD_WIDTH = 64
ROOT = Path(__file__).resolve().parent.parent
PRESET = "config/config_block_10B.json"  # of runs that name no JSON of DeepSpeed


@dataclass(frozen=True)
class Fit:
    """A layout and what it needs."""

    layout: Layout
    usage: Usage
    host: float  # bytes of host memory for the optimizer, of one process


def read(argv: Sequence[str] | None) -> tuple[argparse.Namespace, RunArgs]:
    """The options, and the run whose flags follow `--`."""
    words = list(sys.argv[1:] if argv is None else argv)
    flags = words[words.index("--") + 1 :] if "--" in words else []
    words = words[: words.index("--")] if "--" in words else words
    parser = argparse.ArgumentParser(prog="scripts.plan", description=__doc__.splitlines()[0])
    parser.add_argument("--student", metavar="LxH", help="layers x width; else by the flags")
    parser.add_argument("--teacher", metavar="LxH", help="layers x width; else by the flags")
    parser.add_argument("--gpus", type=int, default=8, help="devices")
    parser.add_argument("--gpu-memory", type=float, default=40, help="of each (GiB)")
    parser.add_argument("--seq-length", type=int, default=512, help="tokens of a sample")
    parser.add_argument("--vocab-size", type=int, default=30592)
    parser.add_argument("--rows", type=int, default=12, help="how many layouts to print")
    options = parser.parse_args(words)
    if options.gpus < 1 or not 0 < options.gpu_memory < math.inf:
        parser.error("--gpus and --gpu-memory must be positive")
    for name in ("seq_length", "vocab_size", "rows"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be positive")
    sizes = [f"--vocab-size={options.vocab_size}", "--teacher_random_para"]
    sizes += [f"--max-position-embeddings={options.seq_length}", "--checkpoint-activations"]
    sizes += [f"--teacher_max_position_embeddings={options.seq_length}"]
    sizes += shape(options.student, "--", "-") + shape(options.teacher, "--teacher_", "_")
    flags = flags or ["--student_model=logitsdistil", "--distill_temperature=15"]
    kinds = {"methods": method_args(flags), "combiners": combiner_args()}
    run = parse_args([*sizes, *flags], program="pretrain", **kinds, check=False)
    models = [run.model, *(args.model_args(run.model) for args in run.teachers)]
    tables = [m.max_position_embeddings for m in models if not m.transformer_xl]
    shortest = min(tables, default=options.seq_length)
    if shortest < options.seq_length:
        raise ConfigError(
            f"--seq-length={options.seq_length}: a model has {shortest} positions "
            "(--max-position-embeddings, --teacher_max_position_embeddings); give fewer tokens"
        )
    return options, run


def shape(text: str | None, start: str, sep: str) -> list[str]:
    """`36x2048` as the flags of a model with heads of 64. ConfigError if it is none."""
    if text is None:
        return []
    words = text.split("x")
    if len(words) != 2 or not all(word.isdigit() and int(word) for word in words):
        raise ConfigError(f"{text}: is no model; give layers x width, as 36x2048")
    layers, width = map(int, words)
    if width % HEAD_WIDTH:
        raise ConfigError(f"{text}: the width must be a multiple of {HEAD_WIDTH}, a head's width")
    names = {"num_layers": layers, "hidden_size": width}
    names["num_attention_heads"] = width // HEAD_WIDTH
    return [f"{start}{name.replace('_', sep)}={value}" for name, value in names.items()]


def layouts(run: RunArgs, gpus: int) -> Iterator[Layout]:
    """All layouts but for the micro-batch, the faster ones first."""
    block = run.deepspeed or read_json(ROOT / PRESET, "--deepspeed_config")
    zero = ZeroBlock.of(block["zero_optimization"])
    sizes = [run.model.num_attention_heads, *(t.num_attention_heads for t in run.teachers)]
    for tp in (2**k for k in range(gpus.bit_length())):
        if gpus % tp or any(size % tp for size in (*sizes, run.model.vocab_size)):
            continue
        dp = gpus // tp
        for stage in (1, 2, 3) if dp > 1 else (1,):
            for offload in (False, True):
                for teacher_stage in (0, 3) if dp > 1 and run.teachers else (0,):
                    yield Layout(
                        tensor_parallel=tp,
                        data_parallel=dp,
                        accumulation=run.train.gradient_accumulation_steps,
                        engine="deepspeed",
                        stage=stage,
                        offload=offload,
                        half=True,
                        teacher_bytes=2,
                        teacher_stage=teacher_stage,
                        zero=zero,
                    )


def plan(run: RunArgs, gpus: int, memory: float, seq_length: int) -> tuple[list[Fit], list[Fit]]:
    """(layouts that fit, each with its largest micro-batch, best first; all with micro-batch 1)."""
    task, steps, counts = BlockLM(), {}, {}
    modules = build(run, task, torch.float32)

    def step_of(tp: int, micro_batch: int) -> Transient:
        """A step of this size, done or between two that are done."""
        high = next(i for i, size in enumerate(PROBES) if i and size >= micro_batch)
        pair = PROBES[high - 1], PROBES[high]
        for size in pair:
            if (tp, size) not in steps:
                layout = Layout(tensor_parallel=tp, micro_batch=size, half=True, teacher_bytes=2)
                steps[tp, size] = transient(run, task, layout, seq_length=seq_length)
        return _between(pair, (steps[tp, pair[0]], steps[tp, pair[1]]), micro_batch)

    def fit(layout: Layout, micro_batch: int) -> Fit:
        """What the layout needs with this many samples."""
        tp = layout.tensor_parallel
        if tp not in counts:
            counts[tp] = [Counts.of(module, layout) for module in (modules[0], *modules[1])]
        own, *theirs = counts[tp]
        layout = replace(layout, micro_batch=micro_batch)
        usage = account(own, theirs, layout, step_of(tp, micro_batch))
        return Fit(layout, usage, offloaded(own, layout))

    fits, smallest = [], []
    for layout in layouts(run, gpus):
        smallest.append(fit(layout, 1))
        sizes = (fit(layout, size) for size in MICRO_BATCHES)
        fits += [one for one in sizes if one.usage.total <= memory * MARGIN - CUDA][:1]
    return sorted(fits, key=_slowness), sorted(smallest, key=lambda one: one.usage.total)


def _between(sizes: tuple[int, int], steps: tuple[Transient, Transient], size: int) -> Transient:
    """A step of `size` samples from those of a smaller and a larger micro-batch."""
    share = (size - sizes[0]) / (sizes[1] - sizes[0])
    pairs = zip(*map(astuple, steps), strict=True)
    return Transient(*(low + share * (high - low) for low, high in pairs))


def _slowness(fit: Fit) -> tuple[Any, ...]:
    """Smaller is faster, as far as one can say without running it."""
    layout = fit.layout
    moved = 1.0 + 0.15 * (layout.tensor_parallel.bit_length() - 1)  # all-reduces in every layer
    moved += 0.3 * (layout.stage == 3) + 0.5 * layout.offload + 0.5 * (layout.teacher_stage == 3)
    small = 1.0 + 2.0 / layout.micro_batch  # kernels that do not fill the device
    return moved * small, layout.stage, fit.usage.total


def flags_of(layout: Layout, run: RunArgs) -> str:
    """What to add to the run's command line."""
    words = [f"--model-parallel-size={layout.tensor_parallel}", "--deepspeed"]
    words += [f"--deepspeed_config={run.parallel.deepspeed_config or PRESET}"]
    words += ["--args_to_ds_config"]
    words += [f"--zero_stage={layout.stage}", "--bf16"]
    words += [f"--batch-size={layout.micro_batch}", "--checkpoint-activations"]
    words += ["--cpu_offload"] if layout.offload else []
    words += ["--teacher_bf16"] if run.teachers else []
    words += ["--teacher_zero_stage=3"] if layout.teacher_stage == 3 else []
    return " ".join(words)


def table(fits: Sequence[Fit]) -> Iterator[str]:
    """A row a layout, GiB of one device."""
    names = [f.name for f in fields(Usage)]
    head = ["TP", "DP", "ZeRO", "offload", "teacher", "batch", *names, "total"]
    rows = [head]
    for fit in fits:
        place = fit.layout
        rows.append(
            [
                *map(str, (place.tensor_parallel, place.data_parallel, place.stage)),
                "cpu" if place.offload else "-",
                "cut" if place.teacher_stage else "whole" if place.tensor_parallel == 1 else "TP",
                str(place.micro_batch),
                *(f"{value / GB:.2f}" for value in (*astuple(fit.usage), fit.usage.total)),
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    for row in rows:
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))


def breaks(smallest: Fit, memory: float) -> Iterator[str]:
    """What is too large in the leanest layout."""
    usage, room = smallest.usage, memory * MARGIN - CUDA
    parts = {f.name: getattr(usage, f.name) for f in fields(Usage)}
    order = sorted(parts, key=lambda name: -parts[name])
    yield (
        f"nothing fits: the leanest layout needs {usage.total / GB:.1f} GiB, {room / GB:.1f} GiB "
        "of a device can be used"
    )
    yield "largest parts: " + ", ".join(f"{name} {parts[name] / GB:.1f}" for name in order[:3])
    if parts["teacher"] > room / 2:
        yield "more devices, over which the teacher is cut, or a smaller teacher in between (TAKD)"
    elif parts["parameters"] + parts["gradients"] > room / 2:
        yield "more devices, over which the student is cut, or a smaller student"
    else:
        yield "shorter samples (--seq-length), or fewer captured layers"


def report(argv: Sequence[str] | None) -> Iterator[str]:
    """The whole answer, line by line."""
    options, run = read(argv)
    memory = options.gpu_memory * GB
    fits, smallest = plan(run, options.gpus, memory, options.seq_length)
    student, teachers = build(run, BlockLM(), torch.float32)
    sizes = [sum(p.numel() for p in module.parameters()) / 1e9 for module in (student, *teachers)]
    theirs = ", ".join(f"{size:.2f} B" for size in sizes[1:]) or "none"
    yield (
        f"student {sizes[0]:.2f} B parameters, teacher(s) {theirs}; {options.gpus} devices of "
        f"{options.gpu_memory:g} GiB, {100 * MARGIN:.0f}% of it less {CUDA / GB:g} GiB used; "
        f"{options.seq_length} tokens, bf16, recomputed activations"
    )
    if not fits:
        yield from breaks(smallest[0], memory)
        yield from table(smallest[:3])
        return
    yield f"{len(fits)} layouts fit; GiB of one device, the best first:"
    yield from table(fits[: options.rows])
    yield f"recommended: {flags_of(fits[0].layout, run)}"
    best = fits[0]
    start = 4 * sizes[0] * (1 if best.layout.stage == 3 else best.layout.data_parallel)
    yield f"host memory for the student while a run starts: {start:.0f} GB in all"
    if best.layout.offload:
        yield f"host memory for the optimizer: {best.host * options.gpus / 1e9:.0f} GB in all"


def main(argv: Sequence[str] | None = None) -> None:
    """Print which layouts fit. A mistake of the user ends it with one message and exit code 2."""
    from distill.engine.launch import run_program

    def show() -> None:
        for line in report(argv):
            print(line, flush=True)

    run_program(show)


if __name__ == "__main__":
    main()
