"""Activation checkpointing: what the flags and the JSON's block activation_checkpointing ask for.

--checkpoint-activations recomputes chunks of --checkpoint-num-layers layers in the backward pass;
what is kept is each chunk's input. With --deepspeed-activation-checkpointing the block of
DeepSpeed's JSON says where: cut over the model-parallel ranks, in host memory, or both.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from config.notes import warn

if TYPE_CHECKING:
    from config.run import RunArgs

BLOCK = "activation_checkpointing"
_SWITCHES = ("partition_activations", "cpu_checkpointing")
#: Other keys of the block: they arrange memory and timing inside DeepSpeed's own implementation.
_IDLE = (
    "contiguous_memory_optimization",
    "number_checkpoints",
    "synchronize_checkpoint_boundary",
    "profile",
)


@dataclass(frozen=True)
class Recomputation:
    """Where the inputs of recomputed chunks are kept."""

    partition: bool = False  # each model-parallel rank keeps 1/p of them
    on_cpu: bool = False  # in host memory


def recomputation(run: "RunArgs") -> Recomputation:
    """What is in effect in this run."""
    block = _block(run)
    asked = run.parallel.deepspeed_activation_checkpointing and run.model.checkpoint_activations
    if not asked:
        return Recomputation()
    return Recomputation(*(bool(block.get(name)) for name in _SWITCHES))


def recomputation_problems(run: "RunArgs") -> Iterator[str]:
    """A line for each value of the block that cannot be used."""
    content = (run.deepspeed or {}).get(BLOCK, {})
    where = f"--deepspeed_config={run.parallel.deepspeed_config}: {BLOCK}"
    if not isinstance(content, Mapping):
        yield f"{where} must be a json object"
        return
    for name in _SWITCHES:
        if not isinstance(content.get(name, False), bool):
            yield f"{where}.{name}={content[name]!r}: must be true or false"
    known = (*_SWITCHES, *_IDLE)
    for name in content:
        if name not in known:
            yield f"{where}.{name}: is no such option; known are {', '.join(known)}"


def warn_idle_recomputation(run: "RunArgs") -> None:
    """Tell of what does nothing."""
    block, where = _block(run), f"--deepspeed_config={run.parallel.deepspeed_config}: {BLOCK}"
    asked = [name for name in _SWITCHES if block.get(name)]
    for flag, given in (
        ("--checkpoint-activations", run.model.checkpoint_activations),
        ("--deepspeed-activation-checkpointing", run.parallel.deepspeed_activation_checkpointing),
    ):
        if asked and not given:
            warn(f"{where}: {', '.join(asked)}: no effect without {flag}")
            break
    for name in _IDLE:
        if block.get(name):
            warn(f"{where}.{name}: has no effect; memory and timing are PyTorch's")


def _block(run: "RunArgs") -> Mapping[str, Any]:
    block = (run.deepspeed or {}).get(BLOCK, {})
    return block if isinstance(block, Mapping) else {}
