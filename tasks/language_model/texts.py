"""Texts that are evaluated: reading them, and undoing WikiText's tokens."""

import json
import re
from pathlib import Path

from config.errors import ConfigError
from data_utils.bad_lines import BadLines
from data_utils.corpora import is_unicode
from tasks.seq2seq.files import read_lines

_WIKITEXT: tuple[tuple[str, str], ...] = (
    (r" @([-.,])@ ", r"\1"),  # 1 @,@ 000
    (r"s '", "s'"),
    (r" '(s|t|d|m|ll|re|ve)\b", r"'\1"),
    (r"n 't\b", "n't"),
    (r" ([:;.!?,])(?= |\n|$)", r"\1"),
    (r"\( ([^()]*?) \)", r"(\1)"),
    (r"\[ ([^\[\]]*?) \]", r"[\1]"),
    (r"\{ ([^{}]*?) \}", r"{\1}"),
    (r'" ([^"\n]*?) "', r'"\1"'),
    (r"' ([^'\n]*?) '(?!\w)", r"'\1'"),
    (r"= = = =", "===="),
    (r"= = =", "==="),
    (r"= =", "=="),
    (r" \u00b0 ", "\u00b0"),
    (r" ?\n ?", "\n"),
    (r" N ", " 1 "),
)


def plain_wikitext(text: str) -> str:
    """WikiText as people write: `1 @,@ 000 ( about ) , " x "` -> `1,000 (about), "x"`."""
    for pattern, plain in _WIKITEXT:
        text = re.sub(pattern, plain, text)
    return text


def text_file(path: str, task: str) -> Path:
    """The file of --valid-data. ConfigError if it is none."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"--valid-data={path}: no such file, which --task={task} evaluates")
    return file


def read_whole(file: Path) -> str:
    """All of a text file. ValueError names a line that is not UTF-8, and an empty file."""
    text = "\n".join(read_lines(file))
    if len(text.split()) < 2:
        raise ValueError(f"{file}: holds no text; two words are the least")
    return text


def read_texts(file: Path, text_key: str, bad: BadLines) -> list[tuple[str, str]]:
    """(where, text) of every line: of a .jsonl its field `text_key`, else the line itself.

    Blank lines do not count. ValueError: a line that is not UTF-8, not JSON, without a text of two
    words at least.
    """
    texts = []
    for number, line in enumerate(read_lines(file), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            text = _field(where, line, text_key) if file.suffix == ".jsonl" else line
            if len(text.split()) < 2:
                raise ValueError(f"{where}: {text!r} has fewer than two words")
        except ValueError as error:
            bad(error)
            continue
        texts.append((where, text))
    bad.report(file)
    if not texts:
        raise ValueError(f"{file}: holds no texts")
    return texts


def _field(where: str, line: str, key: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg})") from error
    text = row.get(key) if isinstance(row, dict) else None
    if not isinstance(text, str) or not is_unicode(text):
        raise ValueError(f"{where}: no text in field {key!r} (--text-key)")
    return text
