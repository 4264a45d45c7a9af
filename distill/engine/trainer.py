"""The loop: the same for pretraining and every task, on every engine."""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

import mpu
from config import RunArgs
from data_utils.batch import Batch
from distill.context import TrainState
from distill.engine.checkpoint import Checkpoints
from distill.engine.launch import Runtime, TrainingError
from distill.engine.lr_schedule import LRSchedule
from distill.engine.summary import Meter, Summary
from distill.engine.wrap import Engine, StepResult
from distill.step import DistillStep

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """When things happen, in optimizer steps."""

    total: int
    log_every: int
    eval_every: int | None = None
    eval_at_end: bool = False
    save_every: tuple[int, ...] = ()
    save_hours: float = 0.0
    save_at_end: bool = True
    steps_per_epoch: int | None = None

    def evaluates_after(self, iteration: int) -> bool:
        """Whether an evaluation follows this many steps."""
        at_end = self.eval_at_end and iteration == self.total
        return at_end or (self.eval_every is not None and iteration % self.eval_every == 0)

    def saves_after(self, iteration: int) -> bool:
        """Whether a checkpoint follows this many steps."""
        return any(iteration % every == 0 for every in self.save_every)


class BadSteps:
    """Counts skipped updates without asking the device; ends a run that only skips.

    A skip while fp16 looks for its loss scale is none: there the scale falls, until it is 1.
    """

    def __init__(self, state: TrainState, device: torch.device, limit: int):
        self.state, self.limit = state, limit
        self._every = 1 if device.type == "cpu" else limit  # steps between two looks
        self._row = torch.tensor(state.bad_steps, device=device)
        self._longest, self._all = self._row.clone(), torch.zeros_like(self._row)
        self._scale: Tensor | None = None

    def add(self, result: StepResult) -> None:
        """One optimizer step. TrainingError after `limit` skipped ones in a row."""
        device = self._row.device
        skipped = ~result.applied.to(device)
        scale = result.loss_scale.to(device)
        falls = scale < 0.9 * self._scale if self._scale is not None else torch.zeros_like(skipped)
        self._row = torch.where(skipped & (~falls | (scale <= 1)), self._row + 1, 0)
        self._longest = torch.maximum(self._longest, self._row)
        self._all = self._all + skipped
        self._scale = scale
        if self.state.iteration % self._every == 0:
            self.read()

    def read(self) -> None:
        """Bring the counts into the state."""
        row, longest, new = torch.stack([self._row, self._longest, self._all]).tolist()
        self.state.bad_steps, self._longest = row, self._row.clone()
        self.state.skipped_steps += new
        self._all = torch.zeros_like(self._all)
        if new:
            log.warning(
                "iteration %d: loss or gradients not finite, %d update(s) skipped (%d in all, "
                "%d in a row)",
                *(self.state.iteration + 1, new, self.state.skipped_steps, row),
            )
        if longest >= self.limit:
            raise TrainingError(
                f"--max-bad-steps={self.limit}: {longest} updates in a row had NaN or infinite "
                f"losses or gradients (iteration {self.state.iteration + 1}); lower --lr, or look "
                "at the data"
            )


class Trainer:
    """Trains until the plan is done, evaluating, saving and telling on the way."""

    def __init__(
        self,
        engine: Engine,
        step: DistillStep,
        batches: Iterable[list[Batch]],
        plan: Plan,
        state: TrainState,
        run: RunArgs,
        runtime: Runtime,
        *,
        checkpoints: Checkpoints,
        summary: Summary,
        evaluate: Callable[[], dict[str, float]] | None = None,
    ):
        """`batches`: from the state's iteration on. `evaluate`: scores of the validation data."""
        self.engine, self.step, self.batches = engine, step, batches
        self.plan, self.state, self.run, self.runtime = plan, state, run, runtime
        self.checkpoints, self.summary, self._evaluate = checkpoints, summary, evaluate
        self.schedule = self._schedule()
        self.meter = Meter(engine.device)
        self.bad_steps = BadSteps(state, engine.device, run.train.max_bad_steps)
        self.scores: dict[str, float] = {}  # of the last evaluation,
        self.scored_at: int | None = None  # after this many steps
        self._logged = self._saved = state.iteration
        self._saved_at = time.monotonic()

    def _schedule(self) -> LRSchedule:
        """From the flags; linear from where a resumed run was told to switch."""
        compat, switches = "W11" in self.run.compat, self.run.optim.switch_linear
        schedule = LRSchedule.build(self.run.optim, self.plan.total, seed_compat=compat)
        if switches and self.run.checkpoint.load and self.state.switched_at is None:
            self.state.switched_at = self.state.iteration
        if self.state.switched_at is None:
            return schedule
        return schedule.switch_linear(self.state.switched_at, self.plan.total)

    def fit(self) -> None:
        """The rest of the run."""
        if self.state.iteration >= self.plan.total:
            return
        if self.checkpoints.folder is None:
            log.warning(
                "--save: missing, so the trained weights are lost at the end; give a folder"
            )
        self.engine.module.train()
        self.meter.reset()
        with self.summary.progress(self.state.iteration, self.plan.total):
            for micro_batches in self.batches:
                self.train_step(micro_batches)
                if self.state.iteration % self.plan.log_every == 0:
                    self._log()
                self._moments()
                if self.state.iteration >= self.plan.total:
                    break
        self.bad_steps.read()
        if self.state.bad_steps:
            log.warning(
                "the run ends with its last %d update(s) skipped: loss or gradients were not "
                "finite; the last weights may be bad",
                self.state.bad_steps,
            )
        self._log()
        if self.plan.save_at_end and self._saved != self.state.iteration:
            self._save()

    def train_step(self, micro_batches: list[Batch]) -> None:
        """One optimizer step over this rank's micro-batches."""
        state, dp_rank = self.state, mpu.get_data_parallel_rank()
        counts = self.step.count(micro_batches)
        for number, batch in enumerate(micro_batches):
            mpu.seed_step(self.run.train.seed, state.iteration, number, dp_rank)
            with self.engine.micro_step(last=number == len(micro_batches) - 1):
                output = self.step(batch, counts, number)
                self.engine.backward(output.loss)
            self.meter.add(batch, output.loss, output.terms)
        result = self.engine.step(self.schedule(state.iteration))
        self.bad_steps.add(result)
        state.iteration += 1
        if self.plan.steps_per_epoch is not None:
            state.epoch = state.iteration // self.plan.steps_per_epoch
        self.summary.advance()

    def _moments(self) -> None:
        """What follows some steps: evaluation, then a checkpoint that knows its result."""
        if self._evaluate is not None and self.plan.evaluates_after(self.state.iteration):
            self.evaluate()
        if self.plan.saves_after(self.state.iteration) or self._hours_are_over():
            self._save()

    def evaluate(self) -> None:
        """Scores of the validation data, now."""
        assert self._evaluate is not None
        started = time.perf_counter()
        self.scores, self.scored_at = self._evaluate(), self.state.iteration
        self.meter.pause(time.perf_counter() - started)
        numbers = {f"Train/valid_{name}": value for name, value in self.scores.items()}
        self.summary.write(self.state.iteration, numbers)
        text = " | ".join(f"{name} {value:.4f}" for name, value in self.scores.items())
        log.info("validation after iteration %d: %s", self.state.iteration, text)

    def _log(self) -> None:
        """Read the meter; one line a log interval, and one for what is left at the end."""
        steps = self.state.iteration - self._logged
        if not steps:
            return
        means, samples, tokens, seconds = self.meter.read()
        self.meter.reset()
        self._logged = self.state.iteration
        self.state.samples += samples
        self.state.tokens += tokens
        self.state.seconds += seconds
        numbers = {
            "Train/lr": self.schedule(self.state.iteration - 1),
            **means,
            "Train/elapsed_time": seconds / steps * 1000,
            "Train/tokens_per_second": tokens / seconds,
        }
        self.summary.train(self.state.iteration, self.plan.total, numbers, seconds / steps)

    def _save(self) -> None:
        self._log()
        self.bad_steps.read()
        self.step.remember()
        started = time.perf_counter()
        self.checkpoints.save(self.engine, self.state.state_dict())
        self._saved, self._saved_at = self.state.iteration, time.monotonic()
        self.meter.pause(time.perf_counter() - started)

    def _hours_are_over(self) -> bool:
        """--save_interval_time, by the first process's clock; asked once a log interval."""
        hours = self.plan.save_hours
        if hours <= 0 or self.state.iteration % self.plan.log_every:
            return False
        over = [time.monotonic() - self._saved_at >= hours * 3600]
        if self.runtime.world_size > 1:
            dist.broadcast_object_list(over, src=0)
        return over[0]
