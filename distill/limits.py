"""What ZeRO-3, partitioned activations and a memory of the text cannot serve of a method.

Said before anything is built.

ZeRO-3 puts a node of its own behind every module's outputs. A loss reaches a capture through it,
but no gradient *at* a capture can be asked for: the graph of the other outputs branches before it.

Partitioned activations keep a part of each recomputed chunk's input on every model-parallel rank.
What is captured inside a chunk stays whole and keeps that input whole, so nothing would be saved.

With a memory a layer's keys, values and attention are longer than its input, and what a method puts
in place of states would be remembered in place of them.
"""

from collections.abc import Iterator

from config import ConfigError, RunArgs
from config.recompute import recomputation
from distill.capture import Hook, merge_hooks, to_hook
from distill.student import GLMStudent
from mpu.hook import leaves

#: Captures of a layer with an entry for every key, those of the memory included.
WITH_MEMORY = ("mixed_key_layer", "mixed_value_layer", "key_layer", "value_layer")
WITH_MEMORY += ("attention_scores", "attention_probs")


def check_layout(method: GLMStudent, run: RunArgs) -> None:
    """ConfigError with all that the method asks for and this run's engine cannot serve."""
    problems = [*_zero3(method, run), *_partitioned(method, run), *_memory(method, run)]
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


def _memory(method: GLMStudent, run: RunArgs) -> Iterator[str]:
    if not run.remembers:
        return
    given = f"--mem-length={run.model.mem_length}: --student_model={run.distill.student_model}"
    combiner = method.multi_teacher_model
    hooks = [merge_hooks(method.get_student_hook(), to_hook(method.base_points()))]
    for t_no in range(len(run.teachers)):
        own = (
            []
            if combiner is None
            else [p for part in combiner.parts for p in part.teacher_points(t_no)]
        )
        hooks.append(merge_hooks(method.get_teacher_hook(t_no=t_no), to_hook(own)))
    names = {path[-1]: None for hook in hooks for path, _ in leaves(hook)}
    longer = [name for name in names if name in WITH_MEMORY]
    if longer:
        yield (
            f"{given} compares {', '.join(longer)}, which hold the memory too; give --mem-length=0"
        )
    if edits_states(method):
        yield f"{given} puts other states in place of the student's; give --mem-length=0"


def edits_states(method: GLMStudent) -> bool:
    """Whether the method, or one that it mixes, edits the student's forward."""
    methods = [part for part in method.modules() if isinstance(part, GLMStudent)]
    single = methods[1:] or methods  # a mix has no edits but those of its parts
    edit = GLMStudent.get_student_hook_op
    return any(type(part).get_student_hook_op is not edit for part in single)


def captured_inside(hook: Hook | None) -> list[str]:
    """Paths of the captures inside the layers, which are recomputed."""
    return [".".join(map(str, path)) for path, _ in leaves(hook) if path[1:2] == ("layers",)]
