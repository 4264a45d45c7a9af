"""What ZeRO cannot do in a run."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from config.notes import warn

if TYPE_CHECKING:
    from config.run import RunArgs

#: Options of ZeRO++ that quantise what is communicated: kernels of a GPU.
_QUANTISED = (
    "zero_quantized_weights",
    "zero_quantized_gradients",
    "zero_quantized_nontrainable_weights",
)
#: Option of zero_optimization -> why this toolkit cannot run with it.
_REFUSED = {
    "mics_shard_size": "MiCS needs a model that is built cut; leave it out",
    "zenflow": "its optimizer keeps updates back, which no resumed run knows; leave it out",
}


def zero_problems(run: "RunArgs") -> Iterator[str]:
    """A line for each option that cannot be served, whatever the device."""
    if run.deepspeed is None:
        return
    if run.optim.optimizer != "adam":
        yield (
            f"--optimizer={run.optim.optimizer}: needs the rows and columns of parameters, which "
            "DeepSpeed flattens; leave out --deepspeed, or train with AdamW"
        )
    where, block = _place(run), run.deepspeed["zero_optimization"]
    stage = block["stage"]
    for name in ("offload_optimizer", "offload_param"):
        part = block.get(name)
        if part is None:
            continue
        if not isinstance(part, Mapping):
            yield f"{where}.{name}: must be a json object, as {{'device': 'cpu'}}"
            continue
        device = part.get("device", "none")
        if device not in ("none", "cpu"):
            yield f"{where}.{name}.device={device!r}: is not supported; use 'cpu' or 'none'"
        elif device == "cpu" and name == "offload_param" and stage != 3:
            yield f"{where}.offload_param: needs ZeRO stage 3, not {stage}; leave it out"
    for name, why in _REFUSED.items():
        if block.get(name):
            yield f"{where}.{name}: is not supported: {why}"


def teacher_zero_problems(run: "RunArgs") -> Iterator[str]:
    """What --teacher_zero_stage=3 cannot serve: a line each."""
    group = run.multi_teacher
    if group.teacher_zero_stage == 0 or not run.teachers:
        return
    flag = f"--teacher_zero_stage={group.teacher_zero_stage}"
    if not run.parallel.deepspeed:
        yield f"{flag}: DeepSpeed cuts the teachers; add --deepspeed"
    if group.teacher_offload != "none":
        yield f"{flag}: --teacher_offload={group.teacher_offload} keeps teachers whole; give one"
    if group.mt_has_grad:
        yield (
            f"{flag}: teachers that are trained (--mt_has_grad) are cut with the student; "
            "leave it out, and use --zero_stage=3"
        )


def zero_without_gpu(run: "RunArgs") -> Iterator[str]:
    """A line for each option that needs a GPU."""
    if run.deepspeed is None:
        return
    block = run.deepspeed["zero_optimization"]
    for name in _QUANTISED:
        if block.get(name):
            yield f"{_place(run)}.{name}: needs a GPU; leave it out"


def warn_idle_zero(run: "RunArgs") -> None:
    """Tell of offloading that does nothing."""
    if run.deepspeed is not None and run.parallel.cpu_offload and run.parallel.zero_stage == 0:
        name = "--cpu_offload" if "--cpu_offload" in run.flags else f"{_place(run)}.offload"
        warn(f"{name}: has no effect with ZeRO stage 0; --args_to_ds_config --zero_stage=1 for one")


def _place(run: "RunArgs") -> str:
    return f"--deepspeed_config={run.parallel.deepspeed_config}: zero_optimization"
