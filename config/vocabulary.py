"""Vocabulary compression: how many ids are kept, and what its flags need."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from config.errors import ConfigError
from config.notes import warn

if TYPE_CHECKING:
    from config.run import RunArgs


class Vocabulary(Protocol):
    """What a tokenizer tells of its size."""

    @property
    def num_tokens(self) -> int:
        """Its ids."""

    def padded_size(self, divisible_by: int) -> int:
        """Rows of a word table with all of them."""


def with_vocabulary(run: "RunArgs", tokenizer: Vocabulary) -> "RunArgs":
    """The run with the sizes that its tokenizer decides: of the vocabulary, and of what is kept.

    ConfigError: a word table that the model-parallel size does not divide.
    """
    multiple, ranks = run.model.make_vocab_size_divisible_by, run.parallel.model_parallel_size
    padded = tokenizer.padded_size(multiple)
    remedy = f"give --make-vocab-size-divisible-by={multiple * ranks} (now {multiple})"
    if padded % ranks:
        raise ConfigError(
            f"--model-parallel-size={ranks}: does not divide the padded vocabulary of {padded}; "
            + remedy
        )

    def kept(flag: str, size: float) -> float:
        """Ids that are kept; 0 for all."""
        if not size:
            return 0.0
        rows = kept_rows(size, tokenizer.num_tokens, multiple)
        if rows >= padded:
            warn(f"{flag}={size:g}: has no effect on a vocabulary of {padded}, rounded up")
            return 0.0
        if rows % ranks:
            raise ConfigError(
                f"--model-parallel-size={ranks}: does not divide the {rows} rows of "
                f"{flag}={size:g}; {remedy}"
            )
        return float(rows)

    size = kept("--map_vocab_size", run.model.map_vocab_size)
    teachers = tuple(
        replace(
            teacher,
            map_vocab_size=kept(
                run.multi_teacher.flag_of(t_no, "map_vocab_size"), teacher.map_vocab_size
            ),
        )
        for t_no, teacher in enumerate(run.teachers)
    )
    model = replace(run.model, vocab_size=padded, map_vocab_size=size)
    return replace(run, model=model, teachers=teachers)


def kept_rows(size: float, num_tokens: int, multiple: int) -> int:
    """Rows of a word table for a number of ids, or below 1 a fraction of them; rounded up."""
    wanted = size if size >= 1 else size * num_tokens
    return math.ceil(wanted / multiple) * multiple


def map_problems(run: "RunArgs") -> Iterator[str]:
    """What the flags of vocabulary compression need and this run lacks."""
    if not run.model.map_vocab_size:
        return
    flag, args = f"--map_vocab_size={run.model.map_vocab_size:g}", run.distill
    loaded = run.checkpoint.load or run.checkpoint.load_pretrained
    if run.teachers and run.multi_teacher.student_use_empty_glm:
        yield f"{flag}: there is no student to compress (--student_use_empty_glm); leave it out"
    elif not (args.student_build_map_vocab or loaded):
        yield (
            f"{flag}: says how many ids to keep, not which; add --student_build_map_vocab, or "
            "start from a checkpoint that has a vocabulary map (--load-pretrained)"
        )
    number = args.student_map_vocab_tn
    if args.student_build_map_vocab and number is not None and number >= len(run.teachers) > 0:
        yield (
            f"--student_map_vocab_tn={number}: there is no such teacher; they are numbered from 0 "
            f"to {len(run.teachers) - 1}"
        )


def warn_idle_map(run: "RunArgs") -> None:
    """A warning for a method's flag about dropped ids where none is dropped."""
    flag = "--logitsdistil_teacher_input_ids_map"
    if flag in run.flags and not run.model.map_vocab_size:
        warn(f"{flag}: has no effect without --map_vocab_size")


def builds_map(run: "RunArgs") -> bool:
    """Whether this run chooses the ids that its model keeps: one without a checkpoint does."""
    loaded = run.checkpoint.load or run.checkpoint.load_pretrained
    return bool(run.model.map_vocab_size and run.distill.student_build_map_vocab and not loaded)


def substitutes_from(run: "RunArgs") -> int | None:
    """Number of the teacher whose word vectors choose substitutes; None (or below 0): none."""
    number = run.distill.student_map_vocab_tn
    return number if number is not None and number >= 0 and run.teachers else None
