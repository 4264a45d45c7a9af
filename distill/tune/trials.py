"""Trials: which settings each method is run with on each task, and how each choice ended."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import Any

from distill.tune.graph import Graph, Leaf, Trials, build
from distill.tune.grid import assignments, settings
from distill.tune.store import DONE, FAILED, LEASE, OPEN, PRUNED, Row
from distill.tune.study import Studies
from distill.tune.sweep_file import SweepSpec
from distill.tune.trial_store import Trial, TrialStore

ASKING = "asking"
RowsOf = Callable[[Iterable[str]], Mapping[str, Row]]  # keys -> runs as the database has them


@dataclass
class Choices:
    """The trials of one sweep: those of grids and random choices at once, TPE's one by one."""

    sweep: SweepSpec
    trials: TrialStore
    studies: Studies
    processes: int
    _told: set[tuple[str, str, int]] = field(default_factory=set)
    _prepared: bool = False

    def graph(self) -> Graph:
        """All runs of all trials that are known by now."""
        return build(self.sweep, self.known(), self.processes)

    def known(self) -> Trials:
        """(method, task) -> number -> settings."""
        asked: dict[tuple[str, str], dict[int, dict[str, str]]] = {}
        if self.sweep.sampler == "tpe":
            for trial in self.trials.rows():
                if trial.state != ASKING:
                    rows = asked.setdefault((trial.method, trial.task), {})
                    rows[trial.number] = dict(trial.settings)
        found = {}
        for method in self.sweep.methods.values():
            fixed = None if self._is_asked(method.name) else assignments(self.sweep, method)
            for task in self.sweep.tasks:
                if fixed is not None:
                    found[method.name, task] = dict(enumerate(fixed))
                else:
                    found[method.name, task] = asked.get((method.name, task), {})
        return found

    def _is_asked(self, method: str) -> bool:
        return self.sweep.sampler == "tpe" and bool(settings(self.sweep.methods[method]))

    @property
    def are_asked(self) -> bool:
        """Whether there are trials that only Optuna knows."""
        return any(self._is_asked(method) for method in self.sweep.methods)

    def ask(self) -> bool:
        """One more proposal of Optuna's, for the pair with the fewest; whether there is one."""
        rows = self.trials.rows()
        pairs = [(m, t) for m in self.sweep.methods for t in self.sweep.tasks if self._is_asked(m)]
        numbers = {pair: [r for r in rows if (r.method, r.task) == pair] for pair in pairs}
        now = time.time()
        for pair in sorted(pairs, key=lambda pair: len(numbers[pair])):
            for old in numbers[pair]:  # whoever asked was killed before there was an answer
                taken = replace(old, asked=now)
                is_late = old.state == ASKING and now - old.asked > LEASE
                if is_late and self.trials.change(old, taken):
                    return self._propose(taken)
            if len(numbers[pair]) < self.sweep.trials:
                trial = Trial(*pair, len(numbers[pair]), {}, ASKING, None, now)
                if self.trials.add(trial):
                    return self._propose(trial)
        return False

    def _propose(self, trial: Trial) -> bool:
        choices = settings(self.sweep.methods[trial.method])
        number, found = self.studies.ask(trial.method, trial.task, choices)
        return self.trials.change(
            trial, replace(trial, optuna=number, settings=found, state="open")
        )

    def prepare(self) -> None:
        """Open Optuna's storage: a second or two, best spent while programs run."""
        if not self._prepared:
            self._prepared = True
            self.studies.open_storage()

    def tell(self, graph: Graph, states: Mapping[str, str], rows_of: RowsOf) -> None:
        """Trials of which every seed has ended, to the database and to Optuna."""
        ended = {
            place: leaves
            for place, leaves in graph.trials().items()
            if place not in self._told
            and not any(states[leaf.stages[-1]] in OPEN for leaf in leaves)
        }
        if not ended:
            return
        rows = rows_of(leaf.stages[-1] for leaves in ended.values() for leaf in leaves)
        old = {(t.method, t.task, t.number): t for t in self.trials.rows()}
        for place, leaves in ended.items():
            last = [rows[leaf.stages[-1]] for leaf in leaves]
            if any(row.state in OPEN for row in last):  # taken again meanwhile
                continue
            self._tell(old.get(place), leaves, last)
            self._told.add(place)

    def _tell(self, before: Trial | None, leaves: list[Leaf], last: list[Row]) -> None:
        """One trial, unless somebody told it before."""
        first = leaves[0]
        is_known = before is not None and dict(before.settings) == first.settings
        if before is not None and is_known and before.state not in (*OPEN, "open"):
            return
        trial = before or Trial(first.method, first.task, first.trial, first.settings)
        new = replace(trial, settings=first.settings, **self._outcome(last))
        told = self.trials.change(before, new) if before else self.trials.add(new)
        if told:
            choices = settings(self.sweep.methods[first.method])
            self.studies.tell(new, choices, [leaf.seed for leaf in leaves])

    def _outcome(self, last: list[Row]) -> dict[str, Any]:
        states = {row.state for row in last}
        if states == {DONE}:
            values = [validation_score(row, self.sweep.metric) for row in last]
            if None not in values:
                return {"state": DONE, "value": mean(v for v in values if v is not None)}
        return {"state": PRUNED if PRUNED in states else FAILED, "value": None}


def metric_of(row: Row, metric: str | None) -> str:
    """The metric by which a run is judged: the sweep's, else the run's own."""
    return metric or row.result.get("metric") or "loss"


def validation_score(row: Row, metric: str | None) -> float | None:
    """The run's score on validation; None if it has none."""
    return (row.result.get("val") or {}).get(metric_of(row, metric))
