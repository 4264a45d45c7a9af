"""argparse, with one kind of error, no abbreviations, and only what was given in its result."""

import argparse
import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from config.errors import ConfigError
from config.group import ArgGroup

ARGS_FILE = "--args_file"


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are `ConfigError`; those of values are kept until all are known."""

    problems: list[str]

    def error(self, message: str) -> NoReturn:
        """All problems so far and this one, in the words of the house."""
        raise ConfigError([*self.problems, _in_our_words(message)])

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            self.problems.append(_in_our_words(str(error)))
            return None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            self.problems.append(_in_our_words(str(error)))


def _in_our_words(message: str) -> str:
    for pattern, words in _WORDS:
        message = re.sub(pattern, words, message)
    return message


_KINDS = r"argument (\S+): invalid {} value: '(.*)'"
_WORDS = (
    (_KINDS.format("int"), r"\1=\2: must be an integer"),
    (_KINDS.format("float"), r"\1=\2: must be a number"),
    (r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)", r"\1=\2: must be one of \3"),
    (r"argument (\S+): expected (one|at least one) argument", r"\1: needs a value"),
    (r"argument (\S+): ignored explicit argument '(.*)'", r"\1=\2: takes no value"),
)


def build_parser(
    program: str, groups: Iterable[type[ArgGroup]], silent: Iterable[str] = ()
) -> Parser:
    """One argparse group per flag group; `silent` flags are taken with any values, not shown."""
    parser = Parser(
        prog=f"distill/{program}.py",
        usage="%(prog)s [flags]",
        description=_DESCRIPTIONS[program],
        allow_abbrev=False,
        formatter_class=argparse.HelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.problems = []
    parser.add_argument(
        ARGS_FILE,
        metavar="FILE",
        help="json of flags, or the config.json of an earlier run; flags given here win",
    )
    for group in groups:
        group.add_to(parser)
    for flag in silent:
        if flag in parser._option_string_actions:
            continue
        parser.add_argument(flag, nargs="*", dest=flag, help=argparse.SUPPRESS)
    return parser


_DESCRIPTIONS = {
    "pretrain": "Pretrain a GLM, alone or as the student of a teacher.",
    "finetune": "Fine-tune a GLM on a task, alone or as the student of a teacher.",
}


def read_flags(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """The flags that were given. ConfigError for wrong values and unknown flags, all of them."""
    given, unknown = parser.parse_known_args(argv)
    file = vars(given).pop("args_file", None)
    if file is not None:
        parser.problems.clear()  # found again
        given, unknown = parser.parse_known_args([*_flags_of_file(parser, file), *argv])
        del given.args_file
    problems = [*parser.problems, *(_unknown(parser, word) for word in unknown)]
    if problems:
        raise ConfigError(problems)
    return given


def _unknown(parser: Parser, word: str) -> str:
    if not word.startswith("--"):
        return f"{word}: belongs to no flag"
    name = word.split("=")[0]
    swapped = {name.replace("_", "-"), "--" + name[2:].replace("-", "_")}
    known = [o for a in parser._actions for o in a.option_strings if o.startswith("--")]
    near = [o for o in known if o in swapped] or difflib.get_close_matches(name, known, n=1)
    return f"{name}: is not a flag" + (f"; did you mean {near[0]}?" if near else "; see --help")


def _flags_of_file(parser: Parser, file: str) -> list[str]:
    """The flags of a json file, as a command line would have them."""
    content = read_json(Path(file), ARGS_FILE)
    flags = content.get("flags", content)
    if not isinstance(flags, Mapping):
        raise ConfigError(f"{ARGS_FILE}={file}: 'flags' is not a mapping of flags to values")
    dests = {a.dest: a.option_strings[0] for a in parser._actions if a.option_strings}
    words: list[str] = []
    for name, value in flags.items():
        words += _words(dests.get(name, name), value)
    return words


def _words(flag: str, value: Any) -> list[str]:
    if value is None or value is False:
        return []
    if value is True:
        return [flag]
    if isinstance(value, list):
        return [flag, *map(str, value)]
    return [f"{flag}={value}"]


def read_json(path: Path, flag: str) -> dict[str, Any]:
    """A json object. ConfigError naming the flag, the file and the line."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{flag}={path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{flag}={path}: is not a text file ({error.reason})") from error
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{flag}={path}: line {error.lineno}, column {error.colno}: {error.msg}"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{flag}={path}: must hold one json object in braces")
    return content
