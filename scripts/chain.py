"""Models that teach one after the other: TAKD, or DGKD with --dense. Goes on where it stopped.

    python -m scripts.chain --models 24x1024 18x896 12x768 --teacher=runs/large-copa \
      --save=runs/takd --truncate -- --task=COPA --data-dir=data/COPA --cloze-eval --epochs=50 \
      --student_model=kd --distill_ft_soft --distill_ft_soft_kl --distill_temperature=10

The first of --models is the teacher, which is there already. Every other one is a stage: it learns
from the model before it, with --dense from all models before it. What stands after `--` goes to
the program of every stage. Each writes to SAVE/NUMBER-SIZE, its log to SAVE/logs. A stage that has
ended with the same command, after its teachers, is not repeated.
"""

import argparse
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from config import ConfigError, parse_args
from distill.tune.process import start, stop, tail
from scripts.quickstart import StepError

HEAD_WIDTH = 64  # of every published GLM
SHAPE = ("num_layers", "hidden_size", "num_attention_heads")
#: Flags that the chain gives itself -> what to give instead.
OWN = {
    "--save": "--save before `--`",
    "--experiment-name": "nothing: stages have names",
    "--load": "nothing: a stage that has not ended begins anew",
    "--load-pretrained": "--start before `--`",
    "--student_truncate_tn": "--truncate before `--`",
    "--teacher_load_pretrained": "--teacher before `--`",
    "--mt_load_pretrained": "--teacher before `--`",
    **{"--" + name.replace("_", "-"): "--models before `--`" for name in SHAPE},
    **{f"--{who}_{name}": "--models before `--`" for who in ("teacher", "mt") for name in SHAPE},
}
SUMMARY = "summary.json"


@dataclass(frozen=True)
class Size:
    """Shape of a model: `12x768`, or `12x768x16` with a number of heads."""

    layers: int
    hidden: int
    heads: int

    @classmethod
    def parse(cls, text: str) -> "Size":
        """ArgumentTypeError for what is no size."""
        words = text.lower().split("x")
        if len(words) not in (2, 3) or not all(word.isdecimal() and int(word) for word in words):
            raise argparse.ArgumentTypeError(
                f"{text}: must be LAYERSxHIDDEN or LAYERSxHIDDENxHEADS, as 12x768 or 12x768x12"
            )
        layers, hidden, *heads = map(int, words)
        if not heads and hidden % HEAD_WIDTH:
            raise argparse.ArgumentTypeError(
                f"{text}: {hidden} is no multiple of {HEAD_WIDTH}, the usual width of a head; give "
                f"the number of heads, as {layers}x{hidden}x{max(1, hidden // HEAD_WIDTH)}"
            )
        return cls(layers, hidden, heads[0] if heads else hidden // HEAD_WIDTH)

    @property
    def values(self) -> tuple[int, int, int]:
        """In the order of SHAPE."""
        return self.layers, self.hidden, self.heads


@dataclass(frozen=True)
class Model:
    """A model of the chain: where its checkpoint is, and how large it is."""

    checkpoint: str
    size: Size


@dataclass(frozen=True)
class Stage:
    """One command: a student and its teachers, the first of the chain first."""

    name: str
    student: Model
    teachers: tuple[Model, ...]
    command: tuple[str, ...]  # from the program on
    log: Path

    @property
    def text(self) -> str:
        """The command as a run's summary.json has it."""
        return shlex.join(["python", *self.command])

    @property
    def folder(self) -> Path:
        """Where it writes."""
        return Path(self.student.checkpoint)


def plan(options: argparse.Namespace, flags: Sequence[str]) -> list[Stage]:
    """The stages. `flags`: what each program gets besides."""
    models = [Model(options.teacher, options.models[0])]
    starts = options.start or ["-"] * (len(options.models) - 1)
    stages = []
    for number, (size, initial) in enumerate(zip(options.models[1:], starts, strict=True), start=1):
        name = f"{number}-{size.layers}x{size.hidden}"
        teachers = tuple(models if options.dense else models[-1:])
        models.append(Model(str(Path(options.save) / name), size))
        command = [
            f"distill/{options.program}.py", f"--save={options.save}", f"--experiment-name={name}",
            *shape_flags(size), *teacher_flags(teachers),
        ]  # fmt: skip
        if options.truncate:
            command.append(f"--student_truncate_tn={len(teachers) - 1}")
        if initial != "-":
            command.append(f"--load-pretrained={initial}")
        log = Path(options.save) / "logs" / f"{name}.log"
        stages.append(Stage(name, models[-1], teachers, (*command, *flags), log))
    return stages


def shape_flags(size: Size) -> list[str]:
    """Of the student."""
    names = ("--" + name.replace("_", "-") for name in SHAPE)
    return [f"{name}={value}" for name, value in zip(names, size.values, strict=True)]


def teacher_flags(teachers: Sequence[Model]) -> list[str]:
    """Of one teacher by itself, of several as lists."""
    prefix = "--teacher" if len(teachers) == 1 else "--mt"
    columns = {"load_pretrained": [teacher.checkpoint for teacher in teachers]}
    for place, name in enumerate(SHAPE):
        columns[name] = [str(teacher.size.values[place]) for teacher in teachers]
    return [f"{prefix}_{name}={':'.join(values)}" for name, values in columns.items()]


def problems(stages: Sequence[Stage], program: str) -> Iterator[str]:
    """What the programs would refuse before they start."""
    from distill.combiner import combiner_args
    from distill.registry import method_args

    for stage in stages:
        words = stage.command[1:]
        try:
            kinds = {"methods": method_args(words), "combiners": combiner_args()}
            parse_args(words, program=program, **kinds)
        except ConfigError as error:
            yield from error.problems


def is_done(stage: Stage) -> bool:
    """Whether it has ended with this command, after its teachers, and kept its weights."""
    told = summary(stage)
    if comparable(told.get("command", "")) != comparable(stage.text):
        return False
    teachers = (Path(teacher.checkpoint) / SUMMARY for teacher in stage.teachers)
    ended = [file.stat().st_mtime_ns for file in teachers if file.is_file()]
    own = (stage.folder / SUMMARY).stat().st_mtime_ns
    return all(each <= own for each in ended) and has_weights(stage)


def summary(stage: Stage) -> dict[str, Any]:
    """What the stage's run told at its end; {} if it has not ended."""
    try:
        return json.loads((stage.folder / SUMMARY).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def has_weights(stage: Stage) -> bool:
    """Whether the run that ended left a model that can teach."""
    return Path(summary(stage).get("weights") or os.devnull).is_dir()


def comparable(command: str) -> list[str]:
    """The command without what a launcher adds, or the chain on beginning anew."""
    try:
        words = shlex.split(command)
    except ValueError:  # no command at all
        return []
    return [w for w in words if w != "--overwrite" and not w.startswith("--local_rank")]


def is_ours(stage: Stage) -> bool:
    """Whether an unfinished run in the stage's folder is one of this command."""
    if not stage.log.is_file():
        return False
    with stage.log.open(encoding="utf-8", errors="replace") as log:
        first = log.readline().rstrip("\n")
    return comparable(first) == comparable(stage.text)


def occupied(stages: Sequence[Stage]) -> Iterator[str]:
    """A line for each folder of a stage to be run that holds a run of another command."""
    for stage in stages:
        held = stage.folder.exists() and any(stage.folder.iterdir())
        if held and not is_ours(stage) and "--overwrite" not in stage.command:
            yield (
                f"{stage.folder}: holds a run of another command; choose another --save, or give "
                "--overwrite after `--`"
            )


def run_stage(stage: Stage, launcher: Sequence[str]) -> None:
    """The stage's program, its output in the log. StepError if it fails or leaves no weights."""
    words = [*launcher, *stage.command]
    if "--overwrite" not in stage.command and stage.folder.exists():
        words.append("--overwrite")  # it is ours: see `occupied`
    process = start(words, stage.log, title=stage.text)
    try:
        status = process.wait()
    finally:
        stop(process)  # that is only still running if the wait was interrupted
    if status:
        raise StepError(f"exit status {status}; see {stage.log}\n{tail(stage.log)}")
    if not has_weights(stage):
        raise StepError(
            f"ended without weights in {stage.folder}; leave out flags that keep it from saving"
        )


def number_done(stages: Sequence[Stage]) -> int:
    """How many stages need not run. What follows one that runs, runs."""
    for number, stage in enumerate(stages):
        if not is_done(stage):
            return number
    return len(stages)


def run(stages: Sequence[Stage], launcher: Sequence[str]) -> None:
    """All stages that are not done. StepError, with the stage's name, at the first that fails."""
    shown = launcher or ["python"]
    launcher = launcher or [sys.executable]
    done = number_done(stages)
    for number, stage in enumerate(stages, start=1):
        mark = f"[{number}/{len(stages)}] {stage.name}"
        if number <= done:
            print(f"{mark}: done before", flush=True)
            continue
        print(f"{mark}:\n{shlex.join([*shown, *stage.command])}", flush=True)
        begin = time.monotonic()
        try:
            run_stage(stage, launcher)
        except StepError as error:
            raise StepError(f"{stage.name}: {error}") from error
        print(f"{mark}: {time.monotonic() - begin:.0f} s", flush=True)


def read(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options of the chain, and the flags after `--`. SystemExit for what cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.chain",
        description=__doc__.partition("\n")[0],
        epilog="After `--`: flags of distill/finetune.py or distill/pretrain.py, for every stage.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--models", nargs="+", type=Size.parse, required=True, metavar="SIZE",
        help="LAYERSxHIDDEN[xHEADS] of the teacher and of each student, from large to small; "
        f"heads are {HEAD_WIDTH} wide unless given",
    )  # fmt: skip
    parser.add_argument("--teacher", required=True, help="checkpoint of the first model")
    parser.add_argument("--save", required=True, help="folder of all stages")
    parser.add_argument("--program", choices=("finetune", "pretrain"), default="finetune")
    parser.add_argument("--dense", action="store_true", help="DGKD: all earlier models teach")
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument(
        "--truncate", action="store_true",
        help="each student starts from the first layers of the model before it",
    )  # fmt: skip
    begin.add_argument(
        "--start", nargs="+", metavar="CHECKPOINT",
        help="what each student starts from, - for random weights",
    )  # fmt: skip
    parser.add_argument("--launcher", help='instead of python, as "torchrun --nproc_per_node 2"')
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    words = list(argv)
    cut = words.index("--") if "--" in words else len(words)
    options, flags = parser.parse_args(words[:cut]), words[cut + 1 :]
    if len(options.models) < 2:
        parser.error("--models: give the teacher's size and that of a student at least")
    if options.start and len(options.start) != len(options.models) - 1:
        parser.error(
            f"--start: has {len(options.start)} checkpoints for {len(options.models) - 1} students"
        )
    for flag in dict.fromkeys(word.partition("=")[0] for word in flags):
        if flag in OWN:
            parser.error(f"{flag}: is given by the chain; give {OWN[flag]}")
    return options, flags


def main(argv: Sequence[str] | None = None) -> int:
    """Run the chain, or what is left of it."""
    options, flags = read(sys.argv[1:] if argv is None else argv)
    stages = plan(options, flags)
    if options.dry_run:
        print("\n".join(stage.text for stage in stages))
        return 0
    wrong = list(dict.fromkeys(problems(stages, options.program)))
    wrong += occupied(stages[number_done(stages) :])
    if not Path(options.teacher).exists():
        wrong.append(f"--teacher={options.teacher}: there is no such checkpoint")
    if wrong:
        print("\n".join(f"error: {line}" for line in wrong), file=sys.stderr)
        return 2
    before = signal.signal(signal.SIGTERM, _end)
    try:
        run(stages, shlex.split(options.launcher or ""))
    except StepError as failure:
        print(failure, file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
