"""The seed's published logs (ft_logs) as results: a file is a method, its best stage counts."""

from collections.abc import Sequence
from pathlib import Path

from distill.tune.results import Cell, Results
from distill.tune.scores import best_scores, leading, mean_score, read_records, staged


def import_logs(paths: Sequence[Path]) -> Results:
    """Results of log files, or of folders of them. ConfigError: other files.

    A score is the mean of a task's leading metrics, in percent, on the development set, chosen
    there as well: the seed has no other.
    """
    files = [
        file
        for path in paths
        for file in (sorted(path.rglob("*.json")) if path.is_dir() else [path])
    ]
    cells: dict[tuple[str, str], Cell] = {}
    for file in files:
        for task, _, record in staged(read_records(file, "--import-logs")):
            scores = best_scores(record)
            old = cells.get((file.stem, task))
            if scores and (old is None or mean_score(scores) > old.mean):
                cells[file.stem, task] = Cell(
                    method=file.stem,
                    task=task,
                    metric="+".join(leading(scores)),
                    settings={},
                    trials=1,
                    seeds=(_seed(str(record.get("*cmd", ""))),),
                    val=(mean_score(scores),),
                    test=(),
                )
    return Results(
        cells=cells,
        methods=tuple(dict.fromkeys(method for method, _ in cells)),
        tasks=tuple(dict.fromkeys(task for _, task in cells)),
    )


def _seed(command: str) -> int:
    """Of --seed; the seed's default is 1234."""
    found = [word.partition("=")[2] for word in command.split() if word.startswith("--seed=")]
    return int(found[-1]) if found else 1234
