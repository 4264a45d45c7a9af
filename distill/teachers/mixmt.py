"""MixMT: several combiners at once; their losses add up.

    loss = sum_j loss_j          --mixmt_model=Uncertainty,AvgTeacher: in this order

Each is a combiner of its own with its own flags; teachers run once for all of them. Hard labels
that several add count several times.

Not as in the seed: parts have an order, so all ranks build them alike; a semantic model of rl_kd is
a teacher to the others.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from config import ArgGroup, RunArgs, flag
from distill.combiner import COMBINERS, Combination, Combiner, TaskShape, register_combiner
from distill.context import Clock
from model.build import HeadSpec


@dataclass(frozen=True, kw_only=True)
class MixMTArgs(ArgGroup):
    """Flags of MixMT."""

    title = "several teachers: mixmt"
    mixmt_model: str | None = flag(None, "combiners, as Uncertainty,AvgTeacher")

    def mixes(self) -> tuple[str, ...]:
        """The combiners' names."""
        words = (self.mixmt_model or "").split(",")
        return tuple(word.strip() for word in words if word.strip())


@register_combiner("mixmt", "MixMT")
class MixMT(Combiner):
    """See the module."""

    Args = MixMTArgs

    def __init__(self, run: RunArgs, args: ArgGroup, shape: TaskShape):
        super().__init__(run, args, shape)
        self.names = args.mixes()
        self.mixed = nn.ModuleDict(
            {name: COMBINERS[name](run, run.combined[name], shape) for name in self.names}
        )

    @classmethod
    def problems(cls, run: RunArgs, args: ArgGroup, head: HeadSpec) -> Iterator[str]:
        """At least one part, each once, no mix; and what each of them needs."""
        names = args.mixes()
        if not names:
            yield "--mixmt_model: missing; name the combiners, as Uncertainty,AvgTeacher"
        kinds = [COMBINERS[name] for name in names]
        if len(set(kinds)) < len(kinds):
            yield f"--mixmt_model={args.mixmt_model}: names a combiner twice; name it once"
        if cls in kinds:
            yield f"--mixmt_model={args.mixmt_model}: mixmt is no part of itself; leave it out"
            return
        for name in names:
            yield from COMBINERS[name].problems(run, run.combined[name], head)

    @classmethod
    def converts_width(cls, run: RunArgs, args: ArgGroup) -> bool:
        """If all of them do."""
        names = args.mixes()
        return bool(names) and all(
            COMBINERS[name].converts_width(run, run.combined[name])
            for name in names
            if COMBINERS[name] is not cls
        )

    @property
    def parts(self) -> Sequence[Combiner]:
        """The combiners, in the order of the flag."""
        return list(self.mixed.values())

    @property
    def needs_all_logits(self) -> bool:
        """If one of them does."""
        return any(part.needs_all_logits for part in self.parts)

    def begin_pass(self, clock: Clock) -> None:
        """For all of them."""
        super().begin_pass(clock)
        for part in self.parts:
            part.begin_pass(clock)

    def join(self, totals: Sequence[Tensor | float], made: Combination) -> Tensor | float:
        """The sum; each is logged under its name."""
        for name, total in zip(self.names, totals, strict=True):
            made.log(f"multi_teacher_model/{name}", total)
        return sum(totals, start=0.0)

    def combiner_state(self) -> dict[str, Any]:
        """That of each part."""
        return {name: part.combiner_state() for name, part in self.mixed.items()}

    def load_combiner_state(self, values: Mapping[str, Any]) -> None:
        """To each part its own."""
        for name, state in values.items():
            self.mixed[name].load_combiner_state(state)
