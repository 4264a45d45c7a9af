"""Mistakes of the user: every problem of a command line in one exception."""

from collections.abc import Iterable


class ConfigError(ValueError):
    """One or more problems, each a line `--flag=value: what is wrong; what would be right`."""

    def __init__(self, problems: str | Iterable[str]):
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))
