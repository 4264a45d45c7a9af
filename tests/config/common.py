"""Short command lines for the tests of config/."""

import pytest

from config import ConfigError, NoArgs, RunArgs, parse_args

METHODS = {"kd": NoArgs}
PRETRAIN = ["--train-data", "corpus.txt", "--train-iters=10", "--bert-prob=1"]
FINETUNE = ["--task=SST-2", "--data-dir=data", "--epochs=1"]
DISTIL = [*PRETRAIN, "--student_model=kd", "--distill_pt_soft", "--teacher_random_para"]


def pretrain(*flags: str, methods=METHODS) -> RunArgs:
    """A complete pretraining run with these flags besides."""
    return parse_args([*PRETRAIN, *flags], program="pretrain", methods=methods)


def finetune(*flags: str, methods=METHODS) -> RunArgs:
    """A complete fine-tuning run with these flags besides."""
    return parse_args([*FINETUNE, *flags], program="finetune", methods=methods)


def problems(argv: list[str], program: str = "pretrain", methods=METHODS) -> tuple[str, ...]:
    """What is wrong with a command line."""
    with pytest.raises(ConfigError) as caught:
        parse_args(argv, program=program, methods=methods)
    return caught.value.problems
