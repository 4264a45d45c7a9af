"""Run the jobs of the seed's command line: those of a device group one after the other."""

import json
import logging
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from config import ConfigError
from distill.engine import files
from distill.tune.check import command_problems
from distill.tune.command import Command
from distill.tune.process import start, stop, tail
from distill.tune.scores import table
from distill.tune.seed_plan import Job, Stage

log = logging.getLogger(__name__)


class Runner:
    """Runs jobs, keeps their score records in the tune file, and why commands failed."""

    def __init__(self, jobs: Sequence[Job], root: Path, name: str, retries: int):
        self.jobs, self.retries = jobs, retries
        self.tune_file = root / "tmp" / f"tune_{name}.json"
        self.logs = root / "tmp" / f"tune_{name}_logs"
        self.records: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def prepare(self) -> None:
        """Write DeepSpeed's JSON files. ConfigError: everything that programs would refuse."""
        problems = []
        for job in self.jobs:
            for stage in job.stages:
                if stage.deepspeed is not None:
                    files.write_json(*stage.deepspeed)
                problems += command_problems(stage.command)
        problems += [
            f"{name}: is not installed, or not on PATH"
            for name in dict.fromkeys(c.launcher[0] for job in self.jobs for c in job.commands)
            if name != "python" and shutil.which(name) is None
        ]
        if problems:
            raise ConfigError(dict.fromkeys(problems))

    def run(self) -> bool:
        """All jobs; whether everything went well. Call `prepare` before."""
        groups: dict[str, list[Job]] = {}
        for job in self.jobs:
            groups.setdefault(job.gpus, []).append(job)
        with ThreadPoolExecutor(len(groups)) as pool:
            futures = [pool.submit(self._run_all, jobs) for jobs in groups.values()]
            try:
                for future in futures:
                    future.result()
            finally:  # nothing runs any more unless we were interrupted
                self._stopped = True
                for process in list(self._running):
                    stop(process)
        if self.records:
            log.info("%s\n%s", self.tune_file, table(self.records))
        for failure in self.failures:
            log.error("failed: %s", failure)
        return not self.failures

    def _run_all(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            for number, command in enumerate(job.commands):
                name = f"{job.key}-{number}"
                if self._stopped or not self._attempts(command, name):
                    break  # what follows needs this one
                if number >= len(job.conversions):
                    self._collect(job.stages[number - len(job.conversions)], command)

    def _attempts(self, command: Command, name: str) -> bool:
        """Run a command, at most `retries` times again."""
        reason = ""
        for attempt in range(self.retries + 1):
            file = self.logs / f"{name}.{attempt}.log"
            log.info("%s: %s", name, command.text)
            begin = time.monotonic()
            process = start(command.words, file, command.full_environment())
            self._running.add(process)
            status = process.wait()
            self._running.discard(process)
            if status == 0:
                log.info("%s: done in %.0f s", name, time.monotonic() - begin)
                return True
            reason = f"{name}: exit status {status}; see {file}\n{tail(file)}"
            if self._stopped:
                return False
            log.warning("%s", reason)
        with self._lock:
            self.failures.append(reason)
        return False

    def _collect(self, stage: Stage, command: Command) -> None:
        try:
            record = json.loads(stage.result.read_text(encoding="utf-8"))
        except FileNotFoundError:
            log.warning("%s: wrote no scores", stage.run_dir)
            return
        with self._lock:
            self.records.append(record | {"*cmd": command.text})
            files.write_json(self.tune_file, self.records)
