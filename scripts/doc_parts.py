"""What docs/methods.md and docs/teachers.md have in common: docstrings, flags, commands."""

import inspect
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass

from config import ArgGroup
from scripts.recipes import (
    Stage,
    chain,
    ranking_command,
    recipes,
    stage_flags,
    tokenizer_command,
)

WIDTH = 100
LABELS = ("Not as in the paper", "Not as in the seed", "Stages", "When")
LABEL = re.compile(rf"^({'|'.join(LABELS)}):[ ]*", re.MULTILINE)


@dataclass(frozen=True)
class About:
    """What the module of a method, or of a combiner, says of itself."""

    name: str  # RAIL-KD
    title: str  # the first line
    body: str
    parts: dict[str, str]  # by label

    @classmethod
    def read(cls, described: type) -> "About":
        """From the docstring: first paragraph, text, and paragraphs that begin with a label."""
        text = inspect.cleandoc(sys.modules[described.__module__].__doc__ or "")
        title, _, rest = text.partition("\n\n")
        body, *found = LABEL.split(rest)
        parts: dict[str, str] = {}
        for label, part in zip(found[::2], found[1::2], strict=True):
            parts[label] = "\n\n".join(filter(None, (parts.get(label), part.strip("\n"))))
        title = " ".join(title.split())
        return cls(title.partition(" (")[0].partition(":")[0], title, body.strip("\n"), parts)


def markdown(text: str) -> str:
    """Docstring text as markdown: indented parts are code, the rest is taken to the letter."""
    lines: list[str] = []
    was_code = False
    for line in text.splitlines():
        is_code = line.startswith("    ") or (was_code and not line)
        if is_code != was_code and lines and lines[-1] and line:
            lines.append("")
        lines.append(line if is_code else escape(line))
        was_code = is_code
    return "\n".join(lines)


def escape(line: str) -> str:
    """A line without marks of markdown."""
    return re.sub(r"([*<])", r"\\\1", line)


def prose(text: str) -> str:
    """A part as one paragraph, or several."""
    return "\n\n".join(escape(" ".join(part.split())) for part in text.split("\n\n"))


def wrapped(words: Iterable[str]) -> str:
    """A shell command over several lines."""
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) > WIDTH - 2:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "  " if len(lines) > 1 else "") + word
    return " \\\n".join(lines)


def shell(stage: Stage, variables: Mapping[str, Sequence[str]]) -> str:
    """The stage's command, by shell variables (name -> flags)."""
    words = stage_flags(stage)
    for name, flags in variables.items():
        for i in range(len(words) - len(flags) + 1):
            if words[i : i + len(flags)] == list(flags):
                words[i : i + len(flags)] = [f"${name}"]
    return wrapped([f"${stage.program.upper()}", *words])


def block(lines: Iterable[str]) -> str:
    """Lines of shell."""
    return "\n".join(["```bash", *lines, "```"])


def preparation(variables: Mapping[str, Sequence[str]], first: Sequence[str]) -> str:
    """What is run once, before any recipe: a vocabulary, shell variables, the first stages."""
    lines = [wrapped(["python", *tokenizer_command()])]
    for name, flags in variables.items():
        lines.append(f'{name}="{wrapped(flags)}"')
    return block([*lines, *(shell(stage, variables) for stage in chain(*first))])


def recipe_text(name: str, variables: Mapping[str, Sequence[str]], first: Sequence[str]) -> str:
    """The commands of a recipe after `preparation`, with those of other recipes that it needs."""
    own = recipes()[name]
    ready = {stage.key for stage in chain(*first)} | {stage.key for stage in own}
    others = [s for s in chain(*(stage.key for stage in own)) if s.key not in ready]
    lines = []
    if any(stage.builds_map for stage in (*others, *own)):
        lines.append(wrapped(["python", *ranking_command()]))
    for stage in (*others, *own):
        lines += [f"# {stage.note}"] if stage.note else []
        lines.append(shell(stage, variables))
    return block(lines)


def flag_table(group: type[ArgGroup]) -> str:
    """Flag, default and meaning."""
    rows = ["| flag | default | meaning |", "| --- | --- | --- |"]
    for spelling, field in group.flags().items():
        default = "" if field.default in (MISSING, None, "", False) else f"`{field.default}`"
        help_text = escape(field.metadata["help"]).replace("|", "\\|")
        rows.append(f"| `{spelling}` | {default} | {help_text} |")
    return "\n".join(rows) if len(rows) > 2 else "It has no flags of its own."


def number(value: float) -> str:
    """A whole number, with commas."""
    return f"{value:,.0f}"


def size(entries: int) -> str:
    """A size in KiB."""
    return f"{entries / 2**10:,.1f} KiB" if entries else "0"
