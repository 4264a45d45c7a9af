"""Cost of a loss over the vocabulary: KL of student and teacher, forward and backward.

    python -m scripts.bench_losses --json docs/benchmarks/losses.json

From hidden states [rows, h] and output embeddings [v, h] of both to the gradients of the student's,
by each of:

    plain    torch: two products, log_softmax twice, kl_div, autograd
    dense    the toolkit on whole logits: two products, `distill.losses.kl`
    lean     the toolkit without logits: `mpu.row_losses`
    liger    LigerFusedLinearJSD (GPU) or its chunked loss (CPU), where liger-kernel is installed

All take turns in one process; times are medians, and ratios the median of those of each turn. On a
CPU they are the process's own CPU seconds, which other programs of the machine hardly change. Peak
memory is what a process of its own adds by one forward and backward, gradients included and inputs
left out: the resident set's high-water mark (Linux), or CUDA's largest allocation. On a GPU the
defaults are bf16 and 131072 columns.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.losses import kl
from distill.vocab_rows import SoftRows
from mpu.layout import Layout
from mpu.row_losses import Side, row_losses
from scripts.bench_step import conditions, resident

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]  # student's hidden and weight, the teacher's
TEMPERATURE = 2.0


def plain(inputs: Inputs) -> Tensor:
    """What one writes without a toolkit."""
    x, weight, other, other_weight = inputs
    z = F.linear(x, weight).float() / TEMPERATURE
    with torch.no_grad():
        t = F.linear(other, other_weight).float() / TEMPERATURE
        log_p = F.log_softmax(t, -1)
    log_q = F.log_softmax(z, -1)
    return TEMPERATURE**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def dense(inputs: Inputs) -> Tensor:
    """Whole logits, lean divergence."""
    x, weight, other, other_weight = inputs
    z = F.linear(x, weight)[None]
    t = F.linear(other, other_weight)[None]
    return kl(z, t, layout=Layout.SHARD_LAST, temperature=TEMPERATURE)


def lean(inputs: Inputs) -> Tensor:
    """No logits."""
    x, weight, other, other_weight = inputs
    expected = torch.full((len(x),), 1 / len(x), device=x.device)
    (rows,) = row_losses(
        [SoftRows(TEMPERATURE)], Side(x, weight), [Side(other, other_weight)], [expected]
    )
    return TEMPERATURE**2 * rows.mean()


def liger(inputs: Inputs) -> Tensor:
    """Liger's fused product and divergence, beta 0 (KL of the teacher's distribution)."""
    x, weight, other, other_weight = inputs
    if x.is_cuda:
        from liger_kernel.transformers import LigerFusedLinearJSD

        loss = LigerFusedLinearJSD(jsd_beta=0.0, temperature=TEMPERATURE)
        return TEMPERATURE**2 * loss(x, weight, other, other_weight, None)
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    options = {"weight_hard_loss": 0.0, "weight_soft_loss": 1.0, "beta": 0.0}
    loss = LigerFusedLinearJSDLoss(
        **options, temperature=TEMPERATURE, compiled=False, chunk_size=256
    )
    labels = torch.zeros(len(x), dtype=torch.long)
    return TEMPERATURE**2 * loss(x, weight, other, other_weight, labels)


FORMS: dict[str, Callable[[Inputs], Tensor]] = {
    "plain": plain,
    "dense": dense,
    "lean": lean,
    "liger": liger,
}


def make_inputs(options: argparse.Namespace) -> Inputs:
    """Rows and embeddings whose logits are of the size that a trained model's have."""
    generator = torch.Generator().manual_seed(0)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    made = []
    for width, trained in ((options.hidden, True), (options.teacher_hidden, False)):
        for number, std in ((options.rows, 1.0), (options.columns, 2.0 / width**0.5)):
            x = std * torch.randn(number, width, generator=generator)
            made.append(x.to(device=device, dtype=dtype).requires_grad_(trained))
    return tuple(made)


def run(form: str, inputs: Inputs) -> tuple[float, float]:
    """Seconds (CPU seconds on a CPU) of one forward and backward, and the loss."""
    clock = time.perf_counter if inputs[0].is_cuda else time.process_time
    for x in inputs:
        x.grad = None
    begin = clock()
    loss = FORMS[form](inputs)
    loss.backward()
    value = loss.item()  # waits for a GPU's forward
    if inputs[0].is_cuda:
        torch.cuda.synchronize()
    return clock() - begin, value


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every form: losses agree, then times in turns, then peak memory."""
    inputs = make_inputs(options)
    gradients, found = {}, {form: [] for form in options.forms}
    for turn in range(options.repeats + 1):  # the first warms up, and is compared
        for form in options.forms if turn % 2 else reversed(options.forms):
            seconds, loss = run(form, inputs)
            if turn:
                found[form].append(seconds)
            else:
                gradients[form] = loss, [x.grad.float() for x in inputs[:2]]
    return [
        {
            "form": form,
            "seconds": statistics.median(found[form]),
            **compared(gradients[form], gradients[options.forms[0]]),
            "time_ratio": statistics.median(ratios(found[form], found[options.forms[0]])),
            "time_ratio_range": [
                f(ratios(found[form], found[options.forms[0]])) for f in (min, max)
            ],
            "peak_bytes": peak(options, form),
        }
        for form in options.forms
    ]


def ratios(these: list[float], those: list[float]) -> list[float]:
    """Of each turn."""
    return [a / b for a, b in zip(these, those, strict=True)]


def compared(these: tuple[float, list[Tensor]], those: tuple[float, list[Tensor]]) -> dict:
    """Loss, and the largest difference of a gradient's entry over the largest entry."""
    pairs = zip(these[1], those[1], strict=True)
    errors = [float((a - b).abs().max() / b.abs().max()) for a, b in pairs]
    return {"loss": these[0], "gradient_error": max(errors)}


def peak(options: argparse.Namespace, form: str) -> int:
    """Peak memory (bytes) that one forward and backward adds in a process of its own."""
    command = [sys.executable, "-m", "scripts.bench_losses", f"--memory-of={form}"]
    for key in ("rows", "columns", "hidden", "teacher_hidden", "device", "dtype"):
        command.append(f"--{key.replace('_', '-')}={getattr(options, key)}")
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def memory_of(options: argparse.Namespace) -> int:
    """The other end of `peak`."""
    small = argparse.Namespace(**(vars(options) | {"rows": 8, "columns": 512}))
    run(options.memory_of, make_inputs(small))  # libraries take their own share first
    inputs = make_inputs(options)
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(options.memory_of, inputs)
        return torch.cuda.max_memory_allocated() - before
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    run(options.memory_of, inputs)
    return resident("VmHWM") - before


def row(found: dict[str, Any], first: dict[str, Any]) -> str:
    """One form as a line of markdown."""
    low, high = found["time_ratio_range"]
    cells = [found["form"], f"{found['seconds']:.3g}"]
    cells += [f"{found['time_ratio']:.3f} ({low:.2f}-{high:.2f})"]
    cells += [f"{found['peak_bytes'] / 2**20:.0f}"]
    cells += [f"1 / {first['peak_bytes'] / found['peak_bytes']:.1f}"]
    cells += [f"{found['gradient_error']:.1e}"]
    return f"| {' | '.join(cells)} |"


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    sizes = {"rows": 4096, "columns": 131072 if gpu else 30592, "hidden": 768}
    sizes |= {"teacher-hidden": 1024, "repeats": 5}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if gpu else "cpu")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="bfloat16" if gpu else "float32",
    )
    there = importlib.util.find_spec("liger_kernel") is not None
    forms = [form for form in FORMS if form != "liger" or there]
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=forms)
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure and print a table."""
    options = build_parser().parse_args(argv)
    if options.memory_of:
        print(memory_of(options))
        return 0
    about = conditions()
    found = measure(options)
    sizes = {k: v for k, v in vars(options).items() if k not in ("json", "memory_of")}
    print(json.dumps(about | sizes))
    heads = (
        "form",
        "seconds",
        "time, over the first",
        "MiB",
        "of the first",
        "gradient differs by",
    )
    print(f"| {' | '.join(heads)} |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    print("\n".join(row(each, found[0]) for each in found))
    if options.json:
        content = json.dumps({"conditions": about, "sizes": sizes, "forms": found}, indent=2)
        options.json.write_text(content + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
