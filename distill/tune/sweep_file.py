"""A sweep's file: tasks, methods with their stages, models that they share, seeds, settings.

Read so that every problem is known at once, with its line. docs/sweeps.md has the format.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from config import ConfigError
from distill.tune.yaml_lines import Reader, Text

PROGRAMS = ("pretrain", "finetune", "evaluate")
SAMPLERS = ("grid", "random", "tpe")
OWN_FLAGS = {
    "save": "out",
    "experiment-name": "a stage's name",
    "overwrite": "nothing: a run that was interrupted is begun anew",
    "load": "nothing: a run goes on from its own checkpoint",
    "load-pretrained": "start",
    "teacher_load_pretrained": "teacher",
    "mt_load_pretrained": "teacher, with a list",
    "seed": "seeds, or a stage's seed",
}


@dataclass(frozen=True)
class Choice:
    """What a setting may be: some values, or a range from low to high."""

    line: int
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False


@dataclass(frozen=True)
class Reference:
    """`$name`: a setting that the method's `params` describe."""

    name: str
    line: int


@dataclass(frozen=True)
class Flag:
    """A flag's value, and where it was written."""

    value: Any  # Value, Choice or Reference; False: a switch that is off after all
    line: int


FlagTable = dict[str, Flag]


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """One program: of a method, or a model that methods share."""

    name: str
    line: int
    program: str = "finetune"
    start: Text | None = None
    teachers: tuple[Text, ...] = ()
    seed: str = ""  # a number, or "each"
    flags: FlagTable = field(default_factory=dict)
    checkpoint: Text | None = None  # of a model that is there already


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """Stages, one after the other; `params`: settings that several of them share."""

    name: str
    line: int
    stages: tuple[StageSpec, ...]
    params: dict[str, Choice] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """The whole file."""

    path: str
    study: str
    out: Path
    storage: str | None
    seeds: tuple[int, ...]
    baseline: str | None
    metric: str | None
    retries: int
    sampler: str
    trials: int
    sampler_seed: int
    pruning: dict[str, int] | None  # startup (runs), warmup (evaluations)
    flags: FlagTable
    programs: dict[str, FlagTable]
    tasks: dict[str, FlagTable]
    models: dict[str, StageSpec]
    methods: dict[str, MethodSpec]
    lines: dict[str, int] = field(default_factory=dict)  # of the keys at the top

    def problem(self, line: int, text: str) -> str:
        """`FILE:LINE: text`."""
        return f"{self.path}:{line}: {text}"


def read_sweep(path: Path) -> SweepSpec:
    """The file as it was written. ConfigError: every problem of its form, with lines."""
    spec, problems = read_what_can(path)
    if problems:
        raise ConfigError(problems)
    return spec


def read_what_can(path: Path) -> tuple[SweepSpec, list[str]]:
    """The file without what is wrong with its form, and all of that, with lines.

    ConfigError: it cannot be read at all.
    """
    reader = Reader(path)
    top = reader.mapping(
        reader.root,
        "a sweep",
        needed=("study", "out", "seeds", "tasks", "methods"),
        known=("storage", "baseline", "metric", "retries", "sampler", "pruning", "flags")
        + ("programs", "models"),
    )
    seeds = _seeds(reader, top.get("seeds"))
    sampler = reader.mapping(
        top.get("sampler"), "sampler", needed=("name",), known=("trials", "seed")
    )
    name = reader.word(sampler.get("name"), SAMPLERS) or "grid"
    pruning = top.get("pruning") and reader.mapping(
        top["pruning"], "pruning", known=("startup", "warmup")
    )
    spec = SweepSpec(
        path=str(path),
        study=reader.text(top.get("study")),
        out=Path(reader.text(top.get("out")) or "."),
        storage=reader.text(top.get("storage")) or None,
        seeds=seeds,
        baseline=reader.text(top.get("baseline")) or None,
        metric=reader.text(top.get("metric")) or None,
        retries=reader.integer(top.get("retries"), default=1),
        sampler=name,
        trials=reader.integer(sampler.get("trials"), default=20),
        sampler_seed=reader.integer(sampler.get("seed"), default=0),
        pruning=None
        if not pruning
        else {
            "startup": reader.integer(pruning.get("startup"), default=5),
            "warmup": reader.integer(pruning.get("warmup"), default=0),
        },
        flags=_flags(reader, top.get("flags")),
        programs={
            key: _flags(reader, node)
            for key, node in reader.mapping(
                top.get("programs"), "programs", PROGRAMS[:0], PROGRAMS[:2]
            ).items()
        },
        tasks={key: _flags(reader, node) for key, node in reader.free(top.get("tasks")).items()},
        models={
            key: _stage(reader, node, key) for key, node in reader.free(top.get("models")).items()
        },
        methods={
            key: _method(reader, node, key) for key, node in reader.free(top.get("methods")).items()
        },
        lines={key: reader.line(node) for key, node in top.items()},
    )
    baseline = top.get("baseline")
    if spec.baseline is not None and spec.baseline not in spec.methods:
        reader.problem(baseline, f"baseline: {spec.baseline} is none of the methods")
    for key, what in (("tasks", spec.tasks), ("methods", spec.methods)):
        if key in top and not what:
            reader.problem(top[key], f"{key}: there must be one at least")
    return spec, reader.problems


def _seeds(reader: Reader, node: Any) -> tuple[int, ...]:
    found: list[int] = []
    for item in reader.items(node):
        seed = reader.integer(item, default=-1)
        if seed in found:
            reader.problem(item, f"seeds: {seed} is there twice")
        elif seed >= 0:
            found.append(seed)
    if node is not None and not reader.items(node):
        reader.problem(node, "seeds: there must be one at least")
    return tuple(found)


def _stage(reader: Reader, node: Any, name: str | None = None) -> StageSpec:
    known = ("program", "start", "teacher", "seed", "flags")
    known += ("name",) if name is None else ("checkpoint",)
    row = reader.mapping(node, "a stage" if name is None else f"model {name}", (), known)
    if name is None:
        name = reader.text(row.get("name")) or "finetune"
    if "checkpoint" in row and len(row) > 1:
        reader.problem(node, f"model {name}: has a checkpoint, and so nothing else")
    seed = reader.text(row.get("seed"))
    if seed and seed != "each" and not seed.isdecimal():
        reader.problem(row["seed"], f"seed: {seed}: must be a number, or each")
    start = row.get("start")
    return StageSpec(
        name=name,
        line=reader.line(node),
        program=reader.word(row.get("program"), PROGRAMS) or "finetune",
        start=None if start is None else Text(reader.text(start), reader.line(start)),
        teachers=tuple(
            Text(reader.text(item), reader.line(item)) for item in reader.items(row.get("teacher"))
        ),
        seed=seed,
        flags=_flags(reader, row.get("flags")),
        checkpoint=None
        if "checkpoint" not in row
        else Text(reader.text(row["checkpoint"]), reader.line(row["checkpoint"])),
    )


def _method(reader: Reader, node: Any, name: str) -> MethodSpec:
    row = reader.mapping(node, f"method {name}", ("stages",), ("params",))
    stages = tuple(_stage(reader, item) for item in reader.items(row.get("stages")))
    names = [stage.name for stage in stages]
    for stage in stages:
        if names.count(stage.name) > 1:
            reader.problems.append(
                f"{reader.path}:{stage.line}: method {name}: two stages are named {stage.name}"
            )
    if row and not stages:
        reader.problem(node, f"method {name}: has no stages")
    params = {}
    for key, each in reader.free(row.get("params")).items():
        choice = _choice(reader, each)
        if choice is not None:
            params[key] = choice
        else:
            reader.problem(each, f"params: {key}: must have values, or low and high")
    return MethodSpec(name=name, line=reader.line(node), stages=stages, params=params)


def _flags(reader: Reader, node: Any) -> FlagTable:
    table: FlagTable = {}
    for written, each in reader.free(node).items():
        name = written.removeprefix("--")
        if name in OWN_FLAGS:
            reader.problem(each, f"--{name}: is given by the sweep; use {OWN_FLAGS[name]}")
            continue
        value = _choice(reader, each) or reader.flag_value(each)
        if isinstance(value, str) and value.startswith("$"):
            value = Reference(value[1:], reader.line(each))
        table[f"--{name}"] = Flag(value, reader.line(each))
    return table


def _choice(reader: Reader, node: Any) -> Choice | None:
    if not reader.is_mapping(node):
        return None
    row: Mapping[str, Any] = reader.mapping(
        node, "a setting", (), ("values", "low", "high", "log", "integer")
    )
    line = reader.line(node)
    if "values" in row:
        values = tuple(reader.text(item) for item in reader.items(row["values"]))
        if not values or len(row) > 1:
            reader.problem(node, "a setting has values, or low and high")
        return Choice(line, values)
    low, high = reader.number(row.get("low")), reader.number(row.get("high"))
    if low is None or high is None or low >= high:
        reader.problem(node, "a setting has values, or low and high, where low is the smaller")
        low, high = 1.0, 2.0
    log = reader.flag_value(row["log"]) is None if "log" in row else False
    if log and low <= 0:
        reader.problem(node, f"low: {low:g}: must be positive, since log asks for powers")
    integer = reader.flag_value(row["integer"]) is None if "integer" in row else False
    return Choice(line, (), low, high, log, integer)
