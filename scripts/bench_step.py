"""Cost of a pretraining step: our loop beside a hand-written one of the same model.

    python -m scripts.bench_step --layers 4 --hidden 256 --json docs/benchmarks/step.json

Three kinds of step (plain, KD, GLMD), each by `Trainer.train_step` with the plain engine and by
the dozen lines of `Hand.step`. Same weights, same batches, same attention kernel, same optimizer;
output rows that no loss needs are left out on both sides. The two take turns; figures are medians.
Memory is the peak of a process of its own that does only this.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from config import RunArgs, parse_args
from data_utils.batch import Batch
from data_utils.build import build_pretrain_loaders
from data_utils.build_tokenizer import build_tokenizer
from distill.context import TrainState
from distill.engine.build import build_module, with_vocabulary
from distill.engine.checkpoint import Checkpoints
from distill.engine.launch import Runtime, launch
from distill.engine.summary import Summary
from distill.engine.trainer import Plan, Trainer
from distill.engine.wrap import wrap
from distill.registry import method_args
from distill.step import DistillStep
from distill.teacher import build_teachers
from model.build import parameter_groups
from scripts.plain_glm import PlainGLM
from scripts.train_tokenizer import main as train_tokenizer
from tasks.base import token_mask
from tasks.block_lm import BlockLM

KINDS = {
    "plain": [],
    "kd": ["--student_model=kd", "--distill_pt_soft", "--distill_pt_hard"],
    "glmd": ["--student_model=logitsdistil", "--logitsdistil_mask_pad"],
}
TEMPERATURE = 10.0


def build_run(options: argparse.Namespace, kind: str, vocabulary: Path) -> RunArgs:
    """The command line of one kind of step."""
    o = options
    argv = [
        "--train-data=demo", "--bert-prob=1", f"--seq-length={o.length}",
        f"--max-position-embeddings={o.length}", f"--num-layers={o.layers}",
        f"--hidden-size={o.hidden}", f"--num-attention-heads={o.heads}",
        f"--batch-size={o.batch}", "--train-iters=1000000", "--lr=1e-4", "--num-workers=0",
        "--lr-decay-style=constant", "--warmup=0", f"--attention-dropout={o.dropout}",
        f"--hidden-dropout={o.dropout}", f"--tokenizer-path={vocabulary}",
        f"--cache-dir={vocabulary.parent}", *KINDS[kind],
    ]  # fmt: skip
    if kind != "plain":
        argv += [
            f"--distill_temperature={TEMPERATURE}", "--teacher_random_para",
            f"--teacher_num_layers={o.teacher_layers}", f"--teacher_hidden_size={o.hidden}",
            f"--teacher_num_attention_heads={o.heads}",
            f"--teacher_max_position_embeddings={o.length}",
        ]  # fmt: skip
    return parse_args(argv, program="pretrain", methods=method_args())


class Ours:
    """The toolkit's step, as distill/pretrain.py puts it together."""

    def __init__(self, run: RunArgs, runtime: Runtime):
        task, state = BlockLM(), TrainState()
        teachers = build_teachers(run, task, runtime.device)
        self.engine = wrap(build_module(run, task), run, runtime)
        self.teacher = teachers[0].module if teachers else None
        self.distill_step = DistillStep(task, self.engine, teachers, run, state)
        self.trainer = Trainer(
            self.engine,
            self.distill_step,
            [],
            Plan(total=run.train.train_iters, log_every=run.train.log_interval),
            state,
            run,
            runtime,
            checkpoints=Checkpoints(run, runtime, ""),
            summary=Summary(run, runtime),
        )
        self.engine.module.train()

    def step(self, batch: Batch) -> None:
        """One optimizer step."""
        self.trainer.train_step([batch])

    def loss(self, batch: Batch) -> float:
        """The loss without dropout."""
        self.engine.module.eval()
        value = self.distill_step(batch, self.distill_step.count([batch])).loss.item()
        self.engine.module.train()
        return value


class Hand:
    """The same step written by hand."""

    def __init__(self, run: RunArgs, kind: str, device: torch.device):
        self.kind, self.device = kind, device
        self.student = plain_glm(run, run.model.num_layers).to(device)
        self.teacher = None
        if run.teachers:
            teacher = plain_glm(run, run.teachers[0].num_layers).to(device)
            self.teacher = teacher.eval().requires_grad_(False)
        groups, optim = parameter_groups(self.student, run.optim.weight_decay), run.optim
        betas = (optim.adam_beta1, optim.adam_beta2)
        options = {"lr": optim.lr, "betas": betas, "eps": optim.adam_eps}
        self.optimizer = torch.optim.AdamW(groups, fused=True, **options)

    def step(self, batch: Batch) -> None:
        """One optimizer step."""
        self._loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def loss(self, batch: Batch) -> float:
        """The loss without dropout."""
        self.student.eval()
        value = self._loss(batch).item()
        self.student.train()
        return value

    def _loss(self, batch: Batch) -> Tensor:
        mask = token_mask(batch.position_ids) if self.kind == "glmd" else batch.loss_mask
        rows = mask.flatten().nonzero().squeeze(1).to(self.device)
        batch = batch.to(self.device)
        logits = self._logits(self.student, batch, rows)
        losses = []
        if self.kind != "glmd":
            losses.append(F.cross_entropy(logits, batch.labels.flatten()[rows]))
        if self.teacher is not None:
            with torch.no_grad():
                teacher = self._logits(self.teacher, batch, rows)
            pair = [F.log_softmax(z / TEMPERATURE, -1) for z in (logits, teacher)]
            losses.append(TEMPERATURE**2 * F.kl_div(*pair, reduction="batchmean", log_target=True))
        return sum(losses)

    @staticmethod
    def _logits(model: PlainGLM, batch: Batch, rows: Tensor) -> Tensor:
        words = model.word_embeddings(batch.tokens)
        out = model.transformer(words, batch.position_ids, batch.attention_mask)
        return F.linear(out.flatten(0, 1)[rows], model.word_embeddings.weight)


def plain_glm(run: RunArgs, layers: int) -> PlainGLM:
    """A GLM of the run's shape."""
    m = run.model
    sizes = (layers, m.hidden_size, m.num_attention_heads, m.max_position_embeddings, m.vocab_size)
    return PlainGLM(*sizes, m.hidden_dropout)


def load(options: argparse.Namespace, kind: str, folder: Path) -> tuple[RunArgs, list[Batch]]:
    """Arguments and the batches that both sides train on."""
    vocabulary = folder / "vocab.txt"
    if not vocabulary.is_file():
        size = str(options.vocabulary)
        train_tokenizer(["--train-data", "demo", "--vocab-size", size, "--output", str(vocabulary)])
    run = build_run(options, kind, vocabulary)
    tokenizer = build_tokenizer(run.tokenizer, run.blocks)
    run = with_vocabulary(run, tokenizer)
    sizes = (run.data, run.blocks, run.train)
    loaders = build_pretrain_loaders(*sizes, tokenizer, 0, 1, 0, evaluation=run.evaluation)
    batches = [step[0] for step, _ in zip(loaders.train, range(options.steps), strict=False)]
    return run, batches


def measure(options: argparse.Namespace, kind: str, folder: Path) -> dict[str, Any]:
    """Time both sides in turns."""
    run, batches = load(options, kind, folder)
    device = launch(run).device
    ours, hand = Ours(run, Runtime(device)), Hand(run, kind, device)
    hand.student.load_state_dict(ours.engine.module.state_dict())
    if ours.teacher is not None:
        hand.teacher.load_state_dict(ours.teacher.state_dict())
    losses = [side.loss(batches[0]) for side in (ours, hand)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)
    tokens = sum(int(token_mask(batch.position_ids).sum()) for batch in batches)
    seconds: dict[str, list[float]] = {"ours": [], "hand": []}
    sides = {"ours": ours, "hand": hand}
    for turn in range(options.repeats + 1):
        for name in list(sides) if turn % 2 else reversed(sides):
            elapsed = timed(sides[name], batches, device)
            if turn:  # the first turn warms up
                seconds[name].append(elapsed)
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["hand"], strict=True)]
    return {
        "kind": kind,
        "loss": losses[0],
        **{
            f"{name}_tokens_per_second": tokens / statistics.median(s)
            for name, s in seconds.items()
        },
        "time_ratio": statistics.median(ratios),
        "time_ratio_range": [min(ratios), max(ratios)],
        **{f"{name}_peak_bytes": peak(options, kind, name, folder) for name in sides},
    }


def timed(side: Ours | Hand, batches: list[Batch], device: torch.device) -> float:
    """Seconds of one pass over the batches."""
    begin = time.perf_counter()
    for batch in batches:
        side.step(batch)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def peak(options: argparse.Namespace, kind: str, name: str, folder: Path) -> int:
    """Peak memory (bytes) that a process adds by training one side."""
    command = [sys.executable, "-m", "scripts.bench_step", f"--memory-of={kind}:{name}"]
    command += [f"--folder={folder}"]
    for key in ("layers", "teacher_layers", "hidden", "heads", "batch", "length", "vocabulary"):
        command.append(f"--{key.replace('_', '-')}={getattr(options, key)}")
    command += [f"--dropout={options.dropout}", "--steps=3"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def memory_of(options: argparse.Namespace) -> int:
    """The other end of `peak`."""
    kind, name = options.memory_of.split(":")
    run, batches = load(options, kind, options.folder)
    runtime = Runtime(launch(run).device)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    side = Ours(run, runtime) if name == "ours" else Hand(run, kind, runtime.device)
    timed(side, batches, runtime.device)
    if runtime.device.type == "cuda":
        return torch.cuda.max_memory_allocated(runtime.device)
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Memory (bytes) of this process: VmRSS now, VmHWM at its peak. Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def conditions() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    load_average = os.getloadavg()[0]
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    place = {"machine": platform.machine(), "cores": os.cpu_count(), "gpu": gpu}
    return {**place, **versions, "threads": torch.get_num_threads(), "load_before": load_average}


def row(found: dict[str, Any]) -> str:
    """One kind of step as a line of markdown."""
    low, high = found["time_ratio_range"]
    cells = [found["kind"]]
    cells += [f"{found[f'{side}_tokens_per_second']:.0f}" for side in ("ours", "hand")]
    cells += [f"{found['time_ratio']:.3f} ({low:.2f}-{high:.2f})"]
    cells += [f"{found[f'{side}_peak_bytes'] / 2**20:.0f}" for side in ("ours", "hand")]
    return f"| {' | '.join(cells)} |"


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    sizes = {"layers": 2, "teacher-layers": 4, "hidden": 256, "heads": 4, "batch": 32}
    sizes |= {"length": 128, "vocabulary": 6000, "steps": 4, "repeats": 9}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure and print a table."""
    options = build_parser().parse_args(argv)
    if options.memory_of:
        print(memory_of(options))
        return 0
    about = conditions()
    with tempfile.TemporaryDirectory() as folder:
        found = [measure(options, kind, Path(folder)) for kind in options.kinds]
    sizes = {k: v for k, v in vars(options).items() if k not in ("json", "folder", "memory_of")}
    print(json.dumps(about | sizes))
    heads = ("step", "ours, tokens/s", "by hand", "time, ours / by hand", "ours, MiB", "by hand")
    print(f"| {' | '.join(heads)} |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    print("\n".join(row(each) for each in found))
    if options.json:
        content = json.dumps({"conditions": about, "sizes": sizes, "steps": found}, indent=2)
        options.json.write_text(content + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
