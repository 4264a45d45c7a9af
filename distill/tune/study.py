"""Optuna's part: a study for each method and task, in the sweep's own database.

It proposes settings (TPE), says which runs lag behind (median pruning), and keeps all trials for
Optuna's own tools. Grids and random choices are known beforehand and told when they have ended.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distill.tune.grid import Assignment, written
from distill.tune.store import DONE, FAILED, PRUNED, make_tables
from distill.tune.sweep_file import Choice
from distill.tune.trial_store import Trial

LOWER_IS_BETTER = frozenset({"loss", "ppl"})


@dataclass
class Studies:
    """The studies of one sweep."""

    url: str
    name: str
    metric: str | None
    seed: int = 0
    _open: dict[tuple[str, str], Any] = field(default_factory=dict)

    def study(self, method: str, task: str) -> Any:
        """Optuna's study of a method on a task."""
        import optuna

        optuna.logging.set_verbosity(logging.WARNING)
        if (method, task) not in self._open:
            down = (self.metric or "") in LOWER_IS_BETTER
            self._open[method, task] = optuna.create_study(
                study_name=f"{self.name}/{method}/{task}",
                storage=self.open_storage(),
                direction="minimize" if down else "maximize",
                sampler=optuna.samplers.TPESampler(seed=self.seed, constant_liar=True),
                load_if_exists=True,
            )
        return self._open[method, task]

    def open_storage(self) -> Any:
        """Optuna's tables in the sweep's database, made if need be."""
        import optuna

        if "storage" not in self.__dict__:
            options = {"connect_args": {"timeout": 60}} if self.url.startswith("sqlite") else {}
            self.storage = make_tables(
                lambda: optuna.storages.RDBStorage(self.url, engine_kwargs=options)
            )
        return self.storage

    def close(self) -> None:
        """Let go of the database."""
        if "storage" in self.__dict__:
            self.storage.engine.dispose()

    def ask(self, method: str, task: str, choices: Mapping[str, Choice]) -> tuple[int, Assignment]:
        """A proposal: Optuna's number of it, and the settings."""
        trial = self.study(method, task).ask(distributions(choices))
        return trial.number, {name: _text(value) for name, value in trial.params.items()}

    def tell(self, trial: Trial, choices: Mapping[str, Choice], seeds: Sequence[int]) -> None:
        """How a trial ended; nothing if the study knows it already."""
        import optuna

        study = self.study(trial.method, trial.task)
        kinds = optuna.trial.TrialState
        state = {DONE: kinds.COMPLETE, PRUNED: kinds.PRUNED, FAILED: kinds.FAIL}[trial.state]
        values = [trial.value] if trial.state == DONE else None
        known = study.get_trials(deepcopy=False)
        if trial.optuna is not None:
            if not known[trial.optuna].state.is_finished():
                study.tell(trial.optuna, values, state=state)
            return
        if any(each.user_attrs.get("number") == trial.number for each in known):
            return
        spaces = distributions(choices)
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                values=values,
                params={name: _typed(spaces[name], text) for name, text in trial.settings.items()},
                distributions=spaces,
                user_attrs={"number": trial.number, "seeds": list(seeds)},
            )
        )


def distributions(choices: Mapping[str, Choice]) -> dict[str, Any]:
    """Settings as Optuna knows them."""
    from optuna import distributions as kinds

    found: dict[str, Any] = {}
    for name, choice in choices.items():
        if choice.values:
            found[name] = kinds.CategoricalDistribution(choice.values)
        elif choice.integer:
            found[name] = kinds.IntDistribution(int(choice.low), int(choice.high), log=choice.log)
        else:
            found[name] = kinds.FloatDistribution(choice.low, choice.high, log=choice.log)
    return found


def _text(value: Any) -> str:
    return written(value) if isinstance(value, float) else str(value)


def _typed(space: Any, text: str) -> Any:
    from optuna import distributions as kinds

    if isinstance(space, kinds.CategoricalDistribution):
        return text
    if isinstance(space, kinds.IntDistribution):
        return int(text)
    return min(max(float(text), space.low), space.high)


def lags(curve: Sequence[float], others: Sequence[Sequence[float]], *, lower_is_better: bool,
         startup: int, warmup: int) -> bool:  # fmt: skip
    """Whether Optuna's median rule ends a run: its best score so far is worse than the median of
    what the others had at the same evaluation.

    curve: scores of the run's evaluations; others: of runs that have ended. startup: runs that have
    to have ended before; warmup: evaluations in which nothing is ended.
    """
    import optuna

    optuna.logging.set_verbosity(logging.WARNING)
    study = optuna.create_study(direction="minimize" if lower_is_better else "maximize")
    for other in others:
        study.add_trial(
            optuna.trial.create_trial(value=other[-1], intermediate_values=dict(enumerate(other)))
        )
    running = optuna.trial.create_trial(
        state=optuna.trial.TrialState.RUNNING, intermediate_values=dict(enumerate(curve))
    )
    pruner = optuna.pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=warmup)
    return bool(curve) and pruner.prune(study, running)
