"""docs/teachers.md, made from the combiners of teachers: `python -m scripts.methods_doc --write`.

From a combiner's module come formula and differences; from its group of flags the table of flags;
from config/recipes.json the command lines; from the combiner, built at published sizes, its cost.
"""

import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from config.teachers import MultiTeacherArgs
from distill.combiner import COMBINERS, Combiner
from scripts.doc_parts import (
    LABELS,
    About,
    block,
    escape,
    flag_table,
    markdown,
    number,
    preparation,
    prose,
    recipe_text,
    wrapped,
)
from scripts.methods_cost import CombinerCost, combiner_cost, combiners
from scripts.quickstart_plan import FULL
from scripts.recipes import (
    CHAINS,
    PUBLISHED,
    chain_command,
    common_flags,
    model_flags,
    recipes,
    recipes_with,
    shape,
    teacher_flags,
)

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "docs" / "teachers.md"
#: What the commands below have in common: shell variable -> flags.
VARIABLES = {
    "PRETRAIN": ["python", "distill/pretrain.py", *common_flags("pretrain")],
    "FINETUNE": ["python", "distill/finetune.py", *common_flags("finetune")],
    "STUDENT": model_flags(FULL),
    "TEACHER": model_flags(FULL, "teacher"),
    "LARGE": model_flags(FULL, "large"),
    "BOTH": teacher_flags(FULL, ("teacher", "large")),
    "ALL": teacher_flags(FULL, ("teacher", "teacher", "large")),
}
FIRST = ("teacher.finetune", "large.finetune", "plain.pretrain")
#: Combiner -> when to use it.
WHEN = {
    "avg": "a baseline for all others, and the combiner of TMKD and of dense chains (DGKD).",
    "mt_bert": "some teachers are wrong on some samples, and the task has labels that tell.",
    "uncertainty": "teachers differ in size, and the largest is too far from the student at first.",
    "rl_kd": "teachers are good at different samples, and one more forward pass is affordable.",
    "mixmt": "to see whether two ways to combine add to each other.",
}


def costliest(name: str) -> CombinerCost:
    """The cost of the combiner's stage that computes and adds most; the first of equals."""
    found = [
        combiner_cost(stage)
        for recipe in recipes_with(name).values()
        for stage in recipe
        if stage.combiner == name
    ]
    return max(found, key=lambda each: (each.passes, each.added))


def cost_text(found: CombinerCost) -> str:
    """Passes, needs and parameters in sentences."""
    lines = [
        f"- Forward passes of teachers a step: {found.passes:g}, of {found.teachers} teachers."
    ]
    needs = [
        (found.per_sample, "the losses of every sample"),
        (found.hard_losses, "the hard loss of every teacher"),
        (found.every_position, "of a language model, logits at all positions"),
    ]
    wanted = [what for is_needed, what in needs if is_needed]
    lines.append(f"- Needs: {'; '.join(wanted) or 'nothing but the losses'}.")
    for t_no, own in found.captured.items():
        lines.append(f"- Captured for it: in teacher {t_no} {own.what}, {own.formula} a token.")
    shapes = sorted(found.parameters.items())
    added = ", ".join(f"`{name}` {list(sizes)}" for name, sizes in shapes)
    added = f"{number(found.added)}: {added}" if added else "none"
    lines.append(f"- Parameters of its own: {added}.")
    return "\n".join(lines)


def overview() -> str:
    """One row a combiner."""
    heads = ("combiner", "`--multi_teacher_model`", "recipes", "teacher passes")
    heads += ("parameters of its own", "when")
    rows = [f"| {' | '.join(heads)} |", "| --- | --- | --- | ---: | ---: | --- |"]
    for name, cls in combiners().items():
        about, spent = About.read(cls), costliest(name)
        names = [*with_aliases(name, cls), *(CHAINS if name == "avg" else ())]
        cells = [f"[{about.name}](#{about.name.lower()})", f"`{name}`"]
        cells += [", ".join(f"`{each}`" for each in names), f"{spent.passes:g}"]
        rows.append(f"| {' | '.join([*cells, number(spent.added), WHEN[name]])} |")
    return "\n".join(rows)


def with_aliases(name: str, cls: type[Combiner]) -> list[str]:
    """The combiner's recipes, under whichever of its names."""
    names = [name, *(alias for alias, each in COMBINERS.items() if each is cls and alias != name)]
    return [recipe for each in names for recipe in recipes_with(each)]


def section(name: str, cls: type[Combiner]) -> Iterator[str]:
    """Everything about one combiner, paragraph by paragraph."""
    about = About.read(cls)
    module = Path(inspect.getfile(cls)).resolve().relative_to(ROOT).as_posix()
    also = [alias for alias, each in COMBINERS.items() if each is cls and alias != name]
    yield f"## {about.name}"
    yield escape(about.title.rstrip(".")) + "."
    others = f" (also {', '.join(f'`{alias}`' for alias in also)})" if also else ""
    yield f"`--multi_teacher_model={name}`{others}, [{module}](../{module})"
    yield markdown(about.body)
    yield f"**When to use it:** {WHEN[name]}"
    yield f"### Cost of {about.name}"
    yield cost_text(costliest(name))
    yield f"### Flags of {about.name}"
    yield flag_table(cls.Args)
    yield f"### Stages of {about.name}"
    for recipe in with_aliases(name, cls):
        yield f"`python -m scripts.recipes {recipe}`:"
        yield recipe_text(recipe, VARIABLES, FIRST)
    for label in LABELS[:2]:
        if label in about.parts:
            yield f"**{label}:** " + prose(about.parts[label])


def chains() -> Iterator[str]:
    """Models that teach one after the other."""
    yield CHAIN
    for recipe, dense in CHAINS.items():
        yield f"### {recipe.upper()}"
        roles = ["large", *(stage.role for stage in recipes()[recipe])]
        sizes = ", ".join("{} x {}".format(*shape(PUBLISHED, role)) for role in roles)
        yield DGKD if dense else TAKD
        yield f"At the published sizes {sizes}; here, scaled down:"
        program, *words = chain_command(recipe)
        module = "scripts." + Path(program).stem
        yield block([wrapped(["python", "-m", module, *map(shlex.quote, words)])])
        yield f"The same, stage by stage (`python -m scripts.recipes {recipe}`):"
        yield recipe_text(recipe, VARIABLES, FIRST)


INTRODUCTION = """\
# Several teachers

A student may learn from several teachers at once, or from models that learn one after the other.
Teachers may differ in depth, width, heads and precision. This file is generated by
`python -m scripts.methods_doc --write` from the combiners themselves.

The student's method (`--student_model`, see [methods.md](methods.md)) compares the student with
each teacher; a *combiner* (`--multi_teacher_model`) makes one loss of that. Without the flag losses
are averaged. Teachers are given as lists with `:` between them, as in
`--mt_load_pretrained=runs/base:runs/large`; a checkpoint that has a config.json knows its shape.

## Overview

Teacher passes: forward passes of teachers in one step of the published stage. Parameters: those
that the combiner adds at the published sizes, student {student}, teachers {teacher} and {large}."""

SHARED = """\
## Flags for all

A list has a value for each teacher, or one for all of them; an entry that is empty, and a list that
is not given, is the value of the `--teacher_` flag. Lists of different lengths are refused."""

RUNNING = """\
## Running the stages

The commands below are the published stages at the sizes of the quick start, on the data that ships.
Run this first, in bash at the root of the repository: it makes a vocabulary, two teachers, both
fine-tuned, and a student pretrained alone. `python -m scripts.recipes NAME` prints a recipe without
variables."""

CHAIN = """\
## Chains

Where a teacher is much larger than the student, models of sizes in between learn first and teach
then. [scripts/chain.py](../scripts/chain.py) runs such a chain: `--models` are the sizes from large
to small (`LAYERSxHIDDEN`, or `LAYERSxHIDDENxHEADS` where a head is not 64 wide), `--teacher` is the
checkpoint of the first of them; what stands after `--` goes to the program of every stage.

- Every stage writes to a folder of its own below `--save`, and what it says to `logs`.
- Started again, it goes on with the first stage that has not ended with the same command.
- It stops at the first stage that fails, and shows the end of its log.
- `--truncate` starts each student from the first layers and entries of the model before it;
  `--start` names a checkpoint for each instead.
- `--program=pretrain` runs a chain of pretraining; `--launcher="torchrun --nproc_per_node 2"`
  starts each stage on two processes; `--dry-run` prints the commands."""

TAKD = """\
TAKD (Mirzadeh et al., 2020, arXiv 1902.03393): each model teaches the next one alone."""

DGKD = """\
DGKD (Son et al., 2021, arXiv 2009.08825), `--dense`: all earlier models of the chain teach, and in
each step a teacher takes part with probability 0.75 (`--avgmt_teacher_survival_p`). The hard loss
is added once; `--distill_ft_hard` would add it for each teacher as well."""


def document() -> str:
    """The whole file."""
    sizes = {
        role: "{} x {}".format(*shape(PUBLISHED, role)) for role in ("student", "teacher", "large")
    }
    parts = [INTRODUCTION.format(**sizes), overview(), SHARED, flag_table(MultiTeacherArgs)]
    parts += [RUNNING, preparation(VARIABLES, FIRST)]
    for name, cls in combiners().items():
        parts += section(name, cls)
    parts += chains()
    return re.sub(r"\n{3,}", "\n\n", "\n\n".join(filter(None, parts))) + "\n"
