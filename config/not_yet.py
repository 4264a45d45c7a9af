"""The seed's flags that no group declares: of features not built yet, and without effect here.

Each is accepted by the parser. A flag of the first kind is an error unless it has the seed's
default, which asks for nothing; one of the second kind is told to do nothing.
"""

import argparse
from typing import NamedTuple

from config.notes import warn

#: Values of --student_model in the seed that are not registered yet; registering one is enough.
SEED_METHODS = ()


class Later(NamedTuple):
    """The feature a flag belongs to, and the seed's default as text (None: unset, or a switch)."""

    feature: str
    default: str | None


#: Feature -> its flags, `name` or `name=default`.
_FEATURES = {
    "BERT models as a baseline": "pretrained-bert",
}


def _later() -> dict[str, Later]:
    flags = {}
    for feature, text in _FEATURES.items():
        for word in text.split():
            name, has_default, default = word.partition("=")
            flags["--" + name] = Later(feature, default if has_default else None)
    return flags


#: Flag -> the feature it waits for. Giving it is an error.
NOT_YET: dict[str, Later] = _later()

_DEAD = "does nothing in the seed either"
_LEFTOVER = "belongs to data readers of other models"
_INTERNAL = "the seed's own state, no setting"
_ONE_FORMAT = "parameters are fp32; autocast decides what is computed in half precision"
_SCALER = "the dynamic loss scale is PyTorch's, or that of the fp16 block of DeepSpeed's JSON"
_WHOLE = "--load resumes with all state, --load-pretrained takes the weights only"
_PROCESSES = "PyTorch's data parallelism, or DeepSpeed's with --deepspeed, is used"
_CACHE = "corpora are memory-mapped and shared by all processes"

#: Flag -> why it has no effect. Giving it warns.
IGNORED: dict[str, str] = {
    "--encoder-decoder": _DEAD,
    "--intermediate-size": _DEAD + "; the MLP is 4 times as wide as the model",
    "--layernorm-epsilon": "GLM's LayerNorm has 1e-5",
    "--deep-init": _DEAD,
    "--cpu-optimizer": "the optimizer is where the weights are; DeepSpeed has --cpu_offload",
    "--cpu_torch_adam": "the optimizer is where the weights are; DeepSpeed has --cpu_offload",
    "--fp32-embedding": _ONE_FORMAT,
    "--fp32-layernorm": _ONE_FORMAT,
    "--fp32-tokentypes": _ONE_FORMAT,
    "--fp32-allreduce": "gradients are fp32",
    "--hysteresis": _SCALER,
    "--loss-scale-window": _SCALER,
    "--min-scale": _SCALER,
    "--DDP-impl": _PROCESSES,
    "--reset-position-ids": "is no option of block-LM samples",
    "--reset-attention-mask": "is no option of block-LM samples",
    "--no-save-rng": "random streams follow from --seed and the iteration; none is saved",
    "--no-load-rng": "random streams follow from --seed and the iteration; none is saved",
    "--no-load-optim": _WHOLE,
    "--no-load-lr-scheduler": _WHOLE,
    "--no-deepspeed-load": _WHOLE,
    "--eval-max-preds-per-seq": _LEFTOVER,
    "--max-preds-per-seq": _LEFTOVER,
    "--input-data-sizes-file": _DEAD,
    "--delim": _LEFTOVER,
    "--eval-text-key": "--text-key is used for all splits",
    "--loader-scatter": _CACHE,
    "--half-lazy-loader": _CACHE,
    "--loose-json": "a .jsonl file has one object a line",
    "--presplit-sentences": _LEFTOVER,
    "--no-pre-tokenize": "corpora are tokenized once and cached",
    "--use-tfrecords": "the seed's reader does not exist",
    "--eval-valid": "the validation split is always evaluated",
    "--spare_port": "scores are gathered over the process group",
    "--custom_logits_paralle": _INTERNAL,
    "--custom_current_epoch": _INTERNAL,
    "--forward_repeat_current_n": _INTERNAL,
    "--current_gradient_accumulation_steps": _INTERNAL,
    "--single_step": _INTERNAL,
    "--deepspeed_mpi": "start the processes with deepspeed, torchrun or srun",
    "--deepscale": "DeepSpeed's old name; use --deepspeed",
    "--deepscale_config": "DeepSpeed's old name; use --deepspeed_config",
    "--enable_parallel_entropy": "losses on vocabulary shards are always computed on the shards",
    "--distill_test_output": "prints of the seed's developers",
    "--distill_random_data_rate": _DEAD,
    "--distill_random_data_only_a": _DEAD,
}


#: Without effect on a new run; a resumed one would need them.
_RESUME_IN_PART = ("--no-load-optim", "--no-load-lr-scheduler", "--no-deepspeed-load")


def refuse_not_yet(given: argparse.Namespace) -> list[str]:
    """A problem for each flag of a feature that is not built, unless it has its default."""
    problems = [
        f"{flag}: is not supported yet: {later.feature}"
        for flag, later in NOT_YET.items()
        if hasattr(given, flag) and not _asks_nothing(getattr(given, flag), later.default)
    ]
    if hasattr(given, "load"):
        problems += [
            f"{flag}: is not supported with --load; use --load-pretrained for the weights only"
            for flag in _RESUME_IN_PART
            if hasattr(given, flag)
        ]
    return problems


def warn_ignored(given: argparse.Namespace) -> None:
    """One warning for each flag that is accepted for the seed's commands only."""
    for flag, reason in IGNORED.items():
        if hasattr(given, flag):
            warn(f"{flag}: has no effect; {reason}")


def _asks_nothing(values: list[str], default: str | None) -> bool:
    if default is None or len(values) != 1:
        return False
    try:
        return values[0] == default or float(values[0]) == float(default)
    except ValueError:
        return False
