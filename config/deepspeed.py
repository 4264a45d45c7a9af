"""DeepSpeed's JSON against the command line: one set of effective values, one complete dict.

By default the JSON wins, as in the seed, and a flag that was given and says something else is told
so. With --args_to_ds_config the flags that were given win, and --fp16/--bf16 always count. A value
that the JSON leaves out, or spells "auto", comes from the command line; but a JSON without
gradient_accumulation_steps means 1, as for DeepSpeed.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.errors import ConfigError
from config.notes import warn
from config.parser import read_json

if TYPE_CHECKING:
    from config.run import RunArgs

FLAG = "--deepspeed_config"
AUTO = "auto"
_PRESETS = Path(__file__).parent
#: Folders under which the seed's commands name the presets -> where they are here.
_PRESET_FOLDERS = {"config": _PRESETS, "config/tasks": _PRESETS / "tasks"}
_PRESET_FOLDERS["config_tasks"] = _PRESET_FOLDERS["config/tasks"]

#: Parameters of the optimizer block beside those of OptimizerArgs, and the value they must have.
_FIXED_PARAMS = {"adam_w_mode": True, "bias_correction": True, "amsgrad": False}

#: (block, key) of DeepSpeed's own checks of gradients: a NaN update would be applied without them.
_NAN_CHECKS = (("bf16", "check_grad_overflow"), ("zero_optimization", "compute_grad_norm"))


@dataclass(frozen=True)
class Setting:
    """One value that both the JSON and the command line can give."""

    key: tuple[str, ...]  # path in the JSON
    group: str  # field of RunArgs
    field: str
    flag: str
    kind: type
    least: float = 0.0
    absent: Any = None  # value of a JSON without its block; None: the command line's


SETTINGS = (
    Setting(("train_micro_batch_size_per_gpu",), "train", "batch_size", "--batch-size", int, 1),
    Setting(
        ("gradient_accumulation_steps",),
        "train",
        "gradient_accumulation_steps",
        "--gradient-accumulation-steps",
        int,
        1,
        absent=1,
    ),
    Setting(("gradient_clipping",), "train", "clip_grad", "--clip-grad", float),
    Setting(("optimizer", "params", "lr"), "optim", "lr", "--lr", float),
    Setting(
        ("optimizer", "params", "weight_decay"), "optim", "weight_decay", "--weight-decay", float
    ),
    Setting(("optimizer", "params", "betas", "0"), "optim", "adam_beta1", "--adam-beta1", float),
    Setting(("optimizer", "params", "betas", "1"), "optim", "adam_beta2", "--adam-beta2", float),
    Setting(("optimizer", "params", "eps"), "optim", "adam_eps", "--adam-eps", float),
    Setting(("fp16", "loss_scale"), "precision", "loss_scale", "--loss-scale", float),
    Setting(("zero_optimization", "stage"), "parallel", "zero_stage", "--zero_stage", int),
)


def resolve(values: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The groups with effective values, and `deepspeed`: what deepspeed.initialize is given.

    Empty without --deepspeed_config. ConfigError for a file that is missing, malformed (with its
    line) or holds values that cannot be used.
    """
    parallel = values["parallel"]
    if parallel.deepspeed_config is None:
        return {}
    content = _read(parallel.deepspeed_config)
    _check_shape(content, parallel.deepspeed_config)
    chosen = dict(_settings(content, values, flags))
    chosen["precision", "fp16"], chosen["precision", "bf16"] = _precision(content, values, flags)
    chosen["parallel", "cpu_offload"] = _offload(content, values)
    if chosen["precision", "bf16"] and not _stage_was_given(content, flags):
        chosen["parallel", "zero_stage"] = 1  # DeepSpeed's stage 0 keeps no fp32 weights of its own
    changed = {
        group: replace(values[group], **{f: v for (g, f), v in chosen.items() if g == group})
        for group in ("train", "optim", "precision", "parallel")
    }
    return changed | {"deepspeed": _complete(content, changed)}


def setting_of(run: "RunArgs", group: str, field: str) -> str | None:
    """`--deepspeed_config=FILE: block.key` if this effective value comes from the JSON."""
    for setting in SETTINGS if run.deepspeed is not None else ():
        if (setting.group, setting.field) == (group, field):
            given = setting.flag in run.flags
            if not given or run.flags[setting.flag] != getattr(getattr(run, group), field):
                return f"{FLAG}={run.parallel.deepspeed_config}: {'.'.join(setting.key)}"
    return None


def _read(name: str) -> dict[str, Any]:
    path = Path(name)
    if not path.exists() and path.parent.as_posix() in _PRESET_FOLDERS:
        path = _PRESET_FOLDERS[path.parent.as_posix()] / path.name
        path = path if path.exists() else Path(name)
    return read_json(path, FLAG)


def _get(content: Mapping[str, Any], key: tuple[str, ...]) -> Any:
    """The value at a path of keys; None if it is absent or "auto"."""
    value: Any = content
    for part in key:
        if isinstance(value, list) and part.isdigit():
            value = value[int(part)] if int(part) < len(value) else None
        else:
            value = value.get(part) if isinstance(value, Mapping) else None
    return None if value == AUTO else value


def _check_shape(content: Mapping[str, Any], file: str) -> None:
    """ConfigError with everything in the JSON that cannot be used as it is."""
    where = f"{FLAG}={file}"
    problems = list(_bad_values(content, where)) + list(_bad_optimizer(content, where))
    if _get(content, ("fp16", "enabled")) and _get(content, ("bf16", "enabled")):
        problems.append(f"{where}: fp16 and bf16 are both enabled; choose one")
    if "train_batch_size" in content and not _get(content, SETTINGS[0].key):
        problems.append(
            f"{where}: train_batch_size depends on the number of processes; "
            "give train_micro_batch_size_per_gpu and gradient_accumulation_steps"
        )
    if problems:
        raise ConfigError(problems)
    for key, reason in (
        ("train_batch_size", "micro-batch, accumulation and the number of processes make it"),
        ("scheduler", "--lr-decay-style and --warmup make the schedule"),
    ):
        if key in content:
            warn(f"{where}: {key} has no effect; {reason}")
    for key in _NAN_CHECKS:
        if _get(content, key) is False:
            warn(f"{where}: {'.'.join(key)}=False has no effect; updates with NaN are skipped")


def _bad_values(content: Mapping[str, Any], where: str) -> Iterator[str]:
    for block in ("optimizer", "fp16", "bf16", "zero_optimization"):
        if not isinstance(content.get(block, {}), Mapping):
            yield f"{where}: {block} must be a json object"
    betas = _get(content, ("optimizer", "params", "betas"))
    if betas is not None and not (isinstance(betas, list) and len(betas) == 2):
        yield f"{where}: optimizer.params.betas={betas}: must be two numbers"
    for setting in SETTINGS:
        value = _get(content, setting.key)
        kinds = int if setting.kind is int else (int, float)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, kinds) or not value >= setting.least:
            number = "an integer" if setting.kind is int else "a number"
            yield (
                f"{where}: {'.'.join(setting.key)}={value!r}: "
                f"must be {number} of at least {setting.least:g}"
            )
    for block in ("fp16", "bf16"):
        value = _get(content, (block, "enabled"))
        if value is not None and not isinstance(value, bool):
            yield f"{where}: {block}.enabled={value!r}: must be true, false or {AUTO!r}"


def _bad_optimizer(content: Mapping[str, Any], where: str) -> Iterator[str]:
    kind = _get(content, ("optimizer", "type"))
    if kind is not None and str(kind).lower() not in ("adam", "adamw"):
        yield f"{where}: optimizer.type={kind!r}: is not supported; use AdamW"
    params = _get(content, ("optimizer", "params")) or {}
    if not isinstance(params, Mapping):
        yield f"{where}: optimizer.params must be a json object"
        return
    known = {s.key[2] for s in SETTINGS if s.key[:2] == ("optimizer", "params")} | {"torch_adam"}
    for name, value in params.items():
        if name not in known and (name not in _FIXED_PARAMS or value != _FIXED_PARAMS[name]):
            yield f"{where}: optimizer.params.{name}={value!r}: is not supported"


def _settings(
    content: Mapping[str, Any], values: Mapping[str, Any], flags: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, str], Any]]:
    """((group, field), effective value) of each setting, with a warning where the two differ."""
    for setting in SETTINGS:
        asked = getattr(values[setting.group], setting.field)
        found = _get(content, setting.key)
        if found is not None:
            found = setting.kind(found)
        elif setting.key[0] not in content:
            found = setting.absent
        given = setting.flag in flags
        flag_wins = found is None or (given and values["parallel"].args_to_ds_config)
        if setting.field == "loss_scale" and found == 0:
            found = None  # DeepSpeed's spelling of a dynamic scale
        if given and not (flag_wins and found is None) and found != asked:
            _tell(setting.flag, asked, ".".join(setting.key), found, values, flag_wins)
        yield (setting.group, setting.field), asked if flag_wins else found


def _tell(
    flag: str, asked: Any, key: str, found: Any, values: Mapping[str, Any], flag_wins: bool
) -> None:
    file = values["parallel"].deepspeed_config
    winner = "the command line wins" if flag_wins else "the file wins (--args_to_ds_config: flag)"
    warn(f"{flag}={asked}: {file} has {key}={found}; {winner}")


def _precision(
    content: Mapping[str, Any], values: Mapping[str, Any], flags: Mapping[str, Any]
) -> tuple[bool, bool]:
    """(fp16, bf16). One enabled in the JSON excludes the other on the command line."""
    asked = values["precision"]
    if values["parallel"].args_to_ds_config:
        return asked.fp16, asked.bf16
    fp16, bf16 = (_get(content, (block, "enabled")) for block in ("fp16", "bf16"))
    if fp16 or bf16:
        effective = bool(fp16), bool(bf16)
    else:
        effective = asked.fp16 and fp16 is None, asked.bf16 and bf16 is None
    for name, value in zip(("fp16", "bf16"), effective, strict=True):
        if f"--{name}" in flags and not value:
            used = "fp16" if effective[0] else "bf16" if effective[1] else "fp32"
            _tell(f"--{name}", True, "precision", used, values, flag_wins=False)
    return effective


def _offload(content: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    device = _get(content, ("zero_optimization", "offload_optimizer", "device"))
    old = _get(content, ("zero_optimization", "cpu_offload"))
    return values["parallel"].cpu_offload or bool(old) or device == "cpu"


def _stage_was_given(content: Mapping[str, Any], flags: Mapping[str, Any]) -> bool:
    return "--zero_stage" in flags or _get(content, ("zero_optimization", "stage")) is not None


def _complete(content: Mapping[str, Any], groups: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON with the effective values in it.

    `optimizer.params.torch_adam` is true unless the JSON says otherwise: right on every device. The
    engine may turn it off on a GPU, where DeepSpeed's fused kernel can be built.
    """
    train, optim = groups["train"], groups["optim"]
    result = copy.deepcopy({k: v for k, v in content.items() if v != AUTO})
    result.pop("train_batch_size", None)
    result.pop("scheduler", None)
    for key, value in (
        ("steps_per_print", 10**9),
        ("zero_allow_untested_optimizer", True),
        ("zero_force_ds_cpu_optimizer", False),
    ):
        result.setdefault(key, value)
    torch_adam = _get(content, ("optimizer", "params", "torch_adam"))
    return result | {
        "train_micro_batch_size_per_gpu": train.batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "gradient_clipping": train.clip_grad,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": optim.lr,
                "betas": [optim.adam_beta1, optim.adam_beta2],
                "eps": optim.adam_eps,
                "weight_decay": optim.weight_decay,
                "torch_adam": True if torch_adam is None else torch_adam,
            },
        },
        "fp16": _fp16(content, groups["precision"]),
        "bf16": _bf16(content, groups["precision"]),
        "zero_optimization": _zero(content, groups["parallel"]),
    }


def _fp16(content: Mapping[str, Any], precision: Any) -> dict[str, Any]:
    if not precision.fp16:
        return {"enabled": False}
    return _block(content, "fp16") | {"enabled": True, "loss_scale": precision.loss_scale or 0}


def _bf16(content: Mapping[str, Any], precision: Any) -> dict[str, Any]:
    if not precision.bf16:
        return {"enabled": False}
    return _block(content, "bf16") | {"enabled": True}


def _zero(content: Mapping[str, Any], parallel: Any) -> dict[str, Any]:
    block = _block(content, "zero_optimization")
    block.pop("cpu_offload", None)  # the old spelling
    if parallel.cpu_offload:
        block.setdefault("offload_optimizer", {"device": "cpu"})
    return block | {"stage": parallel.zero_stage}


def _block(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A block of the JSON without "auto", and with the checks that it may not switch off."""
    block = {k: v for k, v in content.get(name, {}).items() if v != AUTO}
    return block | {key: True for where, key in _NAN_CHECKS if where == name and key in block}
