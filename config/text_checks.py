"""Checks of tasks whose answers are texts, and of language modelling."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from config.tasks import LM_TASKS, SEQ2SEQ_TASKS, is_one_of

if TYPE_CHECKING:
    from config.run import RunArgs


def is_seq2seq(run: "RunArgs") -> bool:
    """Whether the run fine-tunes a sequence-to-sequence task."""
    return run.program == "finetune" and is_one_of(run.finetuning.task, SEQ2SEQ_TASKS)


def is_lm(run: "RunArgs") -> bool:
    """Whether the run evaluates language modelling."""
    return run.program == "finetune" and is_one_of(run.finetuning.task, LM_TASKS)


def text_problems(run: "RunArgs") -> Iterator[str]:
    """Every problem of the group `text` with the other flags."""
    if is_seq2seq(run):
        yield from _lengths(run)
    if is_lm(run):
        yield from _windows(run)


def generation_problems(run: "RunArgs") -> Iterator[str]:
    """What scripts/generate.py needs."""
    if run.checkpoint.load_pretrained is None:
        yield "--load-pretrained: missing; give the checkpoint of the model that is to write"
    text = run.text
    yield from _too_long(run, "--out-seq-length", text.out_seq_length)
    if text.min_tgt_length >= text.out_seq_length:
        yield (
            f"--min-tgt-length={text.min_tgt_length}: must be below "
            f"--out-seq-length={text.out_seq_length}"
        )


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


def _windows(run: "RunArgs") -> Iterator[str]:
    text, task = run.text, run.finetuning.task
    if run.train.epochs != 0:
        yield f"--epochs={run.train.epochs}: --task={task} is evaluated only; give --epochs=0"
    if not run.data.valid_data or len(run.data.valid_data) != 1:
        yield f"--valid-data: give the one file that --task={task} evaluates"
    length = run.data.eval_seq_length or run.data.seq_length
    if not is_one_of(task, ("lambda", "lambada")) and text.overlapping_eval >= length - 1:
        yield (
            f"--overlapping-eval={text.overlapping_eval}: must be below {length - 1}, the "
            "tokens of a window (--eval-seq-length, else --seq-length, less one)"
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
