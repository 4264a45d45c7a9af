"""DeepSpeed's JSON of one task: a preset with the values that ds_KEY flags give."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from config import ConfigError
from config.parser import read_json
from distill.tune.seed_args import as_json


def deepspeed_json(
    path: Path, values: Mapping[str, tuple[str, float | None]], *, without_fp16: bool
) -> dict[str, Any] | None:
    """The changed content; None if nothing changes. fp16 is only ever taken away, on request.

    values: key, `__` between the names of nested blocks -> (text, rate or None). ConfigError: no
    such file, a value of another type than the JSON's.
    """
    content = read_json(path, "--deepspeed_config")
    changed = copy.deepcopy(content)
    problems = []
    for key, (text, rate) in values.items():
        *blocks, name = key.split("__")
        block = changed
        for each in blocks:
            block = block.setdefault(each, {})
        try:
            block[name] = _scaled(as_json(block.get(name, ""), text), rate)
        except (ValueError, TypeError) as error:
            problems.append(f"--ds_{key}={text}: {error}")
    if problems:
        raise ConfigError(problems)
    if without_fp16:
        changed.pop("zero_optimization", None)
        changed["fp16"] = {**changed.get("fp16", {}), "enabled": False}
    return None if changed == content else changed


def _scaled(value: Any, rate: float | None) -> Any:
    if rate is None or rate == 1:
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("is no number; a rate cannot multiply it")
    return int(value * rate) if isinstance(value, int) else value * rate
