"""A study's runs in an SQL database: who runs what, what has ended, with which result and why.

Several processes, on several machines, share one database. A run is taken by a single UPDATE that
only one of them can win, so that no run is ever taken twice.
"""

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

WAITING, RUNNING, DONE, FAILED, PRUNED = "waiting", "running", "done", "failed", "pruned"
OPEN = (WAITING, RUNNING)
LEASE = 90.0  # seconds without a heartbeat after which a run of another machine is taken over
BUSY = 60.0  # seconds to wait for a locked database
ATTEMPTS = 6  # at making tables: 6 seconds in all

Made = TypeVar("Made")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One run as the database has it."""

    key: str
    name: str
    method: str | None
    task: str | None
    stage: str
    seed: int
    state: str = WAITING
    worker: str = ""
    pid: int = 0
    pid_start: str = ""
    heartbeat: float = 0.0  # seconds since 1970
    failures: int = 0
    interrupted: int = 0  # how often its worker was killed
    reason: str = ""
    command: str = ""
    code: str = ""
    seconds: float = 0.0
    result: Mapping[str, Any] = field(default_factory=dict)


_COLUMNS = tuple(Row.__dataclass_fields__)


class Store:
    """The runs of one study."""

    def __init__(self, url: str, study: str):
        """Opens the database, and makes its tables if they are not there."""
        import sqlalchemy as sql

        self.sql, self.url, self.study = sql, url, study
        options = {"connect_args": {"timeout": BUSY}} if url.startswith("sqlite") else {}
        if url.startswith("sqlite:///"):
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        self.engine = sql.create_engine(url, **options)
        if url.startswith("sqlite"):
            sql.event.listen(self.engine, "connect", _write_ahead)
        text, number, real = sql.Text, sql.Integer, sql.Float
        kinds = {"seed": number, "pid": number, "failures": number, "interrupted": number}
        kinds |= {"heartbeat": real, "seconds": real}
        short = sql.String(255)
        meta = sql.MetaData()
        self.runs = sql.Table(
            "sweep_runs",
            meta,
            sql.Column("study", short, primary_key=True),
            sql.Column("key", sql.String(64), primary_key=True),
            *(sql.Column(name, kinds.get(name, text)) for name in _COLUMNS if name != "key"),
        )
        self.facts = sql.Table(
            "sweep_facts",
            meta,
            sql.Column("study", short, primary_key=True),
            sql.Column("name", short, primary_key=True),
            sql.Column("value", text),
        )
        make_tables(lambda: meta.create_all(self.engine, checkfirst=True))

    def close(self) -> None:
        """Let go of the database."""
        self.engine.dispose()

    # Facts: what must not change while a study is open.

    def fact(self, name: str, value: str) -> str:
        """The study's value of a fact; this one if it has none yet."""
        known = self.facts_so_far().get(name)
        if known is None:
            self.insert(self.facts, [{"name": name, "value": value}])
            known = self.facts_so_far()[name]
        return known

    def set_fact(self, name: str, value: str) -> None:
        """Replace a fact."""
        table = self.facts
        with self.engine.begin() as db:
            where = (table.c.study == self.study) & (table.c.name == name)
            db.execute(table.update().where(where).values(value=value))

    def facts_so_far(self) -> dict[str, str]:
        """Name -> value."""
        table = self.facts
        with self.engine.connect() as db:
            rows = db.execute(self.sql.select(table).where(table.c.study == self.study))
            return {row.name: row.value for row in rows}

    # Runs.

    def add(self, rows: Iterable[Row]) -> None:
        """Runs that are not there yet."""
        known = self.states()
        new = [_values(row) for row in rows if row.key not in known]
        self.insert(self.runs, new)

    def insert(self, table: Any, rows: list[dict[str, Any]]) -> None:
        """Rows that nobody else has inserted meanwhile; all at once where that is none."""
        full = [{"study": self.study, **row} for row in rows]
        for part in [full, *([row] for row in full)] if full else ():
            try:
                with self.engine.begin() as db:
                    db.execute(table.insert(), part)
            except self.sql.exc.IntegrityError:
                continue
            if part is full:
                return

    def states(self) -> dict[str, str]:
        """Key -> state."""
        table = self.runs
        with self.engine.connect() as db:
            query = self.sql.select(table.c.key, table.c.state)
            found = db.execute(query.where(table.c.study == self.study))
            return dict(found.all())

    def rows(self, keys: Iterable[str] | None = None) -> dict[str, Row]:
        """Key -> run, of these runs or of all."""
        table = self.runs
        query = self.sql.select(table).where(table.c.study == self.study)
        if keys is not None:
            query = query.where(table.c.key.in_(list(keys)))
        with self.engine.connect() as db:
            return {row.key: _row(row._mapping) for row in db.execute(query)}

    def claim(self, key: str, worker: str, code: str) -> bool:
        """Take a waiting run; whether it is ours now."""
        values = {"state": RUNNING, "worker": worker, "heartbeat": time.time(), "code": code}
        return self._change(key, WAITING, values | {"pid": 0, "pid_start": ""})

    def started(self, key: str, pid: int, pid_start: str, command: str) -> None:
        """The program of a run that is ours."""
        self._change(key, RUNNING, {"pid": pid, "pid_start": pid_start, "command": command})

    def beat(self, keys: Iterable[str], worker: str) -> None:
        """These runs are still being worked on."""
        table = self.runs
        where = (table.c.study == self.study) & (table.c.worker == worker)
        where &= table.c.key.in_(list(keys)) & (table.c.state == RUNNING)
        with self.engine.begin() as db:
            db.execute(table.update().where(where).values(heartbeat=time.time()))

    def finish(self, key: str, state: str, result: Mapping[str, Any], seconds: float) -> bool:
        """A run of ours has ended well, or was pruned."""
        values = {"state": state, "result": json.dumps(result), "seconds": seconds, "reason": ""}
        return self._change(key, RUNNING, values)

    def fail(self, key: str, reason: str, failures: int, state: str, seconds: float) -> bool:
        """A run of ours has failed: it waits for another attempt, or is given up."""
        values = {"reason": reason, "failures": failures, "state": state, "seconds": seconds}
        return self._change(key, RUNNING, values)

    def give_up(self, key: str, state: str, reason: str) -> bool:
        """A waiting run will not be run."""
        return self._change(key, WAITING, {"state": state, "reason": reason})

    def adopt(self, key: str, result: Mapping[str, Any], code: str) -> bool:
        """A waiting run had ended before, in another database's time."""
        values = {"state": DONE, "result": json.dumps(result), "code": code}
        return self._change(key, WAITING, values)

    def release(self, row: Row) -> bool:
        """Put back a run whose worker is gone; False if somebody else did, or it lives."""
        table = self.runs
        where = (table.c.worker == row.worker) & (table.c.heartbeat == row.heartbeat)
        values = {"state": WAITING, "interrupted": row.interrupted + 1}
        return self._change(row.key, RUNNING, values, where)

    def retry(self) -> int:
        """Put all failed runs back; how many."""
        table = self.runs
        where = (table.c.study == self.study) & (table.c.state == FAILED)
        with self.engine.begin() as db:
            update = table.update().where(where)
            return db.execute(update.values(state=WAITING, failures=0)).rowcount

    def _change(self, key: str, state: str, values: dict[str, Any], more: Any = None) -> bool:
        table = self.runs
        where = (table.c.study == self.study) & (table.c.key == key) & (table.c.state == state)
        if more is not None:
            where &= more
        with self.engine.begin() as db:
            return db.execute(table.update().where(where).values(values)).rowcount == 1


def make_tables(make: Callable[[], Made]) -> Made:
    """Make tables while others may make the same ones: who comes second finds them there.

    What the database says at the last of ATTEMPTS is raised.
    """
    from sqlalchemy.exc import DatabaseError

    for attempt in range(ATTEMPTS - 1):
        try:
            return make()
        except DatabaseError as error:
            log.debug("tables: attempt %d: %s", attempt, error)
            time.sleep(0.2 * 2**attempt)
    return make()


def _write_ahead(connection: Any, _: Any) -> None:
    """SQLite: commits that wait for no disk. A crash of the machine may lose the last ones, never
    the file; what had ended then is found again by the files that runs leave.
    """
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _values(row: Row) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in _COLUMNS}
    return values | {"result": json.dumps(row.result)}


def _row(found: Mapping[str, Any]) -> Row:
    values = {name: found[name] for name in _COLUMNS}
    return Row(**values | {"result": json.loads(values["result"] or "{}")})
