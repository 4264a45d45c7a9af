"""MiniLMv2 (Wang et al., 2021, arXiv 2012.15828): match relations of queries, keys and values.

    loss = sum_{X in Q, K, V} mean KL(softmax(R_T) || softmax(R_S)),    R = X X^T / sqrt(r)

X [b, s, h/p]: queries, keys, values of the student's last and a chosen layer of the teacher, their
heads side by side and cut anew into R relation heads of width r = h / R. Means over relation heads
and positions; padding is neither a row nor a column.

Not as in the paper: the three relations weigh 1 each, without its alphas.

Not as in the seed: relation heads are compared one by one for every p, also where p does not divide
R (then all are computed on every rank). Padding does not count (--compat=D3). With several teachers
--minilmv2_relation_heads serves all that --minilmv2_relation_heads_mt does not name.

Stages: pretrain with --student_model=minilmv2, the number of relation heads and the teacher's layer
(base: 48 and 12 of 12; large: 64 and 21 of 24), then fine-tune the student alone.

When: heads, widths and depths of student and teacher differ.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from config import ArgGroup, ConfigError, RunArgs, flag
from distill import needs
from distill.capture import Point, mixed_key, mixed_query, mixed_value
from distill.context import LossContext
from distill.losses import kl, relation, split_heads
from distill.registry import register
from distill.student import GLMStudent
from model.build import HeadSpec

MIXED = {"query": mixed_query, "key": mixed_key, "value": mixed_value}


@dataclass(frozen=True, kw_only=True)
class MiniLMv2Args(ArgGroup):
    """Flags of MiniLMv2."""

    title = "minilmv2"
    minilmv2_relation_heads: int = flag(48, "relation heads, a divisor of both widths")
    minilmv2_teacher_layer: int = flag(
        12, "the teacher's layer, counted from 1; negative: from the end, -1 is the last"
    )
    minilmv2_wo_inter: bool = flag(False, "no relations, for a further fine-tuning stage")
    minilmv2_relation_heads_mt: str | None = flag(
        None, "relation heads with each of several teachers, as 48,64"
    )

    def __post_init__(self) -> None:
        if self.minilmv2_relation_heads < 1:
            raise ConfigError(
                f"--minilmv2_relation_heads={self.minilmv2_relation_heads}: must be at least 1"
            )
        if not all(word.isdigit() and int(word) for word in self._words()):
            raise ConfigError(
                f"--minilmv2_relation_heads_mt={self.minilmv2_relation_heads_mt}: must be numbers "
                "of heads, as 48,64"
            )

    def _words(self) -> list[str]:
        text = self.minilmv2_relation_heads_mt
        return [word.strip() for word in text.split(",")] if text else []

    def heads(self, t_no: int) -> int:
        """Relation heads with a teacher; a single number serves all."""
        numbers = [int(word) for word in self._words()] or [self.minilmv2_relation_heads]
        return numbers[t_no if len(numbers) > 1 else 0]

    def teacher_layer(self, num_layers: int) -> int:
        """The teacher's layer, counted from 1."""
        number = self.minilmv2_teacher_layer
        return number if number > 0 else num_layers + 1 + number

    def problems(self, run: RunArgs) -> Iterator[str]:
        """A line for each thing that does not fit student and teachers."""
        words = self._words()
        if len(words) > 1 and len(words) != len(run.teachers):
            yield (
                f"--minilmv2_relation_heads_mt={self.minilmv2_relation_heads_mt}: has {len(words)} "
                f"numbers for {len(run.teachers)} teacher(s); give one for each"
            )
            return
        name = "--minilmv2_relation_heads" + ("_mt" if words else "")
        for t_no, teacher in enumerate(run.teachers):
            heads, width = self.heads(t_no), teacher.model_args(run.model).inner_size
            for whose, each in (("student", run.model.inner_size), (f"teacher {t_no}", width)):
                if each % heads:
                    yield (
                        f"{name}={heads}: does not divide the width of the {whose}'s queries, "
                        f"{each}; give a common divisor of all widths"
                    )
            if not 1 <= self.teacher_layer(teacher.num_layers) <= teacher.num_layers:
                yield (
                    f"--minilmv2_teacher_layer={self.minilmv2_teacher_layer}: teacher {t_no} has "
                    f"{teacher.num_layers} layers; give one of them, or -1 for the last"
                )


@register("minilmv2", "MiniLMv2")
class MiniLMv2(GLMStudent):
    """See the module."""

    Args = MiniLMv2Args

    @classmethod
    def problems(cls, run: RunArgs, head: HeadSpec) -> Iterator[str]:
        """Relation heads that divide all widths, a layer that every teacher has."""
        if not run.method.minilmv2_wo_inter:
            yield from run.method.problems(run)
            yield from needs.teacher_forward("minilmv2", run)

    def pairs(self, t_no: int) -> Iterable[tuple[str, Point, Point]]:
        """Queries, keys and values of the student's last layer and of the teacher's chosen one."""
        flags = self.args.method
        if flags.minilmv2_wo_inter:
            return
        last = self.args.model.num_layers
        layer = flags.teacher_layer(self.args.teachers[t_no].num_layers)
        for name, mixed in MIXED.items():
            yield f"{name}_relation", mixed(last), mixed(layer)

    def loss(
        self, name: str, point: Point, student: Tensor, teacher: Tensor, ctx: LossContext
    ) -> Tensor:
        """KL between the relations of positions, head by head. [] or, keep_batch, [b]."""
        heads = self.args.method.heads(ctx.t_no)
        (student, layout), (teacher, _) = (split_heads(x, heads) for x in (student, teacher))
        return kl(
            relation(student),
            relation(teacher),
            layout=layout,
            rows=ctx.first_rows("all", "tokens"),
            columns=ctx.keys,
            keep_batch=ctx.keep_batch,
        )
