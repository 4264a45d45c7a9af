"""Compare this project with recorded numbers: `python -m tests.check_vectors DIR [--case GLOB]`.

DIR holds one folder a case (the format is told in the README.md beside the recorded cases). One
line a case, or a part of it: name, `ok` / `FAILED` / `not-implemented`, the largest relative error
of losses and forward values, that of gradients, and what went wrong. The exit code is 0 only if
every line is ok.

Tolerances: values 1e-4 relative, 1e-5 absolute; gradients 1e-3 relative, or 1e-5 of the largest
entry of the tensor; ids, maps and shards exactly. Attention is summed in the order of the formula,
as where the numbers were recorded: a fused kernel rounds differently, and a gradient that nearly
cancels shows that.
"""

import argparse
import json
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

import torch

from config import ConfigError
from tests.vector_checks import (
    data,
    engine,
    losses,
    model,
    parallel,
    shards,
    tasks,
    training,
    warm_start,
)
from tests.vector_checks.common import FAILED, NOT_IMPLEMENTED, OK, Result

Check = Callable[[Path], list[Result]]
AREAS = (model, data, tasks, engine, losses, parallel, training, warm_start, shards)
LATER = ("is not supported yet", "is no method")  # words of ConfigError for what is not built


def find_check(case: Path) -> Check | None:
    """The function that checks a case; the most exact name wins. None if there is none."""
    globs = {glob: check for area in AREAS for glob, check in area.CHECKS.items()}
    matching = [glob for glob in globs if fnmatch(case.name, glob)]
    if matching:
        return globs[max(matching, key=lambda glob: ("*" not in glob, len(glob)))]
    args = case / "args.json"
    if args.is_file() and "stage" in json.loads(args.read_text(encoding="utf-8")):
        return training.check
    return None


def check_case(case: Path) -> list[Result]:
    """The results of one folder; what it raises becomes a result."""
    check = find_check(case)
    if check is None:
        return [Result(case.name, NOT_IMPLEMENTED, message="no check for this kind of case")]
    try:
        return check(case)
    except ConfigError as error:
        later = [p for p in error.problems if any(word in p for word in LATER)]
        status = NOT_IMPLEMENTED if later else FAILED
        return [Result(case.name, status, message=(later or error.problems)[0])]
    except Exception as error:  # a report must name every case
        logging.getLogger(__name__).debug("%s", traceback.format_exc())
        text = str(error).strip().splitlines() or [""]
        return [Result(case.name, FAILED, message=f"{type(error).__name__}: {text[-1][:200]}")]


def check_folder(folder: Path, glob: str = "*") -> Iterator[Result]:
    """All cases of a folder, in the order of their names."""
    cases = [
        case for case in sorted(folder.iterdir()) if case.is_dir() and fnmatch(case.name, glob)
    ]
    if not cases:
        raise FileNotFoundError(f"{folder}: no case matches {glob!r}")
    for case in cases:
        yield from check_case(case)


def line(result: Result) -> str:
    """`kd_ft ok loss 4.4e-07 gradient 1.1e-06`"""
    text = f"{result.name} {result.status}"
    if result.status != NOT_IMPLEMENTED:
        text += f" loss {result.loss_error:.1e} gradient {result.grad_error:.1e}"
    return f"{text}  {result.message}".rstrip()


def main(argv: Sequence[str] | None = None) -> int:
    """Check a folder; 0 if every case is ok."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.check_vectors", description=__doc__.splitlines()[0]
    )
    parser.add_argument("dir", type=Path, help="folder with one folder a case")
    parser.add_argument("--case", default="*", help="only cases whose names match this glob")
    parser.add_argument("--verbose", action="store_true", help="tracebacks of what failed")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.DEBUG if options.verbose else logging.ERROR)
    torch.set_num_threads(1)
    counts = dict.fromkeys((OK, FAILED, NOT_IMPLEMENTED), 0)
    try:
        for result in check_folder(options.dir, options.case):
            counts[result.status] += 1
            print(line(result), flush=True)
    except FileNotFoundError as error:
        parser.error(str(error))
    print(", ".join(f"{number} {status}" for status, number in counts.items()))
    return 0 if counts[OK] == sum(counts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
