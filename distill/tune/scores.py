"""Score records of the seed's kind: --custom_tmp_result, tune files and published logs.

A record has, for each metric, all metrics at the evaluation where that one was best.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from config import ConfigError

#: Which metrics speak for an evaluation, the most important first.
PRIORITY = ("f1a", "f1", "f1-macro", "em", "acc", "accuracy", "EM", "F1", "ppl")
ROUGE = "rouge-"
LOWER_IS_BETTER = frozenset({"loss", "ppl", "adjusted-ppl"})
#: Scores from 0 to 1; the others are in percent already.
FRACTIONS = frozenset({"f1a", "f1", "f1-macro", "em"})


def percent(name: str, value: float) -> float:
    """A score in percent; losses and perplexities as they are."""
    return 100.0 * value if name in FRACTIONS else value


def leading(metrics: Iterable[str]) -> list[str]:
    """The metrics by which evaluations are compared: two, or three kinds of ROUGE."""
    names = list(metrics)
    known = [name for name in PRIORITY if name in names]
    rouge = [name for name in names if name.startswith(ROUGE)]
    return known[:2] if known else rouge[:3] or names[:1]


def best_scores(record: Mapping[str, Any]) -> dict[str, float]:
    """All metrics of the record's best evaluation: the one whose leading metrics sum to most.

    A perplexity counts less the higher it is. (The seed takes the highest.)
    """
    entries = [entry["score_dict"] for entry in record["max_score_dict"].values()]
    if not entries:
        return {}

    def total(scores: Mapping[str, float]) -> float:
        return sum(
            -scores[name] if name in LOWER_IS_BETTER else percent(name, scores[name])
            for name in leading(scores)
        )

    return dict(max(entries, key=total))


def read_records(path: Path, flag: str) -> list[dict[str, Any]]:
    """The records of a tune file or log. ConfigError: not a list of such records."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{flag}={path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"{flag}={path}: is no json ({error})") from error
    rows = content if isinstance(content, list) else [content]
    problems = [
        f"{flag}={path}: entry {number} has no {name!r}"
        for number, row in enumerate(rows, start=1)
        for name in ("args", "max_score_dict")
        if not isinstance(row, dict) or not isinstance(row.get(name), dict)
    ]
    if problems:
        raise ConfigError(problems)
    return rows


def task_of(record: Mapping[str, Any]) -> str:
    """The task's name; WSC with negatives apart."""
    args = record["args"]
    return f"{args['task']}-negative" if args.get("wsc_negative") else str(args["task"])


def staged(records: Iterable[Mapping[str, Any]]) -> list[tuple[str, int, Mapping[str, Any]]]:
    """(task, stage, record): a task that comes again is a further stage."""
    seen: dict[str, int] = {}
    found = []
    for record in records:
        name = task_of(record)
        found.append((name, seen.get(name, 0), record))
        seen[name] = seen.get(name, 0) + 1
    return found


def mean_score(scores: Mapping[str, float]) -> float:
    """One number of an evaluation: the mean of its leading metrics, in percent."""
    names = leading(scores)
    return sum(percent(name, scores[name]) for name in names) / len(names)


def table(records: Iterable[Mapping[str, Any]]) -> str:
    """Task, stage and best scores of each record, in percent; then the means of each stage."""
    rows = [["task", "stage", "epoch", "score", "scores"]]
    means: dict[int, list[float]] = {}
    for task, stage, record in staged(records):
        scores = best_scores(record)
        text = ", ".join(f"{name} {percent(name, value):.2f}" for name, value in scores.items())
        if scores:
            means.setdefault(stage, []).append(mean_score(scores))
        score = f"{mean_score(scores):.2f}" if scores else "-"
        rows.append([task, str(stage), str(record.get("epoch", "")), score, text or "no score"])
    for stage, values in means.items():
        tasks = f"mean of {len(values)} tasks"
        rows.append([tasks, str(stage), "", f"{sum(values) / len(values):.2f}", ""])
    return columns(rows)


def columns(rows: list[list[str]]) -> str:
    """Rows of text, aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
