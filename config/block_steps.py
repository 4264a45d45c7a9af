"""Fine-tuning with steps of blank infilling in between."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from config.data import block_problems
from config.text_checks import is_lm, is_seq2seq

if TYPE_CHECKING:
    from config.run import RunArgs


def block_step_problems(run: "RunArgs") -> Iterator[str]:
    """What --block-lm-ratio cannot be combined with."""
    given = f"--block-lm-ratio={run.finetuning.block_lm_ratio}"
    if run.program != "finetune" or run.finetuning.block_lm_ratio == 0:
        return
    yield from block_problems(run.blocks)
    if is_seq2seq(run) or is_lm(run):
        yield f"{given}: is for tasks that fill a pattern; leave it out"
    elif not run.finetuning.cloze_eval:
        yield f"{given}: a classification head predicts no words; add --cloze-eval"
    for flag, wrong in (
        (f"--student_model={run.distill.student_model}", run.distill.student_model is not None),
        ("--freeze-transformer", run.finetuning.freeze_transformer),
        ("--masked-lm", run.blocks.masked_lm),
    ):
        if wrong:
            yield f"{given}: its steps train the whole model on blanks, alone; leave out {flag}"
