"""A report's parts once, as Markdown and as an HTML file that needs no other file."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;"
    "color:#222}table{border-collapse:collapse;margin:1em 0}th,td{border:1px solid #ccc;"
    "padding:.25em .6em;text-align:right}th:first-child,td:first-child{text-align:left}"
    "th{background:#f4f4f4}img{max-width:100%}code,pre{background:#f6f6f6}"
    "pre{padding:.6em;overflow-x:auto}"
)


@dataclass(frozen=True)
class Heading:
    """A title of some level."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Sentences."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Grid:
    """A table; its first column is text, the others numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Image:
    """A PNG file beside the report."""

    title: str
    path: Path


@dataclass(frozen=True)
class Code:
    """Text as it is."""

    text: str


Part = Heading | Paragraph | Items | Grid | Image | Code


def markdown(parts: Sequence[Part]) -> str:
    """The report as Markdown; images are links to files beside it."""
    return "\n\n".join(_markdown(part) for part in parts) + "\n"


def _markdown(part: Part) -> str:
    match part:
        case Heading():
            return f"{'#' * part.level} {part.text}"
        case Paragraph():
            return part.text
        case Items():
            return "\n".join(f"- {text}" for text in part.texts)
        case Grid():
            marks = ["---", *["---:"] * (len(part.head) - 1)]
            rows = [part.head, marks, *part.rows]
            return "\n".join(f"| {' | '.join(_cell(c) for c in row)} |" for row in rows)
        case Image():
            return f"![{part.title}]({part.path.name})"
        case Code():
            return f"```text\n{part.text}\n```"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def page(parts: Sequence[Part], title: str) -> str:
    """The report as one HTML file, its images inside."""
    body = "\n".join(_html(part) for part in parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n"
        "</body></html>\n"
    )


def _html(part: Part) -> str:
    match part:
        case Heading():
            return f"<h{part.level}>{html.escape(part.text)}</h{part.level}>"
        case Paragraph():
            return f"<p>{html.escape(part.text)}</p>"
        case Items():
            return f"<ul>{''.join(f'<li>{html.escape(text)}</li>' for text in part.texts)}</ul>"
        case Grid():
            head = "".join(f"<th>{html.escape(cell)}</th>" for cell in part.head)
            rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in part.rows)
            body = "\n".join(f"<tr>{row}</tr>" for row in rows)
            return f"<table><tr>{head}</tr>\n{body}</table>"
        case Image():
            data = base64.b64encode(part.path.read_bytes()).decode()
            return f'<img alt="{html.escape(part.title)}" src="data:image/png;base64,{data}">'
        case Code():
            return f"<pre>{html.escape(part.text)}</pre>"
