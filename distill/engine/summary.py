"""What a run tells: a progress bar, log lines, metrics.jsonl, TensorBoard. All the same numbers.

Names are the seed's: Train/lr, Train/train_loss, pre_loss/..., inter_loss/... . Numbers are summed
on the device and read once a log interval.
"""

import contextlib
import datetime
import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config import RunArgs
from data_utils.batch import Batch
from distill.engine import files
from distill.engine.evaluate import gather_over_replicas
from distill.engine.launch import Runtime
from distill.engine.run_dir import METRICS, TENSORBOARD

log = logging.getLogger(__name__)

LOSS = "Train/train_loss"


class Meter:
    """Means of losses and terms, and counts of tokens, between two log lines."""

    def __init__(self, device: torch.device):
        self.device = device
        self.reset()

    def reset(self) -> None:
        """Start an interval."""
        self._sums: dict[str, list[Tensor]] = {}  # name -> [sum, count] of the finite values
        self.samples = self.tokens = 0
        self.started = time.perf_counter()

    def add(self, batch: Batch, loss: Tensor, terms: Mapping[str, Tensor | float]) -> None:
        """One micro-batch. NaN and infinite values do not enter the means.

        A term of two numbers, a sum and a count, enters as it is.
        """
        self.samples += int(batch.weight.sum())
        self.tokens += count_tokens(batch)
        for name, value in ((LOSS, loss), *terms.items()):
            if not isinstance(value, Tensor):
                value = torch.full((), value, device=self.device)
            pair = as_pair(value.detach().double())
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def pause(self, seconds: float) -> None:
        """Leave time out that was not spent in training (evaluation, checkpoints)."""
        self.started += seconds

    def read(self) -> tuple[dict[str, float], int, int, float]:
        """(means over all ranks, samples, tokens, seconds); waits for the device."""
        mine = {name: pair.tolist() for name, pair in self._sums.items()}
        seconds = time.perf_counter() - self.started
        parts = gather_over_replicas((mine, self.samples, self.tokens))
        names = dict.fromkeys(name for sums, _, _ in parts for name in sums)
        means = {}
        for name in names:
            pairs = [sums[name] for sums, _, _ in parts if name in sums]
            count = sum(pair[1] for pair in pairs)
            means[name] = sum(pair[0] for pair in pairs) / count if count else math.nan
        return means, sum(p[1] for p in parts), sum(p[2] for p in parts), seconds


def as_pair(value: Tensor) -> Tensor:
    """[sum, count] of a term: a value [] counts once, what is not finite counts nothing."""
    pair = value if value.dim() else torch.stack([value, torch.ones_like(value)])
    return torch.where(torch.isfinite(pair).all(), pair, torch.zeros_like(pair))


def count_tokens(batch: Batch) -> int:
    """Tokens of a batch, padding and fillers left out. On the CPU, where batches come from."""
    positions = batch.position_ids
    if positions.dim() == batch.tokens.dim() + 1:
        positions = positions.select(-2, 0)
    lengths = (positions[..., 1:] > 0).sum(-1) + 1  # the first token may have position 0
    if lengths.dim() == 2:  # choices
        real = batch.real_rows()
        lengths = (lengths if real is None else lengths * real).sum(-1)
    return int((lengths * (batch.weight > 0)).sum())


class Summary:
    """Where numbers go. Only the first process writes."""

    def __init__(self, run: RunArgs, runtime: Runtime, *, start: int = 0):
        self._main = runtime.is_main
        self._folder = runtime.run_dir if self._main else None
        self._bar: Any = None
        self._writer = self._tensorboard(run, start) if self._main else None
        if self._folder is not None:
            forget_after(self._folder / METRICS, start)

    def _tensorboard(self, run: RunArgs, start: int) -> Any:
        folder = run.train.summary_dir or (self._folder and str(self._folder / TENSORBOARD))
        if run.train.custom_no_summary_writer or not folder:
            return None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            log.warning("no TensorBoard files: %s; pip install tensorboard", error)
            return None
        return SummaryWriter(folder, purge_step=start + 1 if start else None)

    @contextlib.contextmanager
    def progress(self, start: int, total: int) -> Iterator[None]:
        """A bar on terminals, during the loop; log lines go above it."""
        from tqdm import tqdm
        from tqdm.contrib.logging import logging_redirect_tqdm

        disable = None if self._main else True  # None: only on a terminal
        bar = tqdm(total=total, initial=start, unit="step", disable=disable, dynamic_ncols=True)
        with bar, contextlib.nullcontext() if bar.disable else logging_redirect_tqdm():
            self._bar = bar
            try:
                yield
            finally:
                self._bar = None

    def advance(self) -> None:
        """One optimizer step is done."""
        if self._bar is not None:
            self._bar.update()

    def train(self, iteration: int, total: int, numbers: dict[str, float], elapsed: float) -> None:
        """Numbers of a log interval; `elapsed`: seconds of an optimizer step."""
        self.write(iteration, numbers)
        left = datetime.timedelta(seconds=round(elapsed * (total - iteration)))
        loss, rate = numbers.get(LOSS, math.nan), numbers["Train/tokens_per_second"]
        log.info(
            "iteration %d/%d | loss %.4f | lr %.3e | %.0f tokens/s | %.1f ms/step | left %s",
            *(iteration, total, loss, numbers["Train/lr"], rate, elapsed * 1000, left),
        )
        if self._bar is not None:
            lr = f"{numbers['Train/lr']:.2e}"
            self._bar.set_postfix(loss=f"{loss:.4f}", lr=lr, tok_s=f"{rate:.0f}", refresh=False)

    def write(self, iteration: int, numbers: Mapping[str, float]) -> None:
        """Numbers as they are, to metrics.jsonl and TensorBoard. NaN and infinity become null."""
        if self._folder is not None:
            finite = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
            with (self._folder / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"iteration": iteration, **finite}) + "\n")
        if self._writer is not None:
            for name, value in numbers.items():
                self._writer.add_scalar(name, value, iteration)

    def close(self) -> None:
        """Everything to disk."""
        if self._writer is not None:
            self._writer.close()


def forget_after(path: Path, iteration: int) -> None:
    """Drop the lines of metrics.jsonl that a resumed run will write again, and a torn last one."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row.get("iteration", 0) <= iteration:
            kept.append(row)
    files.write_lines(path, kept)
