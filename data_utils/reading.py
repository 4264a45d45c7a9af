"""Texts of a piece of a file: of .txt, .jsonl and .parquet.

A piece is a range of bytes. It owns the lines that start in it, of a .txt with blocks the blocks
after the first blank line that starts in it (of a .parquet: row groups). So files are read by many
processes, and a document belongs to exactly one piece.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_utils.bad_lines import BadLines
from data_utils.formats import FORMATS, Text

MIB = 1 << 20
LINES_A_BLANK = 200  # a .txt file with more blank lines than 1 in so many consists of blocks
SUFFIXES = (".txt", ".jsonl", ".parquet")


def is_unicode(text: str) -> bool:
    """False for half a surrogate pair, which JSON can spell ("\\ud83d") and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class Piece:
    """Bytes (.parquet: row groups) first ... end - 1 of a file; `size` in bytes."""

    file: Path
    first: int
    end: int
    size: int


@dataclass(frozen=True)
class Reading:
    """How documents lie in files."""

    text_key: str = "text"
    documents: str | None = None  # lines, blocks; None: decided by the file
    format: str | None = None  # of rows: a key of data_utils.formats.FORMATS


def cut_file(file: Path, size: int) -> list[Piece]:
    """The pieces of a file, of about `size` bytes. ValueError for a damaged .parquet."""
    total = file.stat().st_size
    if file.suffix != ".parquet":
        return [
            Piece(file, a, min(a + size, total), min(size, total - a))
            for a in range(0, total, size)
        ]
    with _open_parquet(file) as table:
        groups = table.metadata.num_row_groups
        sizes = [table.metadata.row_group(i).total_byte_size for i in range(groups)]
    pieces, first, held = [], 0, 0
    for i, bytes_ in enumerate(sizes):
        held += bytes_
        if held >= size or i == groups - 1:
            pieces.append(Piece(file, first, i + 1, held))
            first, held = i + 1, 0
    return pieces


def read_piece(piece: Piece, how: Reading, bad: BadLines) -> Iterator[Text]:
    """The documents of a piece, in order.

    `bad` is told of every line that cannot be used, as ValueError naming file, line and field.
    """
    if piece.file.suffix == ".parquet":
        yield from _read_parquet(piece, how, bad)
    elif piece.file.suffix == ".jsonl":
        yield from _read_jsonl(piece, how, bad)
    elif (how.documents or text_layout(piece.file)) == "blocks":
        yield from _read_blocks(piece, bad)
    else:
        yield from (("", text) for _, text in _read_lines(piece, bad) if text)


def text_layout(file: Path) -> str:
    """`lines` or `blocks`: what a .txt file looks like at its start."""
    with file.open("rb") as head:
        lines = head.read(MIB).strip().splitlines()
    blank = sum(not line.strip() for line in lines)
    return "blocks" if blank * LINES_A_BLANK > len(lines) else "lines"


def where(file: Path, offset: int) -> str:
    """`file:line` of a place in bytes."""
    number, left = 1, offset
    with file.open("rb") as content:
        while left > 0 and (block := content.read(min(MIB, left))):
            number += block.count(b"\n")
            left -= len(block)
    return f"{file}:{number}"


def _raw_lines(piece: Piece) -> Iterator[tuple[int, bytes]]:
    """(offset, line) from the first line that starts in the piece to the end of the file."""
    with piece.file.open("rb") as lines:
        offset = piece.first
        if offset:
            lines.seek(offset - 1)
            offset += len(lines.readline()) - 1
        for line in lines:
            yield offset, line
            offset += len(line)


def _decode(piece: Piece, offset: int, line: bytes, bad: BadLines) -> str | None:
    try:
        return line.decode("utf-8" if offset else "utf-8-sig").strip()
    except UnicodeDecodeError as e:
        bad(ValueError(f"{where(piece.file, offset)}: not UTF-8: {e.reason}"))
        return None


def _read_lines(piece: Piece, bad: BadLines) -> Iterator[tuple[int, str]]:
    for offset, line in _raw_lines(piece):
        if offset >= piece.end:
            return
        text = _decode(piece, offset, line, bad)
        if text is not None:
            yield offset, text


def _read_blocks(piece: Piece, bad: BadLines) -> Iterator[Text]:
    block: list[str] = []
    inside = piece.first == 0
    for offset, line in _raw_lines(piece):
        blank = not line.strip()
        if blank and offset >= piece.end:
            break
        if not inside:
            inside = blank
        elif blank and block:
            yield "", "\n".join(block)
            block = []
        elif not blank and (text := _decode(piece, offset, line, bad)):
            block.append(text)
    if block:
        yield "", "\n".join(block)


def _read_jsonl(piece: Piece, how: Reading, bad: BadLines) -> Iterator[Text]:
    for offset, line in _read_lines(piece, bad):
        if not line:
            continue
        try:
            row = json.loads(line)
            found = row_text(row, how)
        except json.JSONDecodeError as e:
            error = f"not JSON: {e.msg} (column {e.colno})"
            bad(ValueError(f"{where(piece.file, offset)}: {error}"))
        except ValueError as e:
            bad(ValueError(f"{where(piece.file, offset)}: {e}"))
        else:
            if found is not None:
                yield found


def row_text(row: Any, how: Reading) -> Text | None:
    """(prompt, text) of a row; None if its format leaves it out. ValueError: it cannot be used."""
    if not isinstance(row, dict):
        raise ValueError(f"no text under {how.text_key!r} (--text-key); has {type(row).__name__}")
    found = FORMATS[how.format](row) if how.format else ("", field(row, how.text_key))
    if found is not None and not is_unicode("".join(found)):
        raise ValueError(f"{how.text_key!r} holds half a surrogate pair (\\ud8..)")
    return found


def field(row: dict[str, Any], text_key: str) -> str:
    """The text of a row. ValueError: it has none."""
    if text_key not in row:
        raise ValueError(f"no text under {text_key!r} (--text-key); has {', '.join(row)}")
    text = row[text_key]
    if not isinstance(text, str):
        raise ValueError(f"{text_key!r} (--text-key) is {type(text).__name__}, not text")
    if not text.strip():
        raise ValueError(f"{text_key!r} (--text-key) is empty")
    return text


def _open_parquet(file: Path) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(file)
    except pa.ArrowInvalid as e:
        raise ValueError(f"{file}: not a parquet file: {e}") from None


def _read_parquet(piece: Piece, how: Reading, bad: BadLines) -> Iterator[Text]:
    import pyarrow as pa

    file = piece.file
    with _open_parquet(file) as table:
        names = table.schema_arrow.names
        if how.format is None:
            if how.text_key not in names:
                has = ", ".join(names)
                raise ValueError(f"{file}: no column {how.text_key!r} (--text-key); has {has}")
            column = table.schema_arrow.field(how.text_key).type
            if not (pa.types.is_string(column) or pa.types.is_large_string(column)):
                raise ValueError(f"{file}: column {how.text_key!r} is {column}, not text")
        wanted = names if how.format else [how.text_key]
        groups = [table.metadata.row_group(i).num_rows for i in range(piece.end)]
        number = sum(groups[: piece.first])
        own = list(range(piece.first, piece.end))
        for rows in table.iter_batches(columns=wanted, batch_size=1024, row_groups=own):
            for row in rows.to_pylist():
                number += 1
                try:
                    found = row_text(row, how)
                except ValueError as e:
                    bad(ValueError(f"{file}: row {number}: {e}"))
                else:
                    if found is not None:
                        yield found
