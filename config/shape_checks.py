"""Checks of the models' shapes: of every teacher, and of what a shape cannot do in a run."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from config.model import shape_problems

if TYPE_CHECKING:
    from config.run import RunArgs


def shape_checks(run: "RunArgs") -> Iterator[str]:
    """Sizes of the teachers (the student has checked its own), and what a shape cannot do."""
    for t_no, teacher in enumerate(run.teachers):
        for problem in shape_problems(teacher):
            yield run.multi_teacher.in_its_flags(t_no, problem)
    fast = run.program == "finetune" and run.finetuning.cloze_eval and run.finetuning.fast_decode
    for flag, group in (
        ("--ib_word_emb", run.model),
        *(
            (run.multi_teacher.flag_of(t_no, "ib_word_emb"), teacher)
            for t_no, teacher in enumerate(run.teachers)
        ),
    ):
        if group.ib_word_emb and run.model.mem_length > 0:
            yield f"{flag}={group.ib_word_emb}: needs whole samples; give --mem-length=0"
        if group.ib_word_emb and fast:
            yield f"{flag}={group.ib_word_emb}: needs whole samples; leave out --fast-decode"
    if run.model.transformer_xl and fast:
        yield "--transformer-xl: distances need whole samples; leave out --fast-decode"
