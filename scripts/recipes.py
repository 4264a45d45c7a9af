"""Recipes: the stages of every method as they were published, as command lines that run here.

    python -m scripts.recipes tinybert

config/recipes.json has the flags to the letter; what depends on the size of the models is scaled
from the published sizes to those asked for (default: those of the quick start). A stage starts from
another stage's model (`start`) and learns from another one's (`teacher`).
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path

from scripts.quickstart_plan import CORPUS, FULL, TASK, Sizes

FILE = Path(__file__).resolve().parent.parent / "config" / "recipes.json"
OUT = Path("runs") / "methods"
#: Sizes of the published runs: GLM base as the teacher, half its layers as the student.
PUBLISHED = replace(
    FULL, hidden=768, heads=12, teacher_layers=12, student_layers=6, seq_length=512, batch=16
)
PUBLISHED_OF = {
    "mobilebert": replace(PUBLISHED, hidden=512, heads=4, teacher_layers=24, student_layers=24)
}
#: Flag -> the size that its published value goes with.
SCALED = {
    "--minilmv2_relation_heads": "heads",
    "--minilmv2_teacher_layer": "teacher_layers",
    "--ib_hidden_size": "hidden",
    "--ib_word_emb": "hidden",
    "--teacher_ib_hidden_size": "hidden",
    "--teacher_ib_word_emb": "hidden",
}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One command of a recipe. `start` and `teacher` are keys of other stages."""

    recipe: str
    name: str
    program: str  # "pretrain" or "finetune"
    flags: tuple[str, ...] = ()  # as published
    role: str = "student"  # whose size the trained model has: "student" or "teacher"
    start: str | None = None
    teacher: str | None = None
    note: str = ""

    @property
    def key(self) -> str:
        """`tinybert.finetune-1`"""
        return f"{self.recipe}.{self.name}"

    @property
    def run_name(self) -> str:
        """The folder that the stage writes: `tinybert-finetune-1`."""
        return f"{self.recipe}-{self.name}"

    @property
    def method(self) -> str | None:
        """Value of --student_model."""
        values = [f.partition("=")[2] for f in self.flags if f.startswith("--student_model=")]
        return values[0] if values else None


@cache
def recipes() -> dict[str, tuple[Stage, ...]]:
    """Name -> stages, in order. "teacher" and "plain" (the student alone) are of use to all."""
    found = {}
    for recipe, rows in json.loads(FILE.read_text(encoding="utf-8")).items():
        stages = []
        for row in rows:
            references = {
                end: row[end] if "." in row[end] else f"{recipe}.{row[end]}"
                for end in ("start", "teacher")
                if end in row
            }
            flags = tuple(row.get("flags", "").split())
            stages.append(Stage(**{**row, **references, "flags": flags}, recipe=recipe))
        found[recipe] = tuple(stages)
    return found


@cache
def stages() -> dict[str, Stage]:
    """Key -> stage, of all recipes."""
    return {stage.key: stage for recipe in recipes().values() for stage in recipe}


def recipes_of(method: str) -> dict[str, tuple[Stage, ...]]:
    """The recipes that have a stage with this value of --student_model."""
    return {
        name: recipe
        for name, recipe in recipes().items()
        if any(stage.method == method for stage in recipe)
    }


def chain(*keys: str) -> list[Stage]:
    """These stages and all that they need, each once, in an order in which they can run."""
    found: dict[str, Stage] = {}

    def add(key: str) -> None:
        stage = stages()[key]
        for needed in (stage.start, stage.teacher):
            if needed is not None and needed not in found:
                add(needed)
        found.setdefault(key, stage)

    for key in keys:
        add(key)
    return list(found.values())


def scaled_flags(stage: Stage, sizes: Sizes) -> list[str]:
    """The published flags, at other sizes than the published ones."""
    published = PUBLISHED_OF.get(stage.recipe, PUBLISHED)
    flags = []
    for flag in stage.flags:
        name, _, value = flag.partition("=")
        if name in SCALED:
            ratio = Fraction(getattr(sizes, SCALED[name]), getattr(published, SCALED[name]))
            flag = f"{name}={max(1, int(int(value) * ratio))}"
        flags.append(flag)
    return flags


def model_flags(sizes: Sizes, role: str = "student") -> list[str]:
    """Shape of the trained model."""
    layers = sizes.teacher_layers if role == "teacher" else sizes.student_layers
    return [
        f"--num-layers={layers}",
        f"--hidden-size={sizes.hidden}",
        f"--num-attention-heads={sizes.heads}",
        f"--max-position-embeddings={sizes.seq_length}",
    ]


def teacher_flags(sizes: Sizes) -> list[str]:
    """Shape of the teacher."""
    shape = model_flags(sizes, "teacher")
    return ["--teacher_" + flag[2:].replace("-", "_") for flag in shape]


def common_flags(program: str, sizes: Sizes = FULL, out: Path = OUT) -> list[str]:
    """What all commands of a program have: data, vocabulary, length, rate, where to write."""
    s = sizes
    flags = [
        f"--save={out}", "--overwrite", "--no-save-optim", f"--seq-length={s.seq_length}",
        f"--tokenizer-path={out}/vocab.txt",
    ]  # fmt: skip
    if program == "pretrain":
        return [
            *flags, "--train-data", *CORPUS, "--text-key=sentence", f"--cache-dir={out}/cache",
            "--num-workers=0", "--bert-prob=1", f"--train-iters={s.student_steps}",
            f"--batch-size={s.batch}", f"--lr={s.lr}",
        ]  # fmt: skip
    return [
        *flags, "--task=SST-2", f"--data-dir={TASK}", "--cloze-eval", "--pattern-id=1",
        f"--epochs={s.epochs}", f"--batch-size={s.ft_batch}", f"--lr={s.ft_lr}",
        "--warmup=0.1", "--eval-batch-size=50",
    ]  # fmt: skip


def stage_flags(stage: Stage, sizes: Sizes = FULL, out: Path = OUT) -> list[str]:
    """What the stage's command has besides: shapes, models to load, the method."""
    flags = [f"--experiment-name={stage.run_name}", *model_flags(sizes, stage.role)]
    if stage.role == "teacher" and stage.program == "pretrain":
        flags.append(f"--train-iters={sizes.teacher_steps}")
    if stage.start is not None:
        flags.append(f"--load-pretrained={out}/{stages()[stage.start].run_name}")
    if stage.teacher is not None:
        flags.append(f"--teacher_load_pretrained={out}/{stages()[stage.teacher].run_name}")
        flags += teacher_flags(sizes)
    return flags + scaled_flags(stage, sizes)


def command(stage: Stage, sizes: Sizes = FULL, out: Path = OUT) -> list[str]:
    """The stage's command line, from the program on, to be started at the repository's root."""
    common = common_flags(stage.program, sizes, out)
    return [f"distill/{stage.program}.py", *common, *stage_flags(stage, sizes, out)]


def tokenizer_command(sizes: Sizes = FULL, out: Path = OUT) -> list[str]:
    """The command that makes the vocabulary of all stages."""
    return [
        "scripts/train_tokenizer.py", "--train-data", *CORPUS, "--text-key=sentence",
        f"--vocab-size={sizes.vocabulary}", f"--output={out}/vocab.txt", "--overwrite",
    ]  # fmt: skip


def lines(names: Sequence[str], out: Path = OUT) -> Iterator[str]:
    """A shell script that runs whole recipes."""
    yield shlex.join(["python", *tokenizer_command(FULL, out)])
    for stage in chain(*(stage.key for name in names for stage in recipes()[name])):
        if stage.note:
            yield f"# {stage.note}"
        yield shlex.join(["python", *command(stage, FULL, out)])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the commands of some recipes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipes", nargs="+", choices=list(recipes()), help="which ones")
    parser.add_argument("--out", type=Path, default=OUT, help=f"where they write [{OUT}]")
    options = parser.parse_args(argv)
    print("\n".join(lines(options.recipes, options.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
