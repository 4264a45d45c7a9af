"""From a sweep's file to its runs: a graph of commands in which what is the same is there once.

A run's key is a hash of its resolved flags and of the keys of the runs that it starts from or
learns from; folder names and places on a machine are no part of it.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from config import ConfigError
from distill.tune.command import Command, Flags, Value
from distill.tune.grid import Assignment
from distill.tune.sweep_file import Choice, FlagTable, MethodSpec, Reference, StageSpec, SweepSpec
from distill.tune.yaml_lines import Text

Trials = Mapping[tuple[str, str], Mapping[int, Assignment]]  # (method, task) -> number -> settings


@dataclass(frozen=True)
class Node:
    """One run of a program. `start` and `teachers`: keys of other runs, or paths."""

    key: str
    name: str
    program: str  # pretrain or finetune
    flags: Flags
    start: str | None
    teachers: tuple[str, ...]
    task: str | None
    method: str | None  # None: a model that methods share
    stage: str
    seed: int
    line: int = 0
    lines: Mapping[str, int] = field(default_factory=dict)  # flag -> line

    @property
    def folder(self) -> str:
        """Name of the run's folder."""
        return f"{self.name}-{self.key[:8]}"


@dataclass(frozen=True)
class Leaf:
    """One method on one task with one seed and one choice of settings: keys of its stages."""

    method: str
    task: str
    seed: int
    trial: int
    settings: Assignment
    stages: tuple[str, ...]


@dataclass
class Graph:
    """All runs, each after those that it needs; and what they are for."""

    nodes: dict[str, Node] = field(default_factory=dict)
    leaves: list[Leaf] = field(default_factory=list)

    def needs(self, node: Node) -> list[str]:
        """Keys of the runs that have to end before it."""
        named = [*node.teachers] if node.start is None else [node.start, *node.teachers]
        return [key for key in named if key in self.nodes]

    def trials(self) -> dict[tuple[str, str, int], list[Leaf]]:
        """(method, task, number of the choice) -> its leaves, one a seed."""
        found: dict[tuple[str, str, int], list[Leaf]] = {}
        for leaf in self.leaves:
            found.setdefault((leaf.method, leaf.task, leaf.trial), []).append(leaf)
        return found


def build(sweep: SweepSpec, trials: Trials, processes: int = 1) -> Graph:
    """The graph of these trials, seed after seed. ConfigError: models that are missing."""
    graph, problems = build_what_can(sweep, trials, processes)
    if problems:
        raise ConfigError(problems)
    return graph


def build_what_can(sweep: SweepSpec, trials: Trials, processes: int = 1) -> tuple[Graph, list[str]]:
    """The graph, and the models that are missing; runs of missing models stay without them."""
    builder = _Builder(sweep, processes)
    for seed in sweep.seeds:
        for task in sweep.tasks:
            for method in sweep.methods.values():
                for number, settings in trials.get((method.name, task), {}).items():
                    builder.leaf(method, task, seed, number, settings)
    return builder.graph, list(dict.fromkeys(builder.problems))


def command(
    graph: Graph, node: Node, out: Path, more: Flags, launcher: Sequence[str] = ("python",)
) -> Command:
    """The command of a run below the sweep's folder. more: --overwrite, or --load to go on."""

    def checkpoint(named: str) -> str:
        return str(out / "runs" / graph.nodes[named].folder) if named in graph.nodes else named

    flags: Flags = {"--save": str(out / "runs"), "--experiment-name": node.folder, **more}
    if node.start is not None and "--load" not in more:
        flags["--load-pretrained"] = checkpoint(node.start)
    if node.teachers:
        name = "--teacher_load_pretrained" if len(node.teachers) == 1 else "--mt_load_pretrained"
        flags[name] = ":".join(map(checkpoint, node.teachers))
    return Command(f"distill/{node.program}.py", {**flags, **node.flags}, tuple(launcher))


@dataclass
class _Builder:
    sweep: SweepSpec
    processes: int
    graph: Graph = field(default_factory=Graph)
    problems: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)  # models being built: to see circles

    def leaf(
        self, method: MethodSpec, task: str, seed: int, trial: int, settings: Assignment
    ) -> None:
        keys = self._stages(method, task, seed, settings)
        leaf = Leaf(method.name, task, seed, trial, settings, tuple(keys.values()))
        self.graph.leaves.append(leaf)

    def _stages(
        self, method: MethodSpec, task: str, seed: int, settings: Assignment
    ) -> dict[str, str]:
        keys: dict[str, str] = {}
        for spec in method.stages:
            chosen = _choose(spec, settings)
            each = spec.program != "pretrain" if not spec.seed else spec.seed == "each"
            own = seed if each else int(spec.seed or self.sweep.seeds[0])
            keys[spec.name] = self._add(spec, chosen, method.name, task, own, keys)
        return keys

    def _model(self, spec: StageSpec, task: str, seed: int) -> str:
        if spec.checkpoint is not None:
            return self._path(spec.checkpoint, task, seed)
        if spec.name in self.open:
            circle = " -> ".join([*self.open, spec.name])
            self.problems.append(self.sweep.problem(spec.line, f"models in a circle: {circle}"))
            return spec.name
        own = seed if spec.seed == "each" else int(spec.seed or self.sweep.seeds[0])
        self.open.append(spec.name)
        key = self._add(spec, _choose(spec, {}), None, task, own, {})
        self.open.pop()
        return key

    def _find(self, named: Text, task: str, seed: int, before: Mapping[str, str]) -> str:
        """A stage before this one, a model, a stage of another method, or a path."""
        if named.value in before:
            return before[named.value]
        if named.value in self.sweep.models:
            return self._model(self.sweep.models[named.value], task, seed)
        return self._path(named, task, seed)

    def _path(self, named: Text, task: str, seed: int) -> str:
        path = named.value.replace("{task}", task).replace("{seed}", str(seed))
        if not path or not Path(path).exists():
            known = ", ".join(self.sweep.models) or "none"
            self.problems.append(
                self.sweep.problem(
                    named.line,
                    f"{path}: is no earlier stage and no model (models: {known}), and there is no "
                    "such checkpoint",
                )
            )
        return path

    def _add(
        self,
        spec: StageSpec,
        chosen: FlagTable,
        method: str | None,
        task: str,
        seed: int,
        before: Mapping[str, str],
    ) -> str:
        sweep = self.sweep
        program = "finetune" if spec.program == "evaluate" else spec.program
        tables = [sweep.flags, sweep.programs.get(program, {})]
        tables += [sweep.tasks[task]] if program == "finetune" else []
        merged: FlagTable = {}
        for table in [*tables, chosen]:
            merged |= table
        flags: Flags = {n: flag.value for n, flag in merged.items() if flag.value is not False}
        flags["--seed"] = str(seed)
        if spec.program == "evaluate":
            flags["--epochs"] = "0"
        start = None if spec.start is None else self._find(spec.start, task, seed, before)
        teachers = tuple(self._find(name, task, seed, before) for name in spec.teachers)
        key = key_of(program, flags, start, teachers, self.processes)
        name = "-".join(
            filter(None, (method, task if program == "finetune" else "", spec.name, f"s{seed}"))
        )
        own_task = task if program == "finetune" else None
        lines = {name: flag.line for name, flag in merged.items()}
        node = Node(
            *(key, re.sub(r"[^\w.-]", "_", name), program, flags, start, teachers, own_task),
            *(method, spec.name, seed, spec.line, lines),
        )
        self.graph.nodes.setdefault(key, node)
        return key


def _choose(spec: StageSpec, settings: Assignment) -> FlagTable:
    """The stage's flags with the choices made."""
    chosen = dict(spec.flags)
    for name, flag in spec.flags.items():
        if isinstance(flag.value, Reference):
            chosen[name] = type(flag)(settings.get(flag.value.name, ""), flag.line)
        elif isinstance(flag.value, Choice):
            own = f"{spec.name}.{name.removeprefix('--')}"
            chosen[name] = type(flag)(settings.get(own, ""), flag.line)
    return chosen


def key_of(
    program: str,
    flags: Mapping[str, Value],
    start: str | None,
    teachers: Sequence[str],
    processes: int,
) -> str:
    """Hash of a resolved configuration. The order of flags and the spelling of numbers are none."""
    plain = {name: _plain(value) for name, value in sorted(flags.items())}
    text = json.dumps([program, plain, start, list(teachers), processes])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _plain(value: Value) -> object:
    if not isinstance(value, str):
        return list(value) if isinstance(value, tuple) else value
    try:
        return float(value)
    except ValueError:
        return value
