"""Theseus (Xu et al., 2020, arXiv 2002.02925): teacher blocks stand in for student blocks.

    x_i = S_i(x_(i-1))  with probability r,  else  T_(e_i)(... T_(e_(i-1) + 1)(x_(i-1)))    i = 1..N
    r   = min(1, r_0 + (1 - r_0) it / (f I))
    loss = the hard loss of what the mixed stack predicts

S_i, T_j: blocks of student and teacher, x [b, s, h]. Student block i stands for the teacher blocks
e_(i-1) + 1 .. e_i, e: `distill.layer_maps.uniform`; with several teachers, for those of one that is
drawn. it, I: iteration and all iterations; r_0: --theseus_replacing_rate; after the fraction f of I
(--theseus_not_replaced_steps) the student stands alone. One draw a micro-batch, the same on all
ranks. Teacher blocks are frozen, without dropout, in the teacher's precision; gradients pass.

The teacher's own forward is not needed: --mt_disable_operation=1 leaves it out, unless soft labels
(--distill_ft_soft) are on, too. Evaluation is the student's.

Not as in the paper: embeddings, final LayerNorm and head are the student's and are trained.

Not as in the seed: at least one student block runs, in a draw without any the one that came closest
(--compat=D31: none). Frozen blocks collect no gradients.

Stages: fine-tuning with --distill_ft_hard --student_truncate_tn=0 --theseus_replacing_rate=0.3
--theseus_not_replaced_steps=0.66 --mt_disable_operation=1.

When: for fine-tuning a student as wide as its fine-tuned teacher, without pretraining one.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from config import ArgGroup, ConfigError, RunArgs, flag
from distill import needs
from distill.capture import Hook
from distill.layer_maps import uniform
from distill.registry import register
from distill.student import GLMStudent
from model.build import HeadSpec
from mpu import Recorder

Block = Callable[[Tensor, Tensor, Tensor | None, Recorder], Tensor]  # how a stack calls its layers


@dataclass(frozen=True, kw_only=True)
class TheseusArgs(ArgGroup):
    """Flags of Theseus."""

    title = "theseus"
    theseus_replacing_rate: float = flag(0.3, "probability of a student block, at the start")
    theseus_not_replaced_steps: float = flag(
        0.66, "when it has grown to 1 (fraction of all iterations)"
    )

    def __post_init__(self) -> None:
        rate, part = self.theseus_replacing_rate, self.theseus_not_replaced_steps
        problems = []
        if not 0 <= rate <= 1:
            problems.append(f"--theseus_replacing_rate={rate:g}: must be in [0, 1]")
        if part < 0:
            problems.append(f"--theseus_not_replaced_steps={part:g}: must not be negative")
        if problems:
            raise ConfigError(problems)


@register("theseus", "Theseus")
class Theseus(GLMStudent):
    """See the module."""

    Args = TheseusArgs

    @classmethod
    def problems(cls, run: RunArgs, head: HeadSpec) -> Iterable[str]:
        """Blocks that fit into each other's place."""
        yield from needs.shallower("theseus", run)
        yield from needs.labels("theseus", run)
        own = run.model.hidden_size
        for t_no, teacher in enumerate(run.teachers):
            if teacher.hidden_size != own:
                yield (
                    f"--hidden-size={own}: theseus puts teacher blocks in place of student blocks, "
                    f"and teacher {t_no} is {teacher.hidden_size} wide; use the same width"
                )
            if teacher.fp16 and not run.precision.fp16:
                yield (
                    "--teacher_fp16: gradients pass through the teacher's blocks, and vanish in "
                    "fp16 without --fp16; use --teacher_bf16, or leave it out"
                )
        yield from needs.weights_at_hand("theseus", run, frozen=True)
        if head.kind == "multi_token_fast":
            yield "--fast-decode: theseus needs one stack of blocks a forward; leave it out"

    def replacing_rate(self) -> float:
        """Probability of a student block in this iteration."""
        flags = self.args.method
        start, part = flags.theseus_replacing_rate, flags.theseus_not_replaced_steps
        rate = start + (1 - start) * self.clock.progress / part if part else 1.0
        return rate if "D31" in self.args.compat else min(1.0, rate)

    def draw_blocks(self) -> list[int | None]:
        """For each student block None, or the number of the teacher that stands in for it."""
        clock, number = self.clock, self.args.model.num_layers
        generator = self.generator(clock.iteration, clock.micro_step, clock.repeat)
        chance = torch.rand(number, generator=generator)
        teachers = torch.randint(len(self.args.teachers), (number,), generator=generator).tolist()
        own = chance < self.replacing_rate()
        if "D31" not in self.args.compat:
            own |= chance == chance.min()
        return [None if mine else t_no for mine, t_no in zip(own.tolist(), teachers, strict=True)]

    def get_student_hook_op(self, teacher_models: Sequence[nn.Module] = ()) -> Hook:
        """The stack of this forward."""
        self.add_summary("get_student_hook_op/replacing_rate", self.replacing_rate())
        stacks, drawn = [_stack(model) for model in teacher_models], self.draw_blocks()

        def self_layers(self_layers: list[nn.Module]) -> list[Block]:
            """The stack with some blocks replaced."""
            mixed: list[Block] = []
            for i, (own, t_no) in enumerate(zip(self_layers, drawn, strict=True)):
                if t_no is None:
                    mixed.append(own)
                else:
                    ends = [0, *uniform(len(drawn), len(stacks[t_no]))]
                    mixed += [_frozen(block) for block in stacks[t_no][ends[i] : ends[i + 1]]]
            return mixed

        return {"transformer": {"self_layers": self_layers}}


def _stack(teacher: nn.Module) -> list[nn.Module]:
    """The blocks of a teacher, whatever head is around it."""
    transformer = next(m.transformer for m in teacher.modules() if hasattr(m, "transformer"))
    return list(transformer.layers) * transformer.rounds


def _frozen(block: nn.Module) -> Block:
    """A teacher's block in the student's stack: x goes in and comes out in the student's dtype.

    Half-precision weights compute in theirs, fp32 ones in whatever the student's autocast says.
    """
    dtype = next(block.parameters()).dtype

    def run(x: Tensor, mask: Tensor, memory: Tensor | None, recorder: Recorder) -> Tensor:
        memory = None if memory is None else memory.to(dtype)
        half = dtype is not torch.float32
        with torch.autocast(x.device.type, enabled=False) if half else contextlib.nullcontext():
            return block(x.to(dtype), mask, memory, recorder).to(x.dtype)

    return run
