"""The seed's command line of auto_tune: its own flags, and the prefixes of all others.

`ds_KEY=V` sets a value of DeepSpeed's JSON, `rate_ds_KEY=F` multiplies it, `again_N__FLAG=V`
belongs to a further stage, `TASK_model_path=P` to one task. What is left goes to the program.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from config import ArgGroup, ConfigError, flag
from config.notes import warn
from config.parser import Parser
from distill.tune.command import Flags, Value, parse_flags
from distill.tune.presets import CONFIG, models, tasks

EPOCH_TYPES = ("EPOCH_SINGLE", "XXLARGE_EPOCH", "EPOCH_0")
SCRIPTS = ("finetune_superglue", "evaluate_lm", "finetune_blank", "finetune_seq2seq")
PLAIN_PROGRAM, PROGRAM = "finetune_glm.py", "distill/finetune.py"
_AGAIN = re.compile(r"--again_(\d)__(.+)")


@dataclass(frozen=True, kw_only=True)
class TuneArgs(ArgGroup):
    """The seed's flags, with its defaults."""

    title = "one task after the other, as in the seed"
    py_file: str = flag(PLAIN_PROGRAM, f"program of every run; {PROGRAM} does its work as well")
    gpus: str = flag("6", "GPUs of a run, as 0,1, or host:0,1; several runs at once: 0,1;2,3")
    model: str = flag("block_tiny6", "size of the model: a file of config/models")
    model_path: str | None = flag(None, "checkpoint to start from, below --data_root")
    tasks: str = flag(
        "copa,wsc_generative,cb,rte,boolq,wic,wsc,multirc,record", "which ones, in this order"
    )
    script: str = flag("finetune_superglue", "kind of the tasks", choices=SCRIPTS)
    task_t_load: str | None = flag(None, "teachers: a key of --task_t_load_path")
    task_t_load_path: str = flag(str(CONFIG.name + "/task_t_load.json"), "teachers of every task")
    save_sub: str | None = flag(None, "folder of the runs below the checkpoint")
    test: bool = flag(False, "print the commands and run nothing")
    epoch_type: str = flag("EPOCH_SINGLE", "which epochs of the task", choices=EPOCH_TYPES)
    epoch_rate: float = flag(1.0, "multiplies the task's epochs, rounded up")
    rate_arg_epochs: float = flag(1.0, "multiplies the command's epochs, rounded down")
    mask_ratio: float = flag(0.1, "--blank-maskratio of seq_blank")
    big_task: str = flag("record", "tasks with a DeepSpeed JSON and GPUs of their own")
    big_task_gpus: str | None = flag(None, "GPUs of --big_task")
    big_task_dsc_suffix: str = flag("_big_task", "suffix of the DeepSpeed JSON of --big_task")
    del_checkpoint_activations: bool = flag(False, "leave --checkpoint-activations out")
    del_fp16: bool = flag(False, "leave --fp16 out; DeepSpeed's JSON without fp16 and ZeRO")
    fix_module_parameters_mp: str | None = flag(
        None, "taken and without effect: conversion knows how each parameter is cut"
    )
    show_tune: str | None = flag(None, "print the scores of a saved tune file, run nothing")
    data_root: str = flag("../GLM/data", "folder of checkpoints and of english_data")
    retries: int = flag(1, "how often a command that failed is run again")


@dataclass(frozen=True)
class Given:
    """A whole command line: the seed's flags, and what the prefixes say."""

    tune: TuneArgs
    model_paths: dict[str, str]  # of single tasks
    passed: Flags  # to the program
    again: dict[int, Flags]  # stage -> its flags
    stage_teachers: dict[int, str] = field(default_factory=dict)  # again_N__task_t_load
    ds: dict[str, str] = field(default_factory=dict)  # key of DeepSpeed's JSON -> text
    ds_rates: dict[str, float] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        """Keys, in order."""
        return [key for key in self.tune.tasks.split(",") if key]

    @property
    def program(self) -> str:
        """The program's path here."""
        return PROGRAM if self.tune.py_file == PLAIN_PROGRAM else self.tune.py_file

    def ds_values(self, place: int) -> dict[str, tuple[str, float | None]]:
        """Key -> (text, rate) for the task at this place of --tasks."""
        found = {}
        for key, text in self.ds.items():
            parts = text.split(";")
            found[key] = (parts[place if len(parts) > 1 else 0], self.ds_rates.get(key))
        return found


def read(argv: Sequence[str]) -> Given:
    """A command line, checked as far as it can be without files. ConfigError: all problems."""
    parser = Parser(prog="distill/auto_tune.py", allow_abbrev=False)
    parser.problems = []
    TuneArgs.add_to(parser)
    known, unknown = parser.parse_known_args(list(argv))
    problems = list(parser.problems)
    given = _sort(TuneArgs.take(known), unknown, problems)
    problems += _problems(given)
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    if given.tune.fix_module_parameters_mp is not None:
        warn("--fix_module_parameters_mp: has no effect; conversion knows how each one is cut")
    return given


def _sort(tune: TuneArgs, words: Sequence[str], problems: list[str]) -> Given:
    """What argparse does not know, by prefix."""
    given = Given(tune, {}, {}, {})
    try:
        pairs = parse_flags(words)
    except ValueError as error:
        problems.append(str(error))
        pairs = []
    for name, value in pairs:
        if found := _AGAIN.fullmatch(name):
            _take_again(given, int(found[1]), found[2], value, problems)
        elif name.startswith("--ds_"):
            given.ds[name.removeprefix("--ds_")] = _text(name, value, problems)
        elif name.startswith("--rate_ds_"):
            text = _text(name, value, problems)
            try:
                given.ds_rates[name.removeprefix("--rate_ds_")] = float(text)
            except ValueError:
                problems.append(f"{name}={text}: must be a number")
        elif name.removeprefix("--").removesuffix("_model_path") in _task_prefixes(name):
            key = name.removeprefix("--").removesuffix("_model_path")
            given.model_paths[key] = _text(name, value, problems)
        else:
            given.passed[name] = value
    return given


def _task_prefixes(name: str) -> set[str]:
    return set(tasks()) if name.endswith("_model_path") else set()


def _take_again(given: Given, stage: int, name: str, value: Value, problems: list[str]) -> None:
    if name == "task_t_load":
        given.stage_teachers[stage] = _text(f"--again_{stage}__{name}", value, problems)
        given.again.setdefault(stage, {})
    else:
        given.again.setdefault(stage, {})[f"--{name}"] = value


def _text(name: str, value: Value, problems: list[str]) -> str:
    if isinstance(value, str) and value:
        return value
    problems.append(f"{name}: needs one value, as {name}=VALUE")
    return "0"


def _problems(given: Given) -> list[str]:
    """What no file is needed for."""
    tune, keys = given.tune, given.tasks
    found = []
    if tune.model not in models():
        found.append(f"--model={tune.model}: is no model; known are {', '.join(models())}")
    for key in keys:
        if key not in tasks():
            found.append(f"--tasks={key}: is no task; known are {', '.join(tasks())}")
        elif tasks()[key]["script"] != tune.script:
            found.append(
                f"--tasks={key}: is a task of --script={tasks()[key]['script']}, not of "
                f"--script={tune.script}"
            )
    if not keys:
        found.append("--tasks: names no task")
    for key, text in given.ds.items():
        number = len(text.split(";"))
        if number not in (1, len(keys)):
            found.append(
                f"--ds_{key}={text}: has {number} values for {len(keys)} tasks; give one, or one "
                "for each task"
            )
    found += [
        f"--rate_ds_{key}={rate:g}: multiplies --ds_{key}, which is not given"
        for key, rate in given.ds_rates.items()
        if key not in given.ds and rate != 1
    ]
    if given.again and tune.task_t_load is None:
        found.append("--again_N__...: further stages need teachers: --task_t_load=KEY")
    if tune.retries < 0:
        found.append(f"--retries={tune.retries}: must not be negative")
    return found


def as_json(value: Any, text: str) -> Any:
    """The text as a value of the same type as the one of DeepSpeed's JSON that it replaces.

    ValueError if it is none.
    """
    if isinstance(value, bool):
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{text!r} is neither true nor false")
        return text.lower() == "true"
    if isinstance(value, int):
        return int(text)
    if isinstance(value, float):
        return float(text)
    return text
