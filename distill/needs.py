"""What a method needs of a run: each check yields a line a problem, before anything is loaded."""

from collections.abc import Iterator

from config import RunArgs, TeacherArgs
from distill.combiner import chosen_combiner
from distill.soft_labels import MSE, SoftLabels


def learned_from(run: RunArgs) -> list[tuple[int, TeacherArgs]]:
    """Teachers that the student is compared with, and their numbers: no mere semantic model."""
    combiner, args = chosen_combiner(run)
    return [(n, t) for n, t in enumerate(run.teachers) if combiner.learns_from(args, n)]


def shallower(name: str, run: RunArgs) -> Iterator[str]:
    """No more student layers than teacher layers: each one gets a layer of the teacher."""
    own = run.model.num_layers
    for t_no, teacher in enumerate(run.teachers):
        if own > teacher.num_layers:
            yield (
                f"--num-layers={own}: {name} gives each student layer a layer of the teacher, and "
                f"teacher {t_no} has {teacher.num_layers}; use a shallower student"
            )


def several_layers(name: str, run: RunArgs, least: int = 2) -> Iterator[str]:
    """At least so many layers in the student."""
    if run.model.num_layers < least:
        yield f"--num-layers={run.model.num_layers}: {name} needs at least {least} student layers"


def equal_width(name: str, run: RunArgs) -> Iterator[str]:
    """The same hidden size: states are compared without a projection.

    Not needed where the combiner of several teachers projects them.
    """
    combiner, args = chosen_combiner(run)
    if combiner.converts_width(run, args):
        return
    own = run.model.hidden_size
    for t_no, teacher in learned_from(run):
        if own != teacher.hidden_size:
            yield (
                f"--hidden-size={own}: {name} compares hidden states as they are, and teacher "
                f"{t_no} has {teacher.hidden_size}; use the same width, or a method that projects "
                "(tinybert)"
            )


def equal_heads(name: str, run: RunArgs) -> Iterator[str]:
    """The same number of attention heads: maps are compared head by head."""
    own = run.model.num_attention_heads
    for t_no, teacher in learned_from(run):
        if own != teacher.num_attention_heads:
            yield (
                f"--num-attention-heads={own}: {name} compares attention head by head, and "
                f"teacher {t_no} has {teacher.num_attention_heads}; use the same number, or a "
                "method that does not (minilmv2, mgskd)"
            )


def program(name: str, run: RunArgs, only: str) -> Iterator[str]:
    """One program only: "pretrain" or "finetune"."""
    if run.program != only:
        yield f"--student_model={name}: works in {only}ing only; start distill/{only}.py"


def depth(what: str, run: RunArgs, least: int) -> Iterator[str]:
    """At least so many layers in the student and in each teacher; `what` names who needs them."""
    for flag, model in (
        ("--num-layers", run.model),
        *(("--teacher_num_layers", t) for t in run.teachers),
    ):
        if model.num_layers < least:
            yield f"{flag}={model.num_layers}: {what} needs at least {least} layers"


def teacher_forward(name: str, run: RunArgs) -> Iterator[str]:
    """The teacher's forward is computed."""
    if not all(teacher.runs for teacher in run.teachers):
        value = run.multi_teacher.mt_disable_operation
        yield f"--mt_disable_operation={value}: {name} needs the teacher's forward; leave it out"


def weights_at_hand(name: str, run: RunArgs, *, frozen: bool = False) -> Iterator[str]:
    """Teachers' weights that are used beside their forward: on the device, and never trained."""
    if run.multi_teacher.teacher_offload != "none":
        yield (
            f"--teacher_offload={run.multi_teacher.teacher_offload}: {name} uses weights of the "
            "teachers beside their forward; leave it out"
        )
    if run.multi_teacher.teacher_zero_stage != 0:
        yield (
            f"--teacher_zero_stage={run.multi_teacher.teacher_zero_stage}: {name} uses weights of "
            "the teachers beside their forward; leave it out"
        )
    if frozen and run.multi_teacher.mt_has_grad:
        yield f"--mt_has_grad: {name} uses frozen weights of the teachers; leave it out"


def labels(name: str, run: RunArgs) -> Iterator[str]:
    """Soft or hard labels: without them a stage, or the whole run, would learn nothing."""
    switches = SoftLabels.of(run)
    if not (switches.soft or switches.hard):
        stage = switches.stage
        yield (
            f"--student_model={name}: learns from labels, and none are on; add "
            f"--distill_{stage}_soft or --distill_{stage}_hard, at a rate above 0 "
            "(--distill_soft_rate, --distill_hard_rate)"
        )


def hard_once(name: str, run: RunArgs, own: bool) -> Iterator[str]:
    """No hard labels of the method where the combiner `name` adds them itself (`own`)."""
    switches = SoftLabels.of(run)
    if own and switches.hard:
        yield (
            f"--distill_{switches.stage}_hard: {name} adds the hard loss itself; leave the flag "
            f"out, or give --{name}_wo_hard"
        )


def squared_soft_labels(name: str, run: RunArgs) -> Iterator[str]:
    """Squared error, if there are soft labels: the teacher's weight has no effect on others."""
    switches = SoftLabels.of(run)
    if switches.soft and switches.kind != MSE:
        stage = switches.stage
        yield (
            f"--student_model={name}: weighs the teacher's logits under a squared error; add "
            f"--distill_{stage}_soft_mse"
        )
