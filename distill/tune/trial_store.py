"""Trials in the database: choices of settings, and how they ended. asking -> open -> done, ..."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from distill.tune.store import Store, make_tables


@dataclass(frozen=True)
class Trial:
    """One choice of settings of a method on a task, for all seeds."""

    method: str
    task: str
    number: int
    settings: Mapping[str, str] = field(default_factory=dict)
    state: str = "open"
    optuna: int | None = None  # its number in Optuna's study, if that proposed it
    asked: float = 0.0
    value: float | None = None


_COLUMNS = tuple(Trial.__dataclass_fields__)


class TrialStore:
    """The trials of one study, beside its runs."""

    def __init__(self, store: Store):
        """Makes its table if it is not there."""
        sql = store.sql
        self._store = store
        short, meta = sql.String(255), sql.MetaData()
        self.table = sql.Table(
            "sweep_trials",
            meta,
            sql.Column("study", short, primary_key=True),
            sql.Column("method", short, primary_key=True),
            sql.Column("task", short, primary_key=True),
            sql.Column("number", sql.Integer, primary_key=True),
            sql.Column("settings", sql.Text),
            sql.Column("state", sql.String(16)),
            sql.Column("optuna", sql.Integer),
            sql.Column("asked", sql.Float),
            sql.Column("value", sql.Float),
        )
        make_tables(lambda: meta.create_all(store.engine, checkfirst=True))

    def rows(self) -> list[Trial]:
        """All trials that were asked for, or have ended."""
        table, store = self.table, self._store
        with store.engine.connect() as db:
            query = store.sql.select(table).where(table.c.study == store.study)
            rows = [row._mapping for row in db.execute(query.order_by(table.c.number))]
        return [
            Trial(**{n: json.loads(r[n]) if n == "settings" else r[n] for n in _COLUMNS})
            for r in rows
        ]

    def add(self, trial: Trial) -> bool:
        """A new trial; False if there is one with this number."""
        values = {name: getattr(trial, name) for name in _COLUMNS}
        values |= {"study": self._store.study, "settings": json.dumps(trial.settings)}
        try:
            with self._store.engine.begin() as db:
                db.execute(self.table.insert(), values)
        except self._store.sql.exc.IntegrityError:
            return False
        return True

    def change(self, old: Trial, new: Trial) -> bool:
        """Replace a trial that is still the one we know."""
        table = self.table
        where = table.c.study == self._store.study
        for name in ("method", "task", "number", "state", "asked"):
            where &= table.c[name] == getattr(old, name)
        values = {name: getattr(new, name) for name in ("state", "optuna", "asked", "value")}
        values["settings"] = json.dumps(new.settings)
        with self._store.engine.begin() as db:
            return db.execute(table.update().where(where).values(values)).rowcount == 1
