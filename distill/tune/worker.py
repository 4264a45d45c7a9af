"""A worker: takes runs whose needs are met, one for each of its device groups, until none is left.

Several workers, on one machine or on many, work on the same study. What a worker was doing when it
was killed is begun anew, or goes on from its last checkpoint.
"""

import contextlib
import logging
import os
import queue
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.tune import process
from distill.tune.code_version import code_version
from distill.tune.command import Flags
from distill.tune.devices import Group, launcher
from distill.tune.graph import Graph, Node, command
from distill.tune.progress import Progress, is_resumable, result_of
from distill.tune.pruning import Pruner
from distill.tune.store import DONE, FAILED, LEASE, OPEN, PRUNED, RUNNING, WAITING, Row, Store
from distill.tune.trials import Choices
from distill.tune.view import View

log = logging.getLogger(__name__)

TICK = 1.0  # seconds between looks at what runs
BEAT = 10.0  # seconds between heartbeats
USER_ERROR = 2  # exit status of a program that refuses its input: no retry helps


@dataclass
class Running:
    """A program of ours."""

    node: Node
    group: Group
    process: subprocess.Popen[bytes]
    log: Path
    progress: Progress
    began: float
    pruned: bool = False


class Worker:
    """Runs what is left of a sweep on its groups."""

    def __init__(
        self, choices: Choices, store: Store, groups: Sequence[Group], out: Path, view: View
    ):
        self.choices, self.store, self.groups = choices, store, list(groups)
        self.out, self.view = out, view
        self.sweep = choices.sweep
        self.name = f"{socket.gethostname()}:{os.getpid()}:{process.start_time(os.getpid())}"
        self.running: dict[str, Running] = {}
        self._ended: queue.Queue[str] = queue.Queue()
        self._beaten = self._tidied = 0.0
        self._news = True
        self.pruner = Pruner(self.sweep.pruning, self.sweep.metric, out)
        self.graph = Graph()
        self._order: list[Node] = []  # that of taking runs

    def run(self) -> bool:
        """Until every run has ended, here or elsewhere; whether none failed."""
        self._expand()
        try:
            while True:
                if self._is_due():
                    states = self._tidy()
                    states = self._start(states)
                    if not self.choices.are_asked:  # meanwhile the next ones run
                        self.choices.prepare()
                        self.choices.tell(self.graph, states, self.store.rows)
                    is_open = any(states[key] in OPEN for key in self.graph.nodes)
                    if not self.running and not is_open and not self._more():
                        break
                self.view.show(self.graph, states, self.running.values())
                self._wait()
        finally:
            self._leave()
        rows = self.store.rows()
        return all(rows[key].state in (DONE, PRUNED) for key in self.graph.nodes)

    def _is_due(self) -> bool:
        """Whether the database may have news: a run of ours ended, or others had time to."""
        pause = TICK if len(self.running) < len(self.groups) else BEAT
        due = self._news or time.time() - self._tidied >= pause
        if due:
            self._news, self._tidied = False, time.time()
        return due

    def _more(self) -> bool:
        """Another proposal of Optuna's, if there is one to come."""
        if not (self.choices.are_asked and self.choices.ask()):
            return False
        self._expand()
        return True

    def _expand(self) -> None:
        """The graph of the trials known by now, its runs in the database."""
        self.graph = self.choices.graph()
        nodes = self.graph.nodes.values()
        self.store.add(Row(n.key, n.name, n.method, n.task, n.stage, n.seed) for n in nodes)
        self._order = sorted(nodes, key=lambda node: node.method is not None)

    def _tidy(self) -> dict[str, str]:
        """Take back what dead workers had; give up what needs a failed run. Key -> state."""
        states, nodes = self.store.states(), self.graph.nodes
        others = [k for k in nodes if states[k] == RUNNING and k not in self.running]
        for key, row in self.store.rows(others).items() if others else ():
            if row.state == RUNNING and self._is_dead(row):
                self._end_left_over(row)
                if self.store.release(row):
                    states[key] = WAITING
        for key, node in nodes.items():
            if states[key] != WAITING:
                continue
            lost = next((n for n in self.graph.needs(node) if states[n] in (FAILED, PRUNED)), None)
            if lost is not None:
                reason = f"needs {nodes[lost].name}, which was {states[lost]}"
                self.store.give_up(key, states[lost], reason)
                states[key] = states[lost]
        if self.choices.are_asked:  # Optuna learns what has ended before it proposes more
            self.choices.tell(self.graph, states, self.store.rows)
        return states

    def _is_dead(self, row: Row) -> bool:
        host, pid, started = row.worker.rsplit(":", 2)
        if host == socket.gethostname():
            return process.start_time(int(pid)) != started
        return time.time() - row.heartbeat > LEASE

    def _end_left_over(self, row: Row) -> None:
        """The program of a killed worker may have outlived it."""
        if row.pid and row.worker.rsplit(":", 2)[0] == socket.gethostname():
            below = list(process.descendants(row.pid))
            if process.end(row.pid, row.pid_start):
                for pid, started in below:
                    process.end(pid, started)

    def _start(self, states: dict[str, str]) -> dict[str, str]:
        """A run on each idle group, while there are any; how things are then."""
        busy = {each.group for each in self.running.values()}
        idle = [group for group in self.groups if group not in busy]
        while idle:
            node = self._take(states)
            if node is not None:
                if self._start_program(node, idle[0]):
                    idle.pop(0)
                else:
                    states[node.key] = FAILED
            elif self._more():
                states = self.store.states()
            else:
                break
        return states

    def _take(self, states: dict[str, str]) -> Node | None:
        """The first run that is ready and that nobody else takes; what is shared comes first."""
        for node in self._order:
            if states[node.key] != WAITING:
                continue
            if any(states[need] != DONE for need in self.graph.needs(node)):
                continue
            found = result_of(self.out / "runs" / node.folder)
            if found is not None and self.store.adopt(node.key, found, code_version()):
                states[node.key] = DONE
                continue
            states[node.key] = RUNNING
            if self.store.claim(node.key, self.name, code_version()):
                return node
        return None

    def _start_program(self, node: Node, group: Group) -> bool:
        row = self.store.rows([node.key])[node.key]
        folder = self.out / "runs" / node.folder
        more: Flags = {}
        if folder.exists():
            goes_on = not row.failures and is_resumable(folder, node.flags)
            more = {"--load": str(folder)} if goes_on else {"--overwrite": None}
        made = command(self.graph, node, self.out, more, launcher(group, node.flags))
        file = self.out / "logs" / f"{node.folder}.{row.failures}.log"
        variables = group.environment(len(self.groups))
        began = time.time()
        try:
            started = process.start(made.words, file, variables)
        except OSError as error:
            self.store.fail(node.key, f"{made.words[0]}: {error}", 1, FAILED, 0.0)
            return False
        began_as = process.start_time(started.pid) or ""
        self.store.started(node.key, started.pid, began_as, made.text)
        progress = Progress(folder, file, self.choices.sweep.metric)
        self.running[node.key] = Running(node, group, started, file, progress, began)
        threading.Thread(target=self._await, args=(node.key, started), daemon=True).start()
        self.view.note(f"{group.name}: {node.name} started, log {file}")
        return True

    def _await(self, key: str, started: subprocess.Popen[bytes]) -> None:
        started.wait()
        self._ended.put(key)

    def _wait(self) -> None:
        """For the next program to end, or a tick; then see to it, and to others that ended."""
        timeout = TICK
        with contextlib.suppress(queue.Empty):
            while True:
                ended = self._ended.get(timeout=timeout)
                self._finish(self.running.pop(ended))
                self._news, timeout = True, 0.0
        if time.time() - self._beaten > BEAT:
            self.store.beat(self.running, self.name)
            self._beaten = time.time()
        for each in self.running.values():
            each.progress.read()
            if not each.pruned and self.pruner.ends(
                each.node, each.progress, self.graph, self.store
            ):
                each.pruned = True
                threading.Thread(target=process.stop, args=(each.process,), daemon=True).start()

    def _finish(self, ended: Running) -> None:
        node, seconds = ended.node, time.time() - ended.began
        status = ended.process.returncode
        found = result_of(self.out / "runs" / node.folder) if status == 0 else None
        if found is not None:
            self.store.finish(node.key, DONE, found, seconds)
            self.view.note(f"{ended.group.name}: {node.name} done in {seconds:.0f} s")
            return
        if ended.pruned:
            scores = {"curve": ended.progress.curve}
            self.store.finish(node.key, PRUNED, scores, seconds)
            self.view.note(f"{ended.group.name}: {node.name} pruned after {seconds:.0f} s")
            return
        failures = self.store.rows([node.key])[node.key].failures + 1
        is_final = status == USER_ERROR or failures > self.sweep.retries
        what = f"exit status {status}" if status else "no summary.json at its end"
        reason = f"{what}; see {ended.log}\n{process.tail(ended.log)}"
        state = FAILED if is_final else WAITING
        self.store.fail(node.key, reason, failures, state, seconds)
        self.view.note(f"{ended.group.name}: {node.name} failed ({state}): {reason}")

    def _leave(self) -> None:
        """End what still runs, which is nothing unless we were interrupted, and put it back."""
        rows = self.store.rows(self.running)
        for key, each in self.running.items():
            process.stop(each.process)
            self.store.release(rows[key])
        self.running.clear()
        self.view.close()
