"""A frozen dataclass whose fields are command-line flags."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, field
from types import UnionType
from typing import Any, ClassVar, Self, get_args, get_origin, get_type_hints


def flag(
    default: Any = MISSING,
    help: str = "",  # noqa: A002 - argparse's word
    *,
    name: str | None = None,
    choices: Sequence[Any] | None = None,
) -> Any:
    """A dataclass field that is also a command-line flag; `name` overrides the spelling."""
    return field(default=default, metadata={"help": help, "name": name, "choices": choices})


class ArgGroup:
    """Base of all argument groups. Subclasses are `@dataclass(frozen=True, kw_only=True)`.

    A bool field is a switch (off by default), `X | None` parses as `X`, `tuple[X, ...]` takes
    several values. The flag of a field is `--` + prefix + name, with `_` replaced by `sep`.
    """

    title: ClassVar[str] = ""
    sep: ClassVar[str] = "_"  # "-" in the groups that GLM took from Megatron: --num-layers
    prefix: ClassVar[str] = ""  # "teacher_": --teacher_num_layers
    needs: ClassVar[Mapping[str, str]] = {}  # flag -> the flag without which it has no effect

    @classmethod
    def flags(cls) -> dict[str, Field]:
        """Flag spelling -> dataclass field, for the fields declared with `flag()`."""
        return {cls.spelling(f): f for f in dataclasses.fields(cls) if "help" in f.metadata}

    @classmethod
    def spelling(cls, f: Field) -> str:
        """`--num-layers` of the field `num_layers`."""
        return f.metadata["name"] or "--" + cls.prefix + f.name.replace("_", cls.sep)

    @classmethod
    def dest(cls, f: Field) -> str:
        """argparse's attribute name of a field: the seed's flat name, `num_layers`."""
        return cls.spelling(f).lstrip("-").replace("-", "_")

    def mixes(self) -> tuple[str, ...]:
        """Names of methods that this one runs; their groups are taken from the flags, too."""
        return ()

    @classmethod
    def add_to(cls, parser: argparse.ArgumentParser) -> None:
        """Declare the group's flags. Nothing is filled in for a flag that was not given."""
        flags = {s: f for s, f in cls.flags().items() if s not in parser._option_string_actions}
        if not flags:  # a group without flags, or one whose base class has declared them
            return
        group = parser.add_argument_group(cls.title)
        hints = get_type_hints(cls)
        for spelling, f in flags.items():
            options: dict[str, Any] = {"dest": cls.dest(f), "default": argparse.SUPPRESS}
            kind, many = _scalar(hints[f.name])
            if kind is bool:
                options["action"] = "store_true"
            else:
                options |= {"type": kind, "choices": f.metadata["choices"]}
                if not f.metadata["choices"]:
                    options["metavar"] = kind.__name__.upper()
                if many:
                    options["nargs"] = "+"
            no_default = f.default is None or f.default is False or f.default in (MISSING, "", ())
            text = f.metadata["help"] + ("" if no_default else f" [{f.default}]")
            group.add_argument(spelling, help=text.replace("%", "%%"), **options)

    @classmethod
    def take(cls, given: argparse.Namespace) -> Self:
        """The group with the values that were given; defaults elsewhere."""
        values = {}
        for f in cls.flags().values():
            if hasattr(given, cls.dest(f)):
                value = getattr(given, cls.dest(f))
                values[f.name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)


def _scalar(hint: Any) -> tuple[type, bool]:
    """`int | None` -> (int, False); `tuple[str, ...] | None` -> (str, True)."""
    if get_origin(hint) is UnionType or isinstance(hint, UnionType):
        (hint,) = [a for a in get_args(hint) if a is not type(None)]
    if get_origin(hint) is tuple:
        return get_args(hint)[0], True
    return hint, False
