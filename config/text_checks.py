"""Checks of tasks whose answers are texts."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from config.tasks import SEQ2SEQ_TASKS, is_one_of

if TYPE_CHECKING:
    from config.run import RunArgs


def is_seq2seq(run: "RunArgs") -> bool:
    """Whether the run fine-tunes a sequence-to-sequence task."""
    return run.program == "finetune" and is_one_of(run.finetuning.task, SEQ2SEQ_TASKS)


def text_problems(run: "RunArgs") -> Iterator[str]:
    """Every problem of the group `text` with the other flags."""
    if is_seq2seq(run):
        yield from _lengths(run)


def _lengths(run: "RunArgs") -> Iterator[str]:
    text, task = run.text, run.finetuning.task
    for flag, given in (
        ("--src-seq-length", text.src_seq_length),
        ("--tgt-seq-length", text.tgt_seq_length),
    ):
        if given is None:
            yield f"{flag}: missing; give the tokens of --task={task}, as 608 and 160 of cnn_dm"
        elif given < 4:
            yield f"{flag}={given}: must be at least 4"
        else:
            yield from _too_long(run, flag, given)
    if text.tgt_seq_length is not None and text.min_tgt_length >= text.tgt_seq_length:
        yield (
            f"--min-tgt-length={text.min_tgt_length}: must be below "
            f"--tgt-seq-length={text.tgt_seq_length}"
        )


def _too_long(run: "RunArgs", flag: str, length: int) -> Iterator[str]:
    longest = run.model.max_position_embeddings
    if length > longest:
        yield (
            f"{flag}={length}: is longer than --max-position-embeddings={longest}; every token "
            "has a position"
        )
    for t_no, teacher in enumerate(run.teachers):
        if length > teacher.max_position_embeddings:
            name = run.multi_teacher.flag_of(t_no, "max_position_embeddings")
            yield (
                f"{flag}={length}: is longer than the teacher's "
                f"{name}={teacher.max_position_embeddings}"
            )
