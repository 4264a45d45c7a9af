"""How far a run is: read from the files that it writes, while it runs and when it has ended."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from config.saved import TRACKER
from distill.engine.run_dir import METRICS, SUMMARY

LOSS, VALID = "Train/train_loss", "Train/valid_"
_STEP = re.compile(rb"iteration (\d+)/(\d+) \|.* left (\S+(?: days?, \S+)?)")
_BLOCK = 4096  # bytes of a log's end that hold its last step


class Progress:
    """A running program's step, loss and scores. `read` takes what was written since."""

    def __init__(self, folder: Path, log: Path, metric: str | None):
        self._metrics, self._log, self._metric = folder / METRICS, log, metric
        self._place = 0
        self.step: int = 0
        self.total: int | None = None
        self.left = ""
        self.loss: float | None = None
        self.curve: list[float] = []  # scores of the evaluations so far

    def read(self) -> None:
        """What is new."""
        if self.read_metrics():
            self._read_log()

    def read_metrics(self) -> bool:
        """New steps and scores, if there are any. A line that is not complete yet waits."""
        try:
            with self._metrics.open("rb") as file:
                if self._place > file.seek(0, 2):  # the file was begun anew
                    self._place, self.curve = 0, []
                file.seek(self._place)
                text = file.read()
        except FileNotFoundError:
            return False
        whole = text[: text.rfind(b"\n") + 1]
        self._place += len(whole)
        for line in whole.splitlines():
            self._take(json.loads(line))
        return bool(whole)

    def _take(self, row: Mapping[str, Any]) -> None:
        self.step = row.get("iteration", self.step)
        self.loss = row.get(LOSS, self.loss)
        valid = {name.removeprefix(VALID): v for name, v in row.items() if name.startswith(VALID)}
        name = self._metric or next(iter(valid), None)
        if name in valid and valid[name] is not None:
            self.curve.append(valid[name])

    def _read_log(self) -> None:
        with self._log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _BLOCK))
            found = _STEP.findall(file.read())
        if found:
            self.total, self.left = int(found[-1][1]), found[-1][2].decode()


def result_of(folder: Path) -> dict[str, Any] | None:
    """What a run told at its end; None if it has not ended."""
    try:
        return json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def is_resumable(folder: Path, flags: Mapping[str, Any]) -> bool:
    """Whether an interrupted run has a checkpoint with all of its state."""
    return "--no-save-optim" not in flags and (folder / TRACKER).is_file()
