"""Every task of a folder, some steps of fine-tuning and an evaluation each: alone and distilled.

    python -m scripts.bench_tasks --data=TASKS --teacher=runs/quickstart/teacher \
      --student=runs/quickstart/distilled --save=runs/tasks --steps=100 --most=500

TASKS: a folder (or .tar archive) of folders that are called like their tasks: RTE, SST-2, XSum.
Pairs of texts (.source, .target) of another name are the task `customization`; WSC273 is WSC. A
folder without a training split is evaluated with the models of its namesake. For each task the
teacher is fine-tuned, then the student alone, then the student with this teacher. What stands after
`--` goes to every run. Writes SAVE/tasks.json and prints a table: do all run? not: how good are
they?
"""

import argparse
import json
import shutil
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import ConfigError
from config.tasks import LM_TASKS
from distill.engine.launch import USER_ERROR
from tasks import task_name
from tasks.registry import TASKS
from tasks.seq2seq.task import Seq2SeqTask

NEVER = 1_000_000  # epochs; a run is evaluated and saved at its end
KD = ("--student_model=kd", "--distill_ft_soft", "--distill_ft_hard")
RUNS = ("teacher", "student", "distilled")
PAIRS = "customization"
LINES = (".jsonl", ".source", ".target", ".tsv")  # formats that --most may cut


@dataclass(frozen=True)
class Folder:
    """The files of one task."""

    path: Path
    task: str
    trains: bool

    @property
    def writes(self) -> bool:
        """Are its answers texts?"""
        return issubclass(TASKS[self.task], Seq2SeqTask)


def find_folders(data: Path) -> list[Folder]:
    """The task folders below `data`, those that train first. ConfigError without any."""
    found = []
    for path in sorted(p for p in data.rglob("*") if p.is_dir()):
        splits = {p.name.split(".")[0] for p in path.iterdir() if p.is_file()}
        task = _task_of(path)
        if task is not None and splits & {"train", "test"}:
            found.append(Folder(path, task, "train" in splits))
    if not found:
        raise ConfigError(f"--data={data}: no folder in it is called like a task, as RTE or XSum")
    return sorted(found, key=lambda folder: not folder.trains)


def _task_of(path: Path) -> str | None:
    for name in (path.name, path.name.rstrip("0123456789")):
        try:
            found = task_name(name)
        except ConfigError:
            continue
        return None if found in LM_TASKS else found
    return PAIRS if (path / "train.source").is_file() else None


def cut(data: Path, out: Path, most: int) -> Path:
    """A copy of the folders whose validation and test files have at most so many lines."""
    for path in sorted(p for p in data.rglob("*") if p.is_file()):
        place = out / path.relative_to(data)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in LINES and not path.name.startswith("train"):
            with path.open("rb") as lines:
                place.write_bytes(b"".join(line for _, line in zip(range(most), lines)))  # noqa: B905
        else:
            shutil.copyfile(path, place)
    return out


class Runner:
    """The runs of every folder, one after the other in this process."""

    def __init__(self, options: argparse.Namespace, more: Sequence[str]):
        self.options, self.more = options, more

    def rows(self, folders: Sequence[Folder]) -> Iterator[dict[str, Any]]:
        """One a run."""
        for folder in folders:
            for run in RUNS:
                yield self._row(folder, run)

    def _row(self, folder: Folder, run: str) -> dict[str, Any]:
        from distill import finetune

        name = f"{folder.path.name}-{run}"
        row: dict[str, Any] = {"folder": folder.path.name, "task": folder.task, "run": run}
        try:
            finetune.main(self._flags(folder, run, name))
        except SystemExit as ended:  # its message is told already
            return row | {"exit_status": ended.code}
        found = json.loads((Path(self.options.save) / name / "summary.json").read_text())
        row |= {key: found[key] for key in ("iterations", "train_seconds", "best_epoch")}
        return row | {split: found[split] for split in ("val", "test") if split in found}

    def _flags(self, folder: Folder, run: str, name: str) -> list[str]:
        save = self.options.save
        start = self.options.teacher if run == "teacher" else self.options.student
        flags = [
            f"--task={folder.task}", f"--data-dir={folder.path}", f"--save={save}",
            f"--experiment-name={name}", "--overwrite", "--no-save-optim", "--finetune",
            "--custom_no_summary_writer", f"--eval-epoch={NEVER}", f"--save-epoch={NEVER}",
            *self.more,
        ]  # fmt: skip
        if folder.trains:
            flags += [f"--train-iters={self.options.steps}", f"--load-pretrained={start}"]
        else:
            namesake = Path(save) / f"{folder.path.name.rstrip('0123456789')}-{run}"
            start = namesake if namesake.is_dir() else start
            flags += ["--epochs=0", "--no-validation", f"--load-pretrained={start}"]
        length = self.options.seq_length
        if folder.writes:
            flags += [f"--src-seq-length={length}", f"--tgt-seq-length={length // 4}"]
        else:
            flags += [f"--seq-length={length}", "--cloze-eval"]
        if run == "distilled" and folder.trains:
            flags += [*KD, f"--teacher_load_pretrained={save}/{folder.path.name}-teacher"]
        return flags


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line a task, the test scores of its runs in percent."""
    lines = [
        f"| folder | task | score | {' | '.join(RUNS)} |",
        "| --- | --- | --- |" + " ---: |" * 3,
    ]
    for name in dict.fromkeys(row["folder"] for row in rows):
        of = {row["run"]: row for row in rows if row["folder"] == name}
        metrics = next((row["test"] for row in of.values() if "test" in row), {"": 0.0})
        for metric in metrics:
            cells = [_cell(of.get(run, {}), metric) for run in RUNS]
            lines.append(f"| {name} | {of['teacher']['task']} | {metric} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any], metric: str) -> str:
    if metric in row.get("test", {}):
        return f"{row['test'][metric]:.1f}"
    return f"exit status {row['exit_status']}" if "exit_status" in row else "-"


def read(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Own options, and what stands after `--`."""
    words, more = list(argv), []
    if "--" in words:
        place = words.index("--")
        words, more = words[:place], words[place + 1 :]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder or .tar archive of tasks")
    parser.add_argument("--teacher", required=True, help="checkpoint that teachers start from")
    parser.add_argument("--student", required=True, help="checkpoint that students start from")
    parser.add_argument("--save", default="runs/tasks", help="folder of all runs and of tasks.json")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps of a run")
    parser.add_argument("--most", type=int, help="lines of a validation or test file; default: all")
    parser.add_argument("--only", nargs="+", help="names of folders; default: all")
    parser.add_argument("--seq-length", type=int, default=64, help="tokens; a target has a quarter")
    return parser.parse_args(words), more


def gather(options: argparse.Namespace) -> list[Folder]:
    """The folders of --data, unpacked and cut where that is asked for."""
    data, save = options.data, Path(options.save)
    if not data.exists():
        raise ConfigError(f"--data={data}: no such folder or archive")
    if data.is_file():
        with tarfile.open(data) as archive:
            archive.extractall(save / "unpacked", filter="data")
        data = save / "unpacked"
    if options.most is not None:
        shutil.rmtree(save / "cut", ignore_errors=True)
        data = cut(data, save / "cut", options.most)
    wanted = options.only
    return [x for x in find_folders(data) if wanted is None or x.path.name in wanted]


def main(argv: Sequence[str] | None = None) -> int:
    """Run all; 1 if a run ended with an error."""
    options, more = read(sys.argv[1:] if argv is None else argv)
    try:
        folders = gather(options)
    except (ConfigError, tarfile.ReadError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    from distill.engine import files

    rows = []
    for row in Runner(options, more).rows(folders):
        rows.append(row)  # what is done is kept if a later run is stopped
        files.write_json(Path(options.save) / "tasks.json", {"steps": options.steps, "runs": rows})
    print(table(rows))
    return int(any("exit_status" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
