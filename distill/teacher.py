"""Teachers: models that answer on the student's inputs. Frozen, unless they are trained with it."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import mpu
from config import ConfigError, RunArgs
from config.notes import warn
from distill.capture import Hook
from distill.frozen import load_frozen
from distill.lazy_forward import find_lazy, forward_lazily
from distill.lazy_logits import Logits
from distill.offload import Offloaded, Slot
from distill.partitioned import Partitioner
from model.build import add_head, build_model
from mpu import hook_model
from tasks.base import Task

TEACHER = "teacher_model_{}"  # in the student, of a teacher that is trained; see `distill.live`
IN_FILE = "student.teacher_model_{}."  # and in checkpoints


@dataclass(frozen=True)
class TeacherOutput:
    """What a teacher gives for one micro-batch, in fp32; with gradient only if it is trained."""

    logits: Tensor | Logits | None  # as the student's; None: --mt_disable_operation
    captured: list[Tensor]  # the hook's leaves point into it


class Teacher:
    """A frozen model: in eval mode, without gradients, in its own precision.

    A *live* one is trained: in the mode of the module it is a part of, with gradients. Where
    gradients are off it runs as a frozen one would.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        live: bool = False,
        autocast: torch.dtype | None = None,
        wrapped: nn.Module | None = None,
    ):
        """`autocast`: what a live teacher computes in, if its weights are in fp32.

        `wrapped`: what is called in place of the module, if something stands around it.
        """
        self.module, self.live, self._autocast = module, live, autocast
        self._offloaded: Offloaded | None = None
        self._called = module if wrapped is None else wrapped
        if not live:
            module.requires_grad_(False).eval()

    def offload(self, slot: Slot) -> None:
        """From now on its weights are in host memory, and only while it runs in this slot."""
        assert not self.live, "weights that change stay on the device"
        self._offloaded = Offloaded(self.module, slot)

    def __call__(
        self,
        inputs: Sequence[Tensor],
        hook: Hook | None = None,
        hook_op: Hook | None = None,
        output_rows: Tensor | None = None,
        *,
        lazy_logits: bool = False,
    ) -> TeacherOutput:
        """One forward. The leaves of `hook` become indices into the captured tensors, in place.

        `output_rows`: as in `GLMModel.forward`. `lazy_logits`: see `distill.lazy_forward`.
        """
        options: dict[str, Any] = {"hook_op": hook_op} if hook_op else {}
        if output_rows is not None:
            options["output_rows"] = output_rows
        captured: list[Tensor] = []
        with self._ready(inputs[0].device.type):
            if lazy_logits:
                glm, away = find_lazy(self.module), self._offloaded is not None
                logits = forward_lazily(
                    self._called, glm, inputs, hook, captured, hook_op, keep_table=away
                )
                return TeacherOutput(*in_fp32([logits]), in_fp32(captured))
            outputs = hook_model(hook or None, captured, self._called, *inputs, **options)
            logits = outputs[0] if isinstance(outputs, tuple) else outputs
            return TeacherOutput(logits.float(), in_fp32(captured))

    @contextlib.contextmanager
    def _ready(self, device: str) -> Iterator[None]:
        """Weights on the device, gradients as they are wanted, the precision its own."""
        learns = self.live and torch.is_grad_enabled()
        training = self.module.training
        half = torch.autocast(device, self._autocast, enabled=self._autocast is not None)
        with (
            self._offloaded.fetched() if self._offloaded else contextlib.nullcontext(),
            torch.set_grad_enabled(learns),
            half,
        ):
            if training and not learns:
                self.module.eval()
            yield
        if training and not learns:
            self.module.train()


def in_fp32(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Floating-point tensors in fp32, others as they are: what losses are computed on."""
    return [t.float() if isinstance(t, Tensor) and t.is_floating_point() else t for t in tensors]


def build_teachers(
    run: RunArgs,
    task: Task,
    device: torch.device | str,
    *,
    fingerprint: str | None = None,
) -> tuple[Teacher, ...]:
    """All teachers of a run, loaded, on the device or beside it; () without --student_model.

    `fingerprint` is the student's tokenizer's. ConfigError, before any weights are read: teachers
    trained with another tokenizer or vocabulary, or without weights. ValueError: weights that do
    not fit.
    """
    check_teachers(run, fingerprint)
    slot, device = None, torch.device(device)
    if run.teachers and run.multi_teacher.teacher_offload == "cpu":
        if device.type == "cuda":
            slot = Slot(device)
        else:
            warn("--teacher_offload=cpu: has no effect on a CPU, where teachers are anyway")
    numbers = range(len(run.teachers))
    alone = mpu.get_data_parallel_world_size() == 1
    if run.teachers and run.multi_teacher.teacher_zero_stage == 3 and alone:
        warn("--teacher_zero_stage=3: has no effect with one data-parallel process")
    return tuple(build_teacher(t_no, run, task, device, slot) for t_no in numbers)


def build_teacher(
    t_no: int, run: RunArgs, task: Task, device: torch.device, slot: Slot | None = None
) -> Teacher:
    """Teacher `t_no` (from 0) with the task's head; with a slot its weights stay on the host."""
    args, group = run.teachers[t_no], run.multi_teacher
    model_args = args.model_args(run.model)
    seed = run.train.seed + 1 + t_no  # of weights that are not loaded: not the student's

    def build() -> nn.Module:
        model = build_model(model_args, task.head, seed=seed)
        return add_head(model, task.head, model_args, seed=seed)

    source = _source(t_no, run)
    if group.mt_has_grad:
        return Teacher(_live(build(), source).to(device), live=True, autocast=_precision(run))
    dtype = torch.float16 if args.fp16 else torch.bfloat16 if args.bf16 else torch.float32
    cuts = group.teacher_zero_stage == 3 and mpu.get_data_parallel_world_size() > 1
    cutter = Partitioner(dtype, device, run.train.batch_size) if cuts else None
    if source is None:
        module = build().to(dtype)
        module = module if slot or cutter else module.to(device)
    else:
        path, options = source
        place = torch.device("cpu") if slot else device
        settle = cutter.cut if cutter else None
        module = load_frozen(build, path, **options, dtype=dtype, device=place, settle=settle)
    if cutter is not None:
        return Teacher(module, wrapped=cutter.wrap(module))
    teacher = Teacher(module)
    if slot is not None:
        teacher.offload(slot)
    return teacher


def _source(t_no: int, run: RunArgs) -> tuple[str, dict[str, str]] | None:
    """(checkpoint, its flag and the part of it) of a teacher; None: random weights."""
    args, group = run.teachers[t_no], run.multi_teacher
    if group.mt_load_from_s is not None:
        options = {"what": "--mt_load_from_s", "part": IN_FILE.format(t_no)}
        return group.mt_load_from_s, options
    if args.random_para:
        return None
    return args.load_pretrained, {"what": group.flag_of(t_no, "load_pretrained")}


def _live(module: nn.Module, source: tuple[str, dict[str, str]] | None) -> nn.Module:
    from distill.engine.checkpoint import load_weights

    if source is not None:
        load_weights(source[0], module, **source[1], any_shards=True)
    return module


def _precision(run: RunArgs) -> torch.dtype | None:
    """What the student's engine computes in, where the weights say nothing of it."""
    if run.parallel.deepspeed:
        return None
    if run.precision.fp16:
        return torch.float16
    return torch.bfloat16 if run.precision.bf16 else None


def check_teachers(run: RunArgs, fingerprint: str | None) -> None:
    """ConfigError with a line for each teacher that cannot go with this student."""
    problems = []
    for t_no in range(len(run.teachers)):
        try:
            _check_source(t_no, run, fingerprint)
        except (FileNotFoundError, ValueError) as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(dict.fromkeys(problems))


def _check_source(t_no: int, run: RunArgs, fingerprint: str | None) -> None:
    """An error where a teacher's checkpoint cannot go with this student."""
    from distill.engine.checkpoint import check_tokenizer, read_config, tag_folder

    args, group = run.teachers[t_no], run.multi_teacher
    path, what = args.load_pretrained, group.flag_of(t_no, "load_pretrained")
    if group.mt_load_from_s is not None:
        path, what = group.mt_load_from_s, "--mt_load_from_s"
    elif args.random_para:
        return
    if path is None:
        raise ConfigError(
            f"{what}: teacher {t_no} has no weights; give its checkpoint, or "
            "--teacher_random_para for a test"
        )
    tag_folder(path, what=what, prefer_best=True)
    if fingerprint is not None:
        check_tokenizer(path, fingerprint, what=what)
    saved = read_config(path) or {}
    _check_prompts(path, what, saved.get("finetuning", {}), run)
    width = saved.get("model", {}).get("vocab_size")
    if width is not None and width != run.model.vocab_size:
        raise ConfigError(
            f"{what}={path}: has {width} vocabulary entries, the student {run.model.vocab_size}; "
            "use the same tokenizer and --make-vocab-size-divisible-by"
        )


def _check_prompts(path: str, what: str, saved: dict[str, Any], run: RunArgs) -> None:
    """ConfigError for a teacher, of this project, without the student's continuous prompts."""
    args = run.finetuning
    if not (args.continuous_prompt and args.cloze_eval):
        return
    wanted = {
        "--num-prompt-tokens": ("num_prompt_tokens", args.num_prompt_tokens),
        "--prefix-prompt": ("prefix_prompt", args.prefix_prompt),
        "--prompt-func": ("prompt_func", args.prompt_func),
    }
    has = saved if saved.get("continuous_prompt") else {}
    for flag, (name, value) in wanted.items():
        if saved and has.get(name, 0) != value:
            raise ConfigError(
                f"{what}={path}: was trained with {flag}={has.get(name, 0)}, this run has {value}; "
                "teacher and student read the same prompts: give the same flags to both"
            )
