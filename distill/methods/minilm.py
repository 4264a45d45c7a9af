"""MiniLM (Wang et al., 2020, arXiv 2002.10957): match attention and value relations, last layer.

    loss = mean KL(softmax(A_T) || softmax(A_S)) + mean KL(softmax(R_T) || softmax(R_S)),
    R = V V^T / sqrt(d)

A [b, n/p, s, s]: attention scores of the last layer, before the softmax. V [b, n/p, s, d]: its
values; widths may differ, the number of heads n may not. Means over heads and queries; padding is
neither a query nor a key.

Not as in the paper: no teacher assistant of its own; distil twice, once into a model in between.

Not as in the seed: attention is compared as it is; the seed's KL took the softmax of what a softmax
had made already, so that this term nearly vanished (--compat=D27). Heads are compared one by one
for every p. Padding does not count (--compat=D3). Each teacher's last layer is its own.

Stages: pretrain with --student_model=minilm, then fine-tune the student alone.

When: student and teacher have the same number of heads, and widths and depths are free.
"""

from collections.abc import Iterable, Iterator

from torch import Tensor

from config import RunArgs
from distill import needs
from distill.capture import Point, attention_probs, attention_scores, value
from distill.context import LossContext
from distill.losses import kl, relation
from distill.registry import register
from distill.student import GLMStudent
from model.build import HeadSpec


@register("minilm", "MiniLM")
class MiniLM(GLMStudent):
    """See the module."""

    @classmethod
    def problems(cls, run: RunArgs, head: HeadSpec) -> Iterator[str]:
        """Equal numbers of heads, a teacher that runs."""
        yield from needs.equal_heads("minilm", run)
        yield from needs.teacher_forward("minilm", run)

    def pairs(self, t_no: int) -> Iterable[tuple[str, Point, Point]]:
        """Attention and values of the last layers."""
        last, teacher_last = self.args.model.num_layers, self.args.teachers[t_no].num_layers
        attention = attention_probs if "D27" in self.args.compat else attention_scores
        yield "attention", attention(last), attention(teacher_last)
        yield "value_relation", value(last), value(teacher_last)

    def loss(
        self, name: str, point: Point, student: Tensor, teacher: Tensor, ctx: LossContext
    ) -> Tensor:
        """KL of attention, or of the relation that the values make. [] or, keep_batch, [b]."""
        if name == "value_relation":
            student, teacher = relation(student), relation(teacher)
        return kl(
            student,
            teacher,
            layout=point.layout,
            rows=ctx.first_rows("all", "tokens"),
            columns=ctx.keys,
            keep_batch=ctx.keep_batch,
        )
