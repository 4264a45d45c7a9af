"""How alike student and teacher are, layer by layer, to the log: --distil_analysis_inter.

Nothing is trained on it. In a step that is logged, the first micro-batch goes through both models
once more, in eval mode and without gradient; so what is computed anyway stays as it is, bit for
bit. The cost is one forward of each model with all layers captured, attention included, in one of
--log-interval steps.

Student layer i goes with teacher layer e_i (`layer_maps.uniform`); embeddings go together. For each
pair of tensors x, y of equal shape, over the tokens of the micro-batch:

    analysis/hidden_states.3/mse_t0            mean (x - y)^2
    analysis/hidden_states.3/kl_T5_t0          T^2 KL(softmax(y / T) || softmax(x / T))
    analysis/hidden_states.3/relation_mse_t0   both again of the relations x x^T / sqrt(width),
    analysis/hidden_states.3/relation_kl_T5_t0     T = 1, 5, 10, 15, 20

hidden_states.0..L [b, s, h], 0 the embeddings; query, key, value.1..L [b, n/p, s, d] per head;
attention_scores.1..L [b, n/p, s, s] and logits [b, s, v/p], which have no relation. Relations need
no equal width. _t0: the teacher; --distil_analysis_frcn: of which passes (--forward_repeat_num).
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from config import RunArgs
from config.distill import passes
from distill import capture, needs
from distill.capture import Captured, Hook, Point, to_hook
from distill.context import Clock
from distill.layer_maps import uniform
from distill.losses import kl, mse, relation
from distill.rows import Rows, local_rows
from distill.student import find_student
from distill.teacher import Teacher, in_fp32
from distill.vocabulary import Columns
from model.build import HeadSpec
from mpu import hook_model

if TYPE_CHECKING:
    from distill.engine.wrap import Engine

TEMPERATURES = (1, 5, 10, 15, 20)
WITH_RELATION = ("hidden_states", "query", "key", "value")
IN_LAYERS = {
    "attention_scores": capture.attention_scores,
    "query": capture.query,
    "key": capture.key,
    "value": capture.value,
}


class Analysis:
    """What --distil_analysis_inter asks for in one run."""

    def __init__(self, run: RunArgs):
        self.on = run.distill.distil_analysis_inter
        self.passes = passes(run.distill.distil_analysis_frcn)
        self.every = run.train.log_interval
        self._mask_map = run.distill.distill_logit_mask_map
        self.num_layers = run.model.num_layers
        self.num_teacher_layers = [teacher.num_layers for teacher in run.teachers]

    @staticmethod
    def problems(run: RunArgs, head: HeadSpec) -> Iterator[str]:
        """A line for each thing that it needs and this run lacks."""
        if not run.distill.distil_analysis_inter:
            return
        yield from needs.shallower("--distil_analysis_inter", run)
        if head.kind == "multi_token_fast":
            yield (
                "--distil_analysis_inter: looks at what is inside the models, which --fast-decode "
                "computes for contexts and answers apart; leave out one of them"
            )

    def wanted(self, clock: Clock) -> bool:
        """Whether this pass is looked at: of the first micro-batch of a step that is logged."""
        logged = (clock.iteration + 1) % self.every == 0 or clock.iteration + 1 == clock.total
        return self.on and logged and clock.micro_step == 0 and clock.repeat in self.passes

    @torch.no_grad()
    def __call__(
        self,
        engine: "Engine",
        teachers: Sequence[Teacher],
        inputs: Sequence[Tensor],
        token_mask: Tensor,
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield (term with the teacher's number, []). `token_mask` [b * c, s]: 1 on tokens."""
        method = find_student(engine.module)
        assert method is not None, "there are teachers, but no student"
        columns = Columns(method, None, self._mask_map)
        for t_no, teacher in enumerate(teachers):
            pairs = list(self._pairs(t_no))
            hook = to_hook([point for _, point, _ in pairs])
            own = _captured(engine, inputs, hook)
            student = Captured(hook, columns.of_student(hook, own))
            hook = to_hook([point for _, _, point in pairs])
            theirs = Captured(hook, columns.of_teacher(hook, teacher(inputs, hook)).captured)
            rows = local_rows(token_mask, len(token_mask))
            for name, s, t in pairs:
                if s in student and t in theirs:
                    for term, value in _compare(name, s, student[s], theirs[t], rows):
                        yield f"analysis/{name}/{term}_t{t_no}", value

    def _pairs(self, t_no: int) -> Iterator[tuple[str, Point, Point]]:
        num_s, num_t = self.num_layers, self.num_teacher_layers[t_no]
        layers = [0, *uniform(num_s, num_t)]
        for i, e in enumerate(layers):
            yield f"hidden_states.{i}", capture.hidden(i, num_s), capture.hidden(e, num_t)
        for name, point in IN_LAYERS.items():
            for i, e in enumerate(layers[1:], start=1):
                yield f"{name}.{i}", point(i), point(e)
        yield "logits", capture.logits(), capture.logits()


def _captured(engine: "Engine", inputs: Sequence[Tensor], hook: Hook) -> list[Tensor]:
    """The student's tensors, as it is evaluated: no dropout, no gradient, no wrapper."""
    module, raw = engine.module, []
    training = module.training
    module.eval()
    try:
        with engine.autocast():
            hook_model(hook, raw, module, *inputs)
    finally:
        module.train(training)
    return in_fp32(raw)


def _compare(
    name: str, point: Point, student: Tensor, teacher: Tensor, rows: Rows
) -> Iterator[tuple[str, Tensor]]:
    """All numbers of one pair of tensors."""
    keys = rows.mask[:, None, None] > 0
    if student.shape == teacher.shape:
        columns = keys if name.startswith("attention_scores") else None
        yield from _numbers("", point, student, teacher, rows, columns)
    if name.partition(".")[0] in WITH_RELATION:
        student, teacher = relation(student), relation(teacher)
        if student.shape == teacher.shape:
            columns = keys if student.dim() == 4 else keys[:, 0].expand_as(student)
            yield from _numbers("relation_", point, student, teacher, rows, columns)


def _numbers(
    prefix: str,
    point: Point,
    student: Tensor,
    teacher: Tensor,
    rows: Rows,
    columns: Tensor | None,
) -> Iterator[tuple[str, Tensor]]:
    options = {"layout": point.layout, "rows": rows, "columns": columns}
    yield f"{prefix}mse", mse(student, teacher, **options)
    for temperature in TEMPERATURES:
        value = kl(student, teacher, temperature=temperature, **options)
        yield f"{prefix}kl_T{temperature}", value
