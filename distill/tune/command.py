"""Command: a program, how it is started, and its flags in order. No shell ever sees it."""

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Value = str | tuple[str, ...] | None  # None: a switch
Flags = dict[str, Value]  # `--name` -> value; the last value of a name counts


@dataclass(frozen=True)
class Command:
    """`launcher program flags`, with some environment variables of its own."""

    program: str  # distill/finetune.py
    flags: Mapping[str, Value]
    launcher: tuple[str, ...] = ("python",)
    environment: Mapping[str, str] = field(default_factory=dict)
    places: tuple[str, ...] = ()  # arguments before the flags

    @property
    def flag_words(self) -> list[str]:
        """The flags, as the program's argv has them."""
        return render(self.flags)

    @property
    def words(self) -> list[str]:
        """All of argv, from the launcher on."""
        return [*self.launcher, self.program, *self.places, *self.flag_words]

    @property
    def text(self) -> str:
        """What one types into a shell."""
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(self.words)])

    def full_environment(self) -> dict[str, str]:
        """The variables of this process and those of the command."""
        return dict(os.environ) | dict(self.environment)


def render(flags: Mapping[str, Value]) -> list[str]:
    """`--name=value`, `--switch`, `--list a b`."""
    words: list[str] = []
    for name, value in flags.items():
        if value is None:
            words.append(name)
        elif isinstance(value, tuple):
            words += [name, *value]
        else:
            words.append(f"{name}={value}")
    return words


def parse_flags(words: Sequence[str]) -> list[tuple[str, Value]]:
    """`--a=1 --b 2 --c` -> pairs, in order. ValueError for a word that belongs to no flag.

    Only the first `=` separates. What follows a flag and is none is its value, or its values.
    """
    found: list[tuple[str, Value]] = []
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            found.append((name, value if equals else None))
            continue
        if not found:
            raise ValueError(f"{word}: belongs to no flag")
        name, before = found[-1]
        if before is None:
            value = word
        else:
            value = (*((before,) if isinstance(before, str) else before), word)
        found[-1] = (name, value)
    return found


def put_after(program_flags: Flags, more: Iterable[tuple[str, Value]]) -> Flags:
    """Flags with others added or replaced; what is replaced keeps its place."""
    return {**program_flags, **dict(more)}
