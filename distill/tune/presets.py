"""Presets as data: models (config/models), tasks (config/tune_tasks.json), teachers of tasks."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from config import ConfigError
from config.parser import read_json
from distill.tune.command import Flags, Value

CONFIG = Path(__file__).resolve().parent.parent.parent / "config"
MODELS, TASKS = CONFIG / "models", CONFIG / "tune_tasks.json"


@cache
def models() -> dict[str, dict[str, Any]]:
    """Name -> type, default checkpoint, DeepSpeed's JSON and flags. The file's name is the name."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(MODELS.glob("*.json"))
    }


@cache
def tasks() -> dict[str, dict[str, Any]]:
    """Key, as in `--tasks` -> data folder, length, epochs and flags of fine-tuning."""
    return json.loads(TASKS.read_text(encoding="utf-8"))


def as_flags(written: Mapping[str, str | None]) -> Flags:
    """Names of a preset file as flags."""
    return {f"--{name}": value for name, value in written.items()}


class Teachers:
    """`--task_t_load_path`: keys, each with a checkpoint for every task and flags."""

    def __init__(self, path: Path):
        self.path = path
        self._entries = read_json(path, "--task_t_load_path")

    @property
    def keys(self) -> list[str]:
        """All keys of the file."""
        return list(self._entries)

    def flags(self, key: str, task: str, root: str) -> Flags:
        """The flags of a key for one task. ConfigError for what the file does not have.

        A list is resolved for the task: an item that is a key is that key's checkpoint of this
        task, any other a path; each below `root`, joined by colons.
        """
        if key not in self._entries:
            known = ", ".join(self.keys)
            raise ConfigError(f"--task_t_load={key}: {self.path} has no such key; it has {known}")
        return {
            name: self._value(value, task, root, key) for name, value in self._entries[key]["args"]
        }

    def _value(self, value: Any, task: str, root: str, key: str) -> Value:
        if not isinstance(value, list):
            return None if value is None else str(value)
        return ":".join(self._checkpoint(item, task, root, key) for item in value)

    def _checkpoint(self, item: str, task: str, root: str, key: str) -> str:
        if item not in self._entries:
            return below(root, item)
        path = self._entries[item].get("tasks", {}).get(task)
        if not path:
            raise ConfigError(
                f"--task_t_load={key}: {self.path} has no checkpoint of {item} for task {task}"
            )
        return below(root, path)


def below(root: str, path: str) -> str:
    """`root/path`, whether or not the path begins with a slash (the seed's files have both)."""
    return f"{root.rstrip('/')}/{path.lstrip('/')}" if path else path
