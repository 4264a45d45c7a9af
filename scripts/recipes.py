"""Recipes: the stages of every method as they were published, as command lines that run here.

    python -m scripts.recipes tinybert

config/recipes.json has the flags to the letter; what depends on the size of the models is scaled
from the published sizes to those asked for (default: those of the quick start). A stage starts from
another stage's model (`start`) and learns from those of others (`teacher`, or `teachers`).
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
from typing import Any

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
#: Role -> layers and heads of its model, relative to the teacher's. Heads are as wide as there.
RATIOS = {
    "teacher": (Fraction(1), Fraction(1)),
    "large": (Fraction(2), Fraction(4, 3)),  # GLM large: 24 x 1024
    "assistant": (Fraction(3, 2), Fraction(7, 6)),  # 18 x 896
}
#: Recipes in which models teach one after the other -> whether all earlier ones do.
CHAINS = {"takd": False, "dgkd": True}
#: Flag -> the size that its published value goes with.
SCALED = {
    "--minilmv2_relation_heads": "heads",
    "--minilmv2_teacher_layer": "teacher_layers",
    "--rl_kd_semantic_model_dim": "hidden",
    "--ib_hidden_size": "hidden",
    "--ib_word_emb": "hidden",
    "--teacher_ib_hidden_size": "hidden",
    "--teacher_ib_word_emb": "hidden",
}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One command of a recipe. `start` and `teachers` are keys of other stages."""

    recipe: str
    name: str
    program: str  # "pretrain" or "finetune"
    flags: tuple[str, ...] = ()  # as published
    role: str = "student"  # whose size the trained model has: "student", or one of RATIOS
    start: str | None = None
    teachers: tuple[str, ...] = ()
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
        return self._value("--student_model")

    @property
    def combiner(self) -> str | None:
        """Value of --multi_teacher_model."""
        return self._value("--multi_teacher_model")

    @property
    def builds_map(self) -> bool:
        """Whether it chooses the ids that its model keeps, by a ranking."""
        return "--student_build_map_vocab" in self.flags

    def _value(self, name: str) -> str | None:
        values = [flag.partition("=")[2] for flag in self.flags if flag.startswith(name + "=")]
        return values[0] if values else None


@cache
def recipes() -> dict[str, tuple[Stage, ...]]:
    """Name -> stages, in order. Of use to all: "teacher", "large", "plain" (the student alone)."""
    found = {}
    for recipe, rows in json.loads(FILE.read_text(encoding="utf-8")).items():
        found[recipe] = tuple(_stage(recipe, dict(row)) for row in rows)
    return found


def _stage(recipe: str, row: dict[str, Any]) -> Stage:
    def key(name: str) -> str:
        return name if "." in name else f"{recipe}.{name}"

    one = row.pop("teacher", None)
    teachers = row.pop("teachers", [] if one is None else [one])
    if "start" in row:
        row["start"] = key(row["start"])
    flags = tuple(row.pop("flags", "").split())
    return Stage(**row, recipe=recipe, flags=flags, teachers=tuple(map(key, teachers)))


@cache
def stages() -> dict[str, Stage]:
    """Key -> stage, of all recipes."""
    return {stage.key: stage for recipe in recipes().values() for stage in recipe}


def recipes_of(method: str) -> dict[str, tuple[Stage, ...]]:
    """The recipes of one teacher that have a stage with this value of --student_model."""
    return {
        name: recipe
        for name, recipe in recipes().items()
        if not has_several_teachers(name) and any(stage.method == method for stage in recipe)
    }


def recipes_with(combiner: str) -> dict[str, tuple[Stage, ...]]:
    """The recipes but chains that have a stage with this value of --multi_teacher_model."""
    return {
        name: recipe
        for name, recipe in recipes().items()
        if name not in CHAINS and any(stage.combiner == combiner for stage in recipe)
    }


def has_several_teachers(recipe: str) -> bool:
    """Whether it combines teachers, at once or one after the other."""
    return recipe in CHAINS or any(stage.combiner for stage in recipes()[recipe])


def chain(*keys: str) -> list[Stage]:
    """These stages and all that they need, each once, in an order in which they can run."""
    found: dict[str, Stage] = {}

    def add(key: str) -> None:
        stage = stages()[key]
        for needed in filter(None, (stage.start, *stage.teachers)):
            if needed not in found:
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


def shape(sizes: Sizes, role: str = "student") -> tuple[int, int, int]:
    """Layers, width and heads of a model."""
    if role == "student":
        return sizes.student_layers, sizes.hidden, sizes.heads
    layers, heads = RATIOS[role]
    number = round(sizes.heads * heads)
    return int(sizes.teacher_layers * layers), sizes.hidden // sizes.heads * number, number


def model_flags(sizes: Sizes, role: str = "student") -> list[str]:
    """Shape of the trained model."""
    layers, hidden, heads = shape(sizes, role)
    return [
        f"--num-layers={layers}",
        f"--hidden-size={hidden}",
        f"--num-attention-heads={heads}",
        f"--max-position-embeddings={sizes.seq_length}",
    ]


def teacher_flags(sizes: Sizes, roles: Sequence[str] = ("teacher",)) -> list[str]:
    """Shapes of the teachers: of one by itself, of several as lists."""
    prefix = "--teacher_" if len(roles) == 1 else "--mt_"
    columns = zip(*(model_flags(sizes, role) for role in roles), strict=True)
    return [
        prefix
        + column[0].partition("=")[0][2:].replace("-", "_")
        + "="
        + ":".join(flag.partition("=")[2] for flag in column)
        for column in columns
    ]


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
    if stage.role != "student" and stage.program == "pretrain":
        flags.append(f"--train-iters={sizes.teacher_steps}")
    if stage.start is not None:
        flags.append(f"--load-pretrained={out}/{stages()[stage.start].run_name}")
    if stage.teachers:
        teachers = [stages()[key] for key in stage.teachers]
        prefix = "--teacher_" if len(teachers) == 1 else "--mt_"
        folders = ":".join(f"{out}/{teacher.run_name}" for teacher in teachers)
        flags.append(f"{prefix}load_pretrained={folders}")
        flags += teacher_flags(sizes, [teacher.role for teacher in teachers])
    return flags + scaled_flags(stage, sizes)


def command(stage: Stage, sizes: Sizes = FULL, out: Path = OUT) -> list[str]:
    """The stage's command line, from the program on, to be started at the repository's root."""
    common = common_flags(stage.program, sizes, out)
    return [f"distill/{stage.program}.py", *common, *stage_flags(stage, sizes, out)]


def chain_command(recipe: str, sizes: Sizes = FULL, out: Path = OUT) -> list[str]:
    """The command of scripts/chain.py that runs a recipe of CHAINS, from the script on."""
    first, *_ = own = recipes()[recipe]
    roles = [stages()[first.teachers[0]].role, *(stage.role for stage in own)]
    truncate = "--student_truncate_tn="
    skipped = ("--overwrite", f"--save={out}")
    common = [flag for flag in common_flags(first.program, sizes, out) if flag not in skipped]
    return [
        "scripts/chain.py", "--models", *("x".join(map(str, shape(sizes, r))) for r in roles),
        f"--teacher={out}/{stages()[first.teachers[0]].run_name}", f"--save={out}/{recipe}",
        "--truncate", *(["--dense"] if CHAINS[recipe] else []), "--",
        *common, f"--max-position-embeddings={sizes.seq_length}",
        f"--teacher_max_position_embeddings={sizes.seq_length}",
        *(flag for flag in scaled_flags(first, sizes) if not flag.startswith(truncate)),
    ]  # fmt: skip


def tokenizer_command(sizes: Sizes = FULL, out: Path = OUT) -> list[str]:
    """The command that makes the vocabulary of all stages."""
    return [
        "scripts/train_tokenizer.py", "--train-data", *CORPUS, "--text-key=sentence",
        f"--vocab-size={sizes.vocabulary}", f"--output={out}/vocab.txt", "--overwrite",
    ]  # fmt: skip


def ranking_command(out: Path = OUT) -> list[str]:
    """The command that ranks the vocabulary, for stages that keep a part of it."""
    return [
        "scripts/count_tokens.py", "--train-data", *CORPUS, "--text-key=sentence",
        f"--tokenizer-path={out}/vocab.txt", f"--cache-dir={out}/cache", "--overwrite",
    ]  # fmt: skip


def lines(names: Sequence[str], out: Path = OUT) -> Iterator[str]:
    """A shell script that runs whole recipes."""
    yield shlex.join(["python", *tokenizer_command(FULL, out)])
    found = chain(*(stage.key for name in names for stage in recipes()[name]))
    if any(stage.builds_map for stage in found):
        yield shlex.join(["python", *ranking_command(out)])
    for stage in found:
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
