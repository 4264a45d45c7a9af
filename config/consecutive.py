"""Checks of pretraining on text that goes on from step to step: --transformer-xl, --mem-length."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from config.run import RunArgs


def consecutive_problems(run: "RunArgs") -> Iterator[str]:
    """What cannot be read on, or not be remembered."""
    length = run.model.mem_length
    if run.program != "pretrain" or not run.model.transformer_xl:
        return
    if not run.reads_text:
        if length > 0:
            yield (
                f"--mem-length={length}: samples with blanks do not continue each other; leave out "
                "--block-lm and --masked-lm to train on text from left to right, or give "
                "--mem-length=0"
            )
        return
    for flag, group in (
        ("--ib_word_emb", run.model),
        *(
            (run.multi_teacher.flag_of(t_no, "ib_word_emb"), teacher)
            for t_no, teacher in enumerate(run.teachers)
        ),
    ):
        if group.ib_word_emb and not length:  # with a memory this is said elsewhere
            yield f"{flag}={group.ib_word_emb}: looks ahead in a context; give --block-lm"
    if run.data.train_data_weights is not None:
        yield (
            "--train-data-weights: --transformer-xl reads all documents from end to end; leave it "
            "out, or give --block-lm"
        )
    if run.remembers and run.distill.distill_random_data:
        yield (
            f"--distill_random_data={run.distill.distill_random_data}: what is remembered would "
            "not be the text; leave it out, or give --mem-length=0"
        )
