"""One run: the tree of argument groups, and how a command line becomes it."""

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from config.checks import check_hardware as check_hardware
from config.checks import check_run
from config.compat import Compat
from config.data import BlockLMArgs, DataArgs, TokenizerArgs
from config.deepspeed import resolve
from config.distill import DistillArgs, TeacherArgs
from config.errors import ConfigError
from config.group import ArgGroup
from config.idle import warn_unused
from config.model import ModelArgs
from config.not_yet import IGNORED, NOT_YET, SEED_METHODS, refuse_not_yet, warn_ignored
from config.parser import build_parser, read_flags
from config.saved import run_folder, take_architecture
from config.tasks import FinetuneArgs
from config.teachers import MultiTeacherArgs
from config.text import TextArgs
from config.training import (
    CheckpointArgs,
    EvalArgs,
    OptimizerArgs,
    ParallelArgs,
    PrecisionArgs,
    TrainArgs,
)

#: Field of RunArgs -> its group of flags. `teachers` and `method` are apart.
GROUPS: dict[str, type[ArgGroup]] = {
    "model": ModelArgs,
    "tokenizer": TokenizerArgs,
    "data": DataArgs,
    "blocks": BlockLMArgs,
    "train": TrainArgs,
    "optim": OptimizerArgs,
    "precision": PrecisionArgs,
    "checkpoint": CheckpointArgs,
    "parallel": ParallelArgs,
    "evaluation": EvalArgs,
    "finetuning": FinetuneArgs,
    "text": TextArgs,
    "distill": DistillArgs,
    "multi_teacher": MultiTeacherArgs,
}
PROGRAMS = ("pretrain", "finetune")
#: What an experiment name may hold for the start time; the second is the seed's spelling.
TIME_MARKS = ("{time}", "\u81ea\u52a8\u65f6\u95f4")


@dataclass(frozen=True, kw_only=True)
class NoArgs(ArgGroup):
    """The group of a method without flags of its own, and of a run without a method."""

    title = "no method"


@dataclass(frozen=True, kw_only=True)
class RunArgs:
    """Everything that was asked for. Values are the effective ones; nobody assigns to them."""

    program: str
    model: ModelArgs = ModelArgs()
    tokenizer: TokenizerArgs = TokenizerArgs()
    data: DataArgs = DataArgs()
    blocks: BlockLMArgs = BlockLMArgs()
    train: TrainArgs = TrainArgs()
    optim: OptimizerArgs = OptimizerArgs()
    precision: PrecisionArgs = PrecisionArgs()
    checkpoint: CheckpointArgs = CheckpointArgs()
    parallel: ParallelArgs = ParallelArgs()
    evaluation: EvalArgs = EvalArgs()
    finetuning: FinetuneArgs = FinetuneArgs()
    text: TextArgs = TextArgs()
    distill: DistillArgs = DistillArgs()
    multi_teacher: MultiTeacherArgs = MultiTeacherArgs()
    teachers: tuple[TeacherArgs, ...] = ()
    method: ArgGroup = NoArgs()
    mixed: dict[str, ArgGroup] = field(default_factory=dict)  # of methods that `method` runs
    combiner: ArgGroup = NoArgs()  # of --multi_teacher_model
    combined: dict[str, ArgGroup] = field(default_factory=dict)  # of those that it runs
    deepspeed: dict[str, Any] | None = None  # handed to deepspeed.initialize as it is
    flags: dict[str, Any] = field(default_factory=dict)  # spelling -> value, as they were given

    @property
    def compat(self) -> Compat:
        """In what this run follows the seed."""
        return Compat.parse(self.distill.compat)

    @property
    def run_dir(self) -> Path | None:
        """Where the run writes; None without --save."""
        if self.checkpoint.save is None:
            return None
        return Path(self.checkpoint.save) / self.train.experiment_name

    @property
    def reads_text(self) -> bool:
        """Whether it pretrains on text that goes on from step to step, not on blanks."""
        return self.program == "pretrain" and self.model.transformer_xl and not self.blocks.block_lm

    @property
    def remembers(self) -> bool:
        """Whether its models have a memory of that text."""
        return self.reads_text and self.model.mem_length > 0

    def __getattr__(self, name: str) -> Any:
        """The seed's flat names, read-only: `args.num_layers`, `args.teacher_hidden_size`.

        For subclasses written for the seed. Our own code names the group.
        """
        if not name.startswith("_") and name not in _FIELDS:
            for group in _flat_order(self):
                for f in group.flags().values():
                    if group.dest(f) == name:
                        return getattr(group, f.name)
        raise AttributeError(f"{type(self).__name__} has no argument {name!r}")

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values: group -> field -> value."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def to_json(self) -> str:
        """The text of a checkpoint's config.json; `--args_file` reads it too."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(
        cls,
        text: str | Mapping[str, Any],
        methods: Mapping[str, type[ArgGroup]] | None = None,
        combiners: Mapping[str, type[ArgGroup]] | None = None,
    ) -> Self:
        """Back from `to_json`. Fields not known (of a later version) are left out."""
        tree = json.loads(text) if isinstance(text, str) else text
        name = tree.get("distill", {}).get("student_model")
        method = (methods or {}).get(name, NoArgs) if name is not None else NoArgs
        kinds = GROUPS | {"method": method}
        values = {key: _group(kind, tree.get(key, {})) for key, kind in kinds.items()}
        values["teachers"] = tuple(_group(TeacherArgs, t) for t in tree.get("teachers", ()))
        values["mixed"] = {
            name: _group((methods or {}).get(name, NoArgs), group)
            for name, group in tree.get("mixed", {}).items()
        }
        combiner = (combiners or {}).get(values["multi_teacher"].combiner_name, NoArgs)
        values["combiner"] = _group(combiner, tree.get("combiner", {}))
        values["combined"] = {
            name: _group((combiners or {}).get(name, NoArgs), group)
            for name, group in tree.get("combined", {}).items()
        }
        for key in ("program", "deepspeed", "flags"):
            if key in tree:
                values[key] = tree[key]
        return cls(**values)


_FIELDS = frozenset(f.name for f in dataclasses.fields(RunArgs))


def _flat_order(run: RunArgs) -> list[ArgGroup]:
    """Groups in the order in which a flat name is looked up."""
    teachers = run.teachers[:1] or (TeacherArgs(),)
    own = (run.method, *run.mixed.values(), run.combiner, *run.combined.values())
    return [*own, *(getattr(run, key) for key in GROUPS), *teachers]


def _group(kind: type[ArgGroup], values: Mapping[str, Any]) -> ArgGroup:
    known = {f.name for f in dataclasses.fields(kind)}
    return kind(
        **{
            key: tuple(value) if isinstance(value, list) else value
            for key, value in values.items()
            if key in known
        }
    )


def parse_args(
    argv: Sequence[str],
    *,
    program: str,
    methods: Mapping[str, type[ArgGroup]],
    combiners: Mapping[str, type[ArgGroup]] | None = None,
    check: bool = True,
) -> RunArgs:
    """The run that a command line asks for.

    `methods` maps every --student_model name to its group of flags, `combiners` every
    --multi_teacher_model. All mistakes that can be seen without reading data or a device come in
    one ConfigError. `check=False` leaves out the checks
    between groups (a test that needs an architecture needs no corpus).
    """
    assert program in PROGRAMS, program
    combiners = combiners or {}
    kinds = _all_groups(methods, combiners)
    parser = build_parser(program, kinds, silent=[*IGNORED, *NOT_YET])
    given = read_flags(parser, argv)
    flags = _given_flags(kinds, given)
    problems = refuse_not_yet(given)
    warn_ignored(given)
    values = _take_groups(given, problems)
    values |= _take_method(given, methods, problems)
    values |= _take_mixed(given, values.get("method", NoArgs()), methods, problems)
    values |= _take_combiner(given, values, combiners, problems)
    values["teachers"] = _take_teachers(given, values, problems)
    if set(GROUPS) <= set(values):
        is_task = program == "finetune"
        values["finetuning"] = dataclasses.replace(values["finetuning"], finetune=is_task)
        _effective(values, flags, problems)
        values["blocks"] = _implied(program, values["model"], values["blocks"])
        run = RunArgs(program=program, flags=flags, **values)
        if check:
            problems += check_run(run)
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    if check:
        warn_unused(run, [*methods.values(), *combiners.values()])
    return run


def _all_groups(*named: Mapping[str, type[ArgGroup]]) -> list[type[ArgGroup]]:
    """Every group once, those of methods and combiners in the order of their names."""
    others = [group for groups in named for group in groups.values()]
    return list(dict.fromkeys([*GROUPS.values(), TeacherArgs, *others]))


def _given_flags(kinds: Sequence[type[ArgGroup]], given: argparse.Namespace) -> dict[str, Any]:
    return {
        spelling: getattr(given, kind.dest(f))
        for kind in kinds
        for spelling, f in kind.flags().items()
        if hasattr(given, kind.dest(f)) and spelling != "--local_rank"
    }


def _collect(problems: list[str], make: Callable[..., Any], *args: Any) -> Any:
    """`make(*args)`, its ConfigError added to the problems."""
    try:
        return make(*args)
    except ConfigError as error:
        problems += error.problems
        return None


def _take_groups(given: argparse.Namespace, problems: list[str]) -> dict[str, Any]:
    values = {}
    for key, kind in GROUPS.items():
        group = _collect(problems, kind.take, given)
        if group is not None:
            values[key] = group
    return values


def _take_method(
    given: argparse.Namespace, methods: Mapping[str, type[ArgGroup]], problems: list[str]
) -> dict[str, ArgGroup]:
    name = getattr(given, "student_model", None)
    if name is None:
        return {}
    if name not in methods:
        problems.append(f"--student_model={name}: {_unknown_method(name, methods)}")
        return {}
    group = _collect(problems, methods[name].take, given)
    return {} if group is None else {"method": group}


def _unknown_method(name: str, methods: Mapping[str, type[ArgGroup]]) -> str:
    what = "is not supported yet" if name in SEED_METHODS else "is no method"
    return (
        f"{what}; known are {', '.join(sorted(methods))}; a class of your own is "
        "path/to/file.py:ClassName"
    )


def _take_mixed(
    given: argparse.Namespace,
    method: ArgGroup,
    methods: Mapping[str, type[ArgGroup]],
    problems: list[str],
) -> dict[str, Any]:
    """The groups of the methods that the chosen one runs."""
    mixed = {}
    for name in method.mixes():
        if name not in methods:
            problems.append(
                f"--student_model={given.student_model}: {name!r} {_unknown_method(name, methods)}"
            )
        else:
            mixed[name] = _collect(problems, methods[name].take, given)
    return {"mixed": {name: group for name, group in mixed.items() if group is not None}}


def _take_teachers(
    given: argparse.Namespace, values: Mapping[str, Any], problems: list[str]
) -> tuple[TeacherArgs, ...]:
    if "distill" not in values or values["distill"].student_model is None:
        return ()
    shared = _collect(problems, TeacherArgs.take, given)
    if shared is None or "multi_teacher" not in values:
        return ()
    return _collect(problems, values["multi_teacher"].split, shared) or ()


def _take_combiner(
    given: argparse.Namespace,
    values: Mapping[str, Any],
    combiners: Mapping[str, type[ArgGroup]],
    problems: list[str],
) -> dict[str, Any]:
    """The groups of the combiner, and of those that it runs."""
    if not combiners or "multi_teacher" not in values or "method" not in values:
        return {}
    name = values["multi_teacher"].combiner_name
    if name not in combiners:
        known = ", ".join(sorted(combiners))
        problems.append(f"--multi_teacher_model={name}: is no combiner; known are {known}")
        return {}
    group = _collect(problems, combiners[name].take, given)
    if group is None:
        return {}
    combined = {}
    for part in group.mixes():
        if part not in combiners:
            known = ", ".join(sorted(combiners))
            problems.append(f"--mixmt_model: {part!r} is no combiner; known are {known}")
        else:
            combined[part] = _collect(problems, combiners[part].take, given)
    combined = {part: own for part, own in combined.items() if own is not None}
    return {"combiner": group, "combined": combined}


def _effective(values: dict[str, Any], flags: Mapping[str, Any], problems: list[str]) -> None:
    """Replace what was asked for by what is used: saved architectures, DeepSpeed's JSON, names."""
    changed = _collect(problems, take_architecture, values, flags)
    values |= changed or {}
    if values["blocks"].masked_lm:
        model = dataclasses.replace(values["model"], block_position_encoding=False)
        values["model"] = model
    changed = _collect(problems, resolve, values, flags)
    values |= changed or {}
    name = _experiment_name(values, flags)
    values["train"] = dataclasses.replace(values["train"], experiment_name=name)


def _implied(program: str, model: ModelArgs, blocks: BlockLMArgs) -> BlockLMArgs:
    """Every run has --block-lm, but pretraining with --transformer-xl that was not asked for it."""
    text = program == "pretrain" and model.transformer_xl
    return dataclasses.replace(blocks, block_lm=blocks.block_lm or blocks.masked_lm or not text)


def _experiment_name(values: Mapping[str, Any], flags: Mapping[str, Any]) -> str:
    """The folder below --save: with the time in it, or that of the run which --load resumes."""
    name, checkpoint = values["train"].experiment_name, values["checkpoint"]
    timed = any(mark in name for mark in TIME_MARKS)
    own_name = "--experiment-name" in flags and not timed
    if checkpoint.load and not checkpoint.new_save_directory and not own_name:
        return run_folder(checkpoint.load).resolve().name
    now = time.strftime("%y%m%d_%H%M%S")
    for mark in TIME_MARKS:
        name = name.replace(mark, now)
    return name
