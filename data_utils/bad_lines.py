"""BadLines: a line that cannot be used is an error; with --skip-bad-lines it is counted instead."""

import logging
from pathlib import Path

log = logging.getLogger(__name__)

SHOWN = 3  # lines that the report spells out


class BadLines:
    """What becomes of the bad lines of one file (or of several): call it with each error."""

    def __init__(self, skip: bool = False):
        """`skip`: --skip-bad-lines."""
        self.skip, self.number = skip, 0
        self.shown: list[str] = []

    def __call__(self, error: ValueError) -> None:
        """Raise the error with its remedy; or count it.

        The message of `error` names file, line and field.
        """
        if not self.skip:
            raise ValueError(
                f"{error}; mend the line, or leave such lines out with --skip-bad-lines"
            ) from error
        self.number += 1
        if len(self.shown) < SHOWN:
            self.shown.append(str(error))

    def report(self, path: str | Path) -> None:
        """One warning if lines of this path were skipped."""
        if self.number:
            more = [f"and {self.number - len(self.shown)} more"]
            log.warning(
                "%s: %d bad lines skipped (--skip-bad-lines): %s",
                path,
                self.number,
                "; ".join(self.shown + (more if self.number > len(self.shown) else [])),
            )
