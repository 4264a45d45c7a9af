"""What ZeRO-3 and partitioned activations cannot serve of a method: said before anything is built.

ZeRO-3 puts a node of its own behind every module's outputs. A loss reaches a capture through it,
but no gradient *at* a capture can be asked for: the graph of the other outputs branches before it.

Partitioned activations keep a part of each recomputed chunk's input on every model-parallel rank.
What is captured inside a chunk stays whole and keeps that input whole, so nothing would be saved.
"""

from collections.abc import Iterator

from config import ConfigError, RunArgs
from config.recompute import recomputation
from distill.capture import Hook, merge_hooks, to_hook
from distill.student import GLMStudent
from mpu.hook import leaves


def check_layout(method: GLMStudent, run: RunArgs) -> None:
    """ConfigError with all that the method asks for and this run's engine cannot serve."""
    problems = [*_zero3(method, run), *_partitioned(method, run)]
    if problems:
        raise ConfigError(problems)


def _zero3(method: GLMStudent, run: RunArgs) -> Iterator[str]:
    zero3 = run.parallel.deepspeed and run.parallel.zero_stage == 3
    points = method.gradient_points() if zero3 and run.distill.forward_repeat_num > 0 else []
    if points:
        yield (
            f"--student_model={run.distill.student_model}: needs the gradient at "
            f"{', '.join(map(str, points))} of a first pass (--forward_repeat_num), which ZeRO "
            "stage 3 cuts off; use ZeRO stage 2 or less"
        )


def _partitioned(method: GLMStudent, run: RunArgs) -> Iterator[str]:
    if not recomputation(run).partition:
        return
    hook = merge_hooks(method.get_student_hook(), to_hook(method.base_points()))
    inside = captured_inside(hook)
    if inside:
        yield (
            f"--deepspeed_config={run.parallel.deepspeed_config}: "
            f"activation_checkpointing.partition_activations: --student_model="
            f"{run.distill.student_model} captures {', '.join(inside)} inside what is recomputed; "
            "set it to false"
        )


def captured_inside(hook: Hook | None) -> list[str]:
    """Paths of the captures inside the layers, which are recomputed."""
    return [".".join(map(str, path)) for path, _ in leaves(hook) if path[1:2] == ("layers",)]
