"""Settings of a method: what there is to choose, and the choices of a grid or at random."""

import itertools
import math
import random
from collections.abc import Iterator, Mapping

from config import ConfigError
from distill.tune.sweep_file import Choice, MethodSpec, Reference, SweepSpec

Assignment = dict[str, str]  # name of a setting -> its text


def settings(method: MethodSpec) -> dict[str, Choice]:
    """Name -> choice, of a method: its params, and `STAGE.FLAG` of choices in its stages."""
    found = dict(method.params)
    for stage in method.stages:
        for name, flag in stage.flags.items():
            if isinstance(flag.value, Choice):
                found[f"{stage.name}.{name.removeprefix('--')}"] = flag.value
    return found


def setting_problems(sweep: SweepSpec) -> Iterator[str]:
    """Ranges in a grid, references to nothing, params that no stage uses, choices elsewhere."""
    for method in sweep.methods.values():
        yield from _method_problems(sweep, method)
    shared = [sweep.flags, *sweep.programs.values(), *sweep.tasks.values()]
    shared += [stage.flags for stage in sweep.models.values()]
    for table in shared:
        for name, flag in table.items():
            if isinstance(flag.value, Choice | Reference):
                yield sweep.problem(flag.line, f"{name}: only stages of methods have choices")


def _method_problems(sweep: SweepSpec, method: MethodSpec) -> Iterator[str]:
    used = set()
    flags = ((name, flag) for stage in method.stages for name, flag in stage.flags.items())
    for name, flag in flags:
        if isinstance(flag.value, Reference):
            used.add(flag.value.name)
            if flag.value.name not in method.params:
                text = f"{name}: {method.name} has no params: {flag.value.name}"
                yield sweep.problem(flag.line, text)
    for name in method.params.keys() - used:
        yield sweep.problem(method.params[name].line, f"params: {name}: no stage has ${name}")
    for name, choice in settings(method).items():
        if sweep.sampler == "grid" and not choice.values:
            yield sweep.problem(
                choice.line, f"{name}: a grid needs values; a range needs sampler random or tpe"
            )


def assignments(sweep: SweepSpec, method: MethodSpec) -> list[Assignment]:
    """All of a grid, or so many at random; those of a TPE sampler are not known beforehand.

    At random: the same ones for the same file, whichever other methods it has.
    """
    choices = settings(method)
    if not choices:
        return [{}]
    if sweep.sampler == "grid":
        columns = [[(name, value) for value in choice.values] for name, choice in choices.items()]
        return [dict(row) for row in itertools.product(*columns)]
    if sweep.sampler == "random":
        draw = random.Random(f"{sweep.sampler_seed} {method.name}")
        drawn = [
            {name: _draw(choice, draw) for name, choice in choices.items()}
            for _ in range(sweep.trials)
        ]
        return [dict(row) for row in dict.fromkeys(tuple(each.items()) for each in drawn)]
    raise ConfigError(f"sampler {sweep.sampler}: does not know its choices beforehand")


def _draw(choice: Choice, draw: random.Random) -> str:
    if choice.values:
        return draw.choice(choice.values)
    if choice.integer:
        return str(draw.randint(math.ceil(choice.low), math.floor(choice.high)))
    if choice.log:
        return written(math.exp(draw.uniform(math.log(choice.low), math.log(choice.high))))
    return written(draw.uniform(choice.low, choice.high))


def written(value: float) -> str:
    """A drawn number as a flag has it: six digits are enough to name it."""
    return f"{value:.6g}"


def samples(choices: Mapping[str, Choice]) -> list[Assignment]:
    """Assignments in which every value of every choice, or its ends, comes once: for checks."""
    ends = {
        name: choice.values or tuple(_end(choice, x) for x in (choice.low, choice.high))
        for name, choice in choices.items()
    }
    first = {name: values[0] for name, values in ends.items()}
    others = [first | {name: value} for name, values in ends.items() for value in values[1:]]
    return [first, *others]


def _end(choice: Choice, value: float) -> str:
    return str(int(value)) if choice.integer else written(value)
