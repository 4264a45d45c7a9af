"""Whether programs would take their command lines; asked before any of them is started."""

import logging
from pathlib import Path

from config import ConfigError, RunArgs, parse_args
from distill.tune.command import Command

PROGRAMS = {"distill/finetune.py": "finetune", "distill/pretrain.py": "pretrain"}


def command_problems(command: Command) -> list[str]:
    """What a program would refuse before it starts; of a program of the user's own: is it there?"""
    if command.program not in PROGRAMS:
        there = Path(command.program).is_file()
        return [] if there else [f"{command.program}: there is no such program"]
    try:
        run = parsed(command)
    except ConfigError as error:
        return list(error.problems)
    return task_problems(run)


def parsed(command: Command) -> RunArgs:
    """The run that a command of ours asks for; warnings are left to the program itself."""
    from distill.combiner import combiner_args
    from distill.registry import method_args

    words = command.flag_words
    config = logging.getLogger("config")
    level = config.level
    config.setLevel(logging.ERROR)
    try:
        return parse_args(
            words,
            program=PROGRAMS[command.program],
            methods=method_args(words),
            combiners=combiner_args(),
        )
    finally:
        config.setLevel(level)


def task_problems(run: RunArgs) -> list[str]:
    """An unknown task of a fine-tuning run."""
    from tasks import task_name

    if run.program != "finetune":
        return []
    try:
        task_name(run.finetuning.task)
    except ConfigError as error:
        return list(error.problems)
    return []
