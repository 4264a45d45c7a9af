"""YAML whose every value knows its line; what is wrong is collected, not raised."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import ConfigError

_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")


@dataclass(frozen=True)
class Text:
    """A text and the line it stands in."""

    value: str
    line: int


class Reader:
    """A YAML file as PyYAML's nodes. Values stay the texts that were written: 1e-3 is `1e-3`."""

    def __init__(self, path: Path):
        """ConfigError: the file cannot be read, or is no YAML."""
        import yaml

        self.path, self.problems = path, []
        self._kinds = yaml.MappingNode, yaml.SequenceNode, yaml.ScalarNode
        try:
            self.root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except OSError as error:
            raise ConfigError(f"--sweep={path}: cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"--sweep={path}: is not a text file ({error.reason})") from error
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            line = mark.line + 1 if mark is not None else 1
            raise ConfigError(f"{path}:{line}: is no YAML: {error.problem}") from error
        if self.root is None:
            raise ConfigError(f"{path}:1: is empty; docs/sweeps.md says what a sweep needs")

    def line(self, node: Any) -> int:
        """Counted from 1."""
        return 1 if node is None else node.start_mark.line + 1

    def problem(self, node: Any, text: str) -> None:
        """Remember what is wrong at a node."""
        self.problems.append(f"{self.path}:{self.line(node)}: {text}")

    def is_mapping(self, node: Any) -> bool:
        """Whether it has keys."""
        return isinstance(node, self._kinds[0])

    def free(self, node: Any) -> dict[str, Any]:
        """A mapping with any keys; {} for none. A key that comes twice is a problem."""
        if node is None or self._is_null(node):
            return {}
        if not self.is_mapping(node):
            self.problem(node, "must be a mapping of names to values")
            return {}
        found: dict[str, Any] = {}
        for key, value in node.value:
            if key.value in found:
                self.problem(key, f"{key.value}: is there twice")
            found[key.value] = value
        return found

    def mapping(
        self, node: Any, what: str, needed: Sequence[str] = (), known: Sequence[str] = ()
    ) -> dict[str, Any]:
        """A mapping with these keys only."""
        found = self.free(node)
        every = [*needed, *known]
        for key, value in found.items():
            if key not in every:
                near = difflib.get_close_matches(key, every, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(every)}"
                self.problem(value, f"{key}: is no part of {what}; {hint}")
        if node is not None:
            for key in needed:
                if key not in found:
                    self.problem(node, f"{what} needs {key}")
        return found

    def items(self, node: Any) -> list[Any]:
        """The items of a list; a single value is a list of one."""
        if node is None or self._is_null(node):
            return []
        return list(node.value) if isinstance(node, self._kinds[1]) else [node]

    def text(self, node: Any) -> str:
        """A scalar as it was written; "" for none."""
        if node is None:
            return ""
        if not isinstance(node, self._kinds[2]):
            self.problem(node, "must be a single value")
            return ""
        return "" if self._is_null(node) else node.value

    def word(self, node: Any, known: Sequence[str]) -> str:
        """One of the known words; "" for none."""
        text = self.text(node)
        if text and text not in known:
            self.problem(node, f"{text}: must be one of {', '.join(known)}")
            return ""
        return text

    def integer(self, node: Any, default: int = 0) -> int:
        """A number from 0 on."""
        text = self.text(node)
        if text and not text.isdecimal():
            self.problem(node, f"{text}: must be an integer from 0 on")
            return default
        return int(text) if text else default

    def number(self, node: Any) -> float | None:
        """Any number; None for none."""
        text = self.text(node)
        try:
            return float(text) if text else None
        except ValueError:
            self.problem(node, f"{text}: must be a number")
            return None

    def flag_value(self, node: Any) -> str | tuple[str, ...] | None | bool:
        """A flag's value: None for a switch that is on (true, or nothing), False for one off."""
        if isinstance(node, self._kinds[1]):
            return tuple(self.text(item) for item in node.value)
        text = self.text(node)
        if self._is_null(node) or (node.style is None and text.lower() in _TRUE):
            return None
        if node.style is None and text.lower() in _FALSE:
            return False
        return text

    def _is_null(self, node: Any) -> bool:
        return node.tag == "tag:yaml.org,2002:null"
