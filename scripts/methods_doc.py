"""docs/methods.md, made from the methods themselves: `python -m scripts.methods_doc --write`.

It writes docs/teachers.md, too, which is made likewise by scripts/teachers_doc.py.

From a method's module come paper, formula, differences and advice; from its group of flags the
table of flags; from config/recipes.json the command lines; from the method's hooks its cost; from
docs/benchmarks/methods.json what scripts/bench_methods.py measured. A test fails when the file
differs.
"""

import argparse
import inspect
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distill.registry import METHODS
from distill.student import GLMStudent
from scripts import teachers_doc
from scripts.bench_methods import conditions_text, table
from scripts.doc_parts import (
    LABELS,
    About,
    escape,
    flag_table,
    markdown,
    number,
    preparation,
    prose,
    recipe_text,
    size,
)
from scripts.methods_cost import Captures, Cost, methods, most_costly
from scripts.quickstart_plan import FULL
from scripts.recipes import PUBLISHED, Stage, common_flags, model_flags, recipes_of, teacher_flags

ROOT = Path(__file__).resolve().parent.parent
FILE, MEASURED = ROOT / "docs" / "methods.md", ROOT / "docs" / "benchmarks" / "methods.json"
PROGRAMS = {"pretrain": "pretraining", "finetune": "fine-tuning"}
#: What the commands below have in common: shell variable -> flags.
VARIABLES = {
    "PRETRAIN": ["python", "distill/pretrain.py", *common_flags("pretrain")],
    "FINETUNE": ["python", "distill/finetune.py", *common_flags("finetune")],
    "STUDENT": model_flags(FULL),
    "TEACHER": model_flags(FULL, "teacher"),
    "TAUGHT": teacher_flags(FULL),
}
FIRST = ("teacher.finetune", "plain.pretrain")  # stages that most recipes need


def _captured(of: Captures, who: str) -> str:
    if not of.entries:
        return f"nothing in the {who}"
    return f"in the {who} {of.what}, {of.formula} numbers a token ({size(of.bytes)})"


def cost_text(found: Cost) -> str:
    """Passes, captures and parameters in sentences."""
    passes = f"{found.student_passes} of the student, {found.teacher_passes} of the teacher"
    if found.takes_gradient:
        passes += ", and a backward pass of the first"
    lines = [f"- Forward passes a step: {passes}."]
    lines.append(
        f"- Captured: {_captured(found.student, 'student')}; {_captured(found.teacher, 'teacher')}."
    )
    added = ", ".join(f"`{name}` {list(shape)}" for name, shape in sorted(found.parameters.items()))
    added = f"{number(found.added)}: {added}" if added else "none"
    lines.append(f"- Parameters of its own: {added}.")
    measured = read_measured().get("methods", {}).get(found.stage.method)
    if measured:
        lines.append(f"- Measured: {measured_words(measured)}.")
    return "\n".join(lines)


def read_measured() -> dict[str, Any]:
    """What scripts/bench_methods.py wrote; {} where there is nothing."""
    return json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.is_file() else {}


def measured_words(row: dict[str, Any]) -> str:
    """Time and memory relative to KD."""
    return (
        f"{row['time_ratio']:.2f} times the time and {row['memory_ratio']:.2f} times the memory "
        f"of a KD step of {PROGRAMS[row['program']]}"
    )


def measured_table() -> str:
    """All that was measured, and under which conditions."""
    content = read_measured()
    if not content:
        return "Not measured yet: `python -m scripts.bench_methods` does it."
    return f"{table(content)}\n\n{conditions_text(content)}"


def _stage_mark(stage: Stage) -> str:
    step = "pretrain" if stage.program == "pretrain" else "fine-tune"
    return step if stage.method else f"{step} alone"


def stage_text(text: str) -> str:
    """What the module says of its stages: a list stays one, a sentence becomes one."""
    return markdown(text) if text.startswith("    ") else prose(text)


def overview(names: Sequence[str]) -> str:
    """One row a method."""
    heads = ("method", "`--student_model`", "stages", "passes", "captured, a token")
    heads += ("parameters of its own", "when")
    rows = [f"| {' | '.join(heads)} |", "| --- | --- | --- | ---: | ---: | ---: | --- |"]
    found = methods()
    for name in names:
        about, spent = About.read(found[name]), most_costly(name)
        recipe = next(iter(recipes_of(name).values()))
        marks = ", ".join(_stage_mark(stage) for stage in recipe)
        passes = f"{spent.student_passes} + {spent.teacher_passes}"
        memory = size(spent.student.bytes + spent.teacher.bytes)
        anchor = re.sub(r"[^\w -]", "", about.name.lower()).replace(" ", "-")
        when = prose(about.parts.get("When", "")).replace("|", "\\|")
        cells = [f"[{about.name}](#{anchor})", f"`{name}`", marks, passes, memory]
        rows.append(f"| {' | '.join([*cells, number(spent.added), when])} |")
    return "\n".join(rows)


def section(name: str, cls: type[GLMStudent]) -> Iterator[str]:
    """Everything about one method, paragraph by paragraph."""
    about = About.read(cls)
    module = Path(inspect.getfile(cls)).resolve().relative_to(ROOT).as_posix()
    also = [alias for alias, each in METHODS.items() if each is cls and alias != name]
    other = f" (also {', '.join(f'`{alias}`' for alias in also)})" if also else ""
    yield f"## {about.name}"
    yield escape(about.title.rstrip(".")) + "."
    yield f"`--student_model={name}`{other}, [{module}](../{module})"
    yield markdown(about.body)
    if "When" in about.parts:
        yield f"**When to use it:** {prose(about.parts['When'])}"
    yield f"### Cost of {about.name}"
    yield cost_text(most_costly(name))
    yield f"### Flags of {about.name}"
    yield flag_table(cls.Args)
    yield f"### Stages of {about.name}"
    yield stage_text(about.parts.get("Stages", ""))
    for recipe in recipes_of(name):
        yield f"`python -m scripts.recipes {recipe}`:"
        yield recipe_text(recipe, VARIABLES, FIRST)
    for label in LABELS[:2]:
        if label in about.parts:
            yield f"**{label}:** " + markdown(about.parts[label])


INTRODUCTION = """\
# Methods

Every method of this toolkit: what it matches, what it costs, its flags, and the stages in which it
was published. This file is generated by `python -m scripts.methods_doc --write` from the methods
themselves; [new_method.md](new_method.md) shows how to add one, and [teachers.md](teachers.md) is
about several teachers.

## Overview

Stages: those of the published run; *alone* means without a teacher. Passes: forward passes of
student + teacher in one step. Captured: what both models keep for the losses, in fp32, in the
costliest stage at the published sizes; the gradient needs part of the student's anyway.
Published sizes: {sizes}."""

MEASURING = """\
## Measured

A step of each method beside a step of plain KD (soft and hard labels) on the same models, sizes
and batches, by [scripts/bench_methods.py](../scripts/bench_methods.py). Only layers whose attention
scores or probabilities are captured compute them as tensors; all others take the fused path."""

RUNNING = """\
## Running the stages

The commands below are the published stages at the sizes of the quick start, on the data that ships;
flags that go with a model's size are scaled. Run this first, in bash at the root of the repository:
it makes a vocabulary, a teacher, the teacher fine-tuned, and a student pretrained alone.
`python -m scripts.recipes NAME` prints a recipe without variables."""


def document() -> str:
    """The whole file."""
    p = PUBLISHED
    sizes = (
        f"student {p.student_layers} x {p.hidden}, teacher {p.teacher_layers} x {p.hidden}, "
        f"{p.heads} heads, s = {p.seq_length}; MobileBERT 24 x 512, 4 heads"
    )
    found = methods()
    parts = [INTRODUCTION.format(sizes=sizes), overview(list(found)), MEASURING, measured_table()]
    parts += [RUNNING, preparation(VARIABLES, FIRST)]
    for name, cls in found.items():
        parts += section(name, cls)
    return "\n\n".join(filter(None, parts)) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the documents, or write them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write them to docs/")
    options = parser.parse_args(argv)
    for file, text in ((FILE, document()), (teachers_doc.FILE, teachers_doc.document())):
        if options.write:
            file.write_text(text, encoding="utf-8")
        else:
            print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
