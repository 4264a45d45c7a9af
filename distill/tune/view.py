"""What one sees while a sweep runs: a table on a terminal, lines elsewhere."""

import logging
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from distill.tune.graph import Graph
from distill.tune.store import DONE, FAILED, PRUNED, RUNNING, WAITING

if TYPE_CHECKING:
    from distill.tune.worker import Running

log = logging.getLogger(__name__)

STATES = (DONE, RUNNING, WAITING, PRUNED, FAILED)
COLUMNS = ("task", "method", "stage", "seed", "step", "loss", "metric", "time left", "device")


class View(Protocol):
    """What a worker tells."""

    def show(self, graph: Graph, states: Mapping[str, str], running: "Iterable[Running]") -> None:
        """How things are; called about once a second."""

    def note(self, text: str) -> None:
        """Something has happened."""

    def close(self) -> None:
        """Nothing more will come."""


class Lines:
    """Plain lines: what happens, and how many runs are left whenever that changes."""

    def __init__(self) -> None:
        self._told = ""

    def show(self, graph: Graph, states: Mapping[str, str], running: "Iterable[Running]") -> None:
        """A line if numbers of states have changed."""
        text = counts(graph, states)
        if text != self._told:
            self._told = text
            log.info("%s", text)

    def note(self, text: str) -> None:
        """A line."""
        log.info("%s", text)

    def close(self) -> None:
        """Nothing to do."""


class Table:
    """A table that is drawn anew in place; what happens scrolls above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(stderr=True), refresh_per_second=4, transient=True)
        self._live.start()

    def show(self, graph: Graph, states: Mapping[str, str], running: "Iterable[Running]") -> None:
        """The runs of this worker, and a line of counts."""
        from rich.table import Table as Grid

        grid = Grid(title=counts(graph, states), title_justify="left")
        for name in COLUMNS:
            grid.add_column(name)
        for each in running:
            grid.add_row(*cells(each))
        self._live.update(grid)

    def note(self, text: str) -> None:
        """A line above the table."""
        self._live.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._live.stop()


def make_view() -> View:
    """A table on a terminal, lines elsewhere."""
    return Table() if sys.stderr.isatty() else Lines()


def counts(graph: Graph, states: Mapping[str, str]) -> str:
    """`3 of 20 runs done, 2 running, 15 waiting`."""
    number = Counter(states[key] for key in graph.nodes)
    rest = [f"{number[state]} {state}" for state in STATES[1:] if number[state]]
    return ", ".join([f"{number[DONE]} of {len(graph.nodes)} runs done", *rest])


def cells(each: "Running") -> list[str]:
    """One row of the table, in the order of COLUMNS."""
    node, progress = each.node, each.progress
    step = f"{progress.step}/{progress.total}" if progress.total else str(progress.step)
    return [
        node.task or "-",
        node.method or "(shared)",
        node.stage,
        str(node.seed),
        step,
        _number(progress.loss, 4),
        _number(progress.curve[-1] if progress.curve else None, 2),
        progress.left or "-",
        each.group.name,
    ]


def _number(value: Any, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
