"""Learning rate as a pure function of the optimizer step: nothing to save, nothing to restore.

    k <= W          peak * k / W                                             warm-up
    linear          peak * (1 - (1 - r) * t)
    cosine          peak * (r + (1 - r) * (1 + cos(pi * t)) / 2)
    exponential     peak * r ** t
    constant        peak

k: optimizer steps done so far, so the first step of a warm-up has rate 0. W = warmup * N (steps),
t = (k - W) / (N - W), at most 1: below the floor r * peak no style ever goes.
r: --lr-decay-ratio. N: --lr-decay-iters, else the length of the run (steps).

Not as in the seed (restored by W11 of --compat): its linear rate goes on falling behind N and
becomes negative, its exponential rate is constant.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

from config.training import OptimizerArgs


@dataclass(frozen=True)
class LRSchedule:
    """`schedule(k)` is the rate of the step after k steps."""

    peak: float
    warmup_steps: float
    decay_steps: float
    ratio: float
    style: str
    seed_compat: bool = False  # W11
    start: int = 0  # the schedule's own step 0, after a restart

    @classmethod
    def build(cls, optim: OptimizerArgs, total_steps: int, *, seed_compat: bool = False) -> Self:
        """The schedule of a run of `total_steps` optimizer steps."""
        steps = max(1, optim.lr_decay_iters or total_steps)
        warmup = optim.warmup * steps
        return cls(
            peak=optim.lr,
            warmup_steps=warmup,
            decay_steps=steps - warmup,
            ratio=optim.lr_decay_ratio,
            style=optim.lr_decay_style,
            seed_compat=seed_compat,
        )

    def __call__(self, step: int) -> float:
        """Rate of the optimizer step that follows `step` steps."""
        k = step - self.start
        if self.warmup_steps > 0 and k <= self.warmup_steps:
            return self.peak * k / self.warmup_steps
        t = (k - self.warmup_steps) / self.decay_steps if self.decay_steps > 0 else 1.0
        if self.style == "linear":
            t = t if self.seed_compat else min(1.0, t)
            return self.peak - self.peak * (1 - self.ratio) * t
        if self.style == "cosine":
            wave = (1 + math.cos(math.pi * min(1.0, t))) / 2
            return self.peak * (self.ratio + (1 - self.ratio) * wave)
        if self.style == "exponential" and not self.seed_compat:
            return self.peak * self.ratio ** min(1.0, t)
        return self.peak

    def switch_linear(self, step: int, total_steps: int) -> Self:
        """From `step` on: warm up again to the present rate, then linear over the steps left."""
        left = max(1, total_steps - step)
        return replace(self, peak=self(step), decay_steps=left, style="linear", start=step)
