"""Checks between groups of flags: everything wrong with a command line, in one ConfigError."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from config.compat import Compat
from config.data import TOKENIZERS_BUILT, parse_split
from config.distill import DistillArgs, TeacherArgs
from config.errors import ConfigError
from config.group import ArgGroup
from config.model import cut_sizes, shape_problems
from config.notes import warn
from config.tasks import FinetuneArgs

if TYPE_CHECKING:
    from config.run import RunArgs

AT_LEAST_ZERO = (lambda x: x >= 0, "must not be negative")
AT_LEAST_ONE = (lambda x: x >= 1, "must be at least 1")
POSITIVE = (lambda x: x > 0, "must be positive")
FRACTION = (lambda x: 0 <= x <= 1, "must be in [0, 1]")
BELOW_ONE = (lambda x: 0 <= x < 1, "must be in [0, 1)")

#: Group of RunArgs -> field -> (test, what is right). None passes.
RANGES: dict[str, dict[str, tuple[Callable[[Any], bool], str]]] = {
    "model": {
        "attention_scale": POSITIVE,
        "mem_length": AT_LEAST_ZERO,
        "vocab_size": AT_LEAST_ONE,
        "make_vocab_size_divisible_by": AT_LEAST_ONE,
    },
    "data": {
        "seq_length": (lambda x: x >= 4, "must be at least 4"),
        "num_workers": AT_LEAST_ZERO,
        "non_sentence_start": FRACTION,
    },
    "blocks": {
        "bert_prob": FRACTION,
        "single_span_prob": FRACTION,
        "avg_block_length": AT_LEAST_ONE,
    },
    "train": {
        "batch_size": AT_LEAST_ONE,
        "gradient_accumulation_steps": AT_LEAST_ONE,
        "epochs": AT_LEAST_ZERO,
        "train_iters": AT_LEAST_ZERO,
        "clip_grad": AT_LEAST_ZERO,
        "seed": AT_LEAST_ZERO,
        "log_interval": AT_LEAST_ONE,
        "max_bad_steps": AT_LEAST_ONE,
    },
    "optim": {
        "lr": AT_LEAST_ZERO,
        "weight_decay": AT_LEAST_ZERO,
        "adam_beta1": BELOW_ONE,
        "adam_beta2": BELOW_ONE,
        "adam_eps": POSITIVE,
        "lr_decay_iters": AT_LEAST_ONE,
        "lr_decay_ratio": FRACTION,
        "warmup": FRACTION,
    },
    "precision": {"loss_scale": POSITIVE},
    "checkpoint": {
        "save_interval": AT_LEAST_ONE,
        "save_epoch": AT_LEAST_ONE,
        "save_interval_time": AT_LEAST_ZERO,
    },
    "parallel": {
        "model_parallel_size": AT_LEAST_ONE,
        "zero_stage": (lambda x: x in (0, 1, 2), "must be 0, 1 or 2; 3 is not supported yet"),
    },
    "evaluation": {
        "eval_batch_size": AT_LEAST_ONE,
        "eval_iters": AT_LEAST_ONE,
        "eval_interval": AT_LEAST_ONE,
        "eval_epoch": AT_LEAST_ONE,
    },
    "finetuning": {"pattern_id": AT_LEAST_ZERO, "length_penalty": AT_LEAST_ZERO},
    "distill": {
        "distill_soft_rate": AT_LEAST_ZERO,
        "distill_hard_rate": AT_LEAST_ZERO,
        "distill_temperature": POSITIVE,
    },
}


def check_run(run: "RunArgs") -> list[str]:
    """Every problem that flags alone show: `--flag=value: what is wrong; what would be right`."""
    checks = (_ranges, _shapes, _length, _data, _precision, _processes, _distillation)
    return [problem for check in checks for problem in check(run)]


def _ranges(run: "RunArgs") -> Iterator[str]:
    for key, fields in RANGES.items():
        group = getattr(run, key)
        spelling = {f.name: name for name, f in group.flags().items()}
        for name, (holds, right) in fields.items():
            value = getattr(group, name)
            if value is not None and not holds(value):
                yield f"{spelling[name]}={value}: {right}"


def _shapes(run: "RunArgs") -> Iterator[str]:
    """Sizes of the teachers (the student has checked its own), and what a shape cannot do."""
    for teacher in run.teachers:
        yield from shape_problems(teacher)
    fast = run.program == "finetune" and run.finetuning.cloze_eval and run.finetuning.fast_decode
    for flag, group in (
        ("--ib_word_emb", run.model),
        *(("--teacher_ib_word_emb", teacher) for teacher in run.teachers),
    ):
        if group.ib_word_emb and run.model.mem_length > 0:
            yield f"{flag}={group.ib_word_emb}: needs whole samples; give --mem-length=0"
        if group.ib_word_emb and fast:
            yield f"{flag}={group.ib_word_emb}: needs whole samples; leave out --fast-decode"


def _length(run: "RunArgs") -> Iterator[str]:
    """How long a run is, and how long its samples are."""
    longest = run.model.max_position_embeddings
    if run.data.seq_length > longest:
        yield (
            f"--seq-length={run.data.seq_length}: is longer than "
            f"--max-position-embeddings={longest}; source tokens have a position each"
        )
    if run.program == "pretrain" and run.train.train_iters == 0:
        yield "--train-iters=0: nothing to train; give the number of optimizer steps"
    if run.program == "finetune" and run.train.epochs is None and run.train.train_iters == 0:
        yield "--epochs: missing; give the passes over the training set, 0 to evaluate only"
    if run.optim.lr_decay_style == "exponential":
        yield (
            "--lr-decay-style=exponential: is not supported; the seed kept the rate constant: "
            "use --lr-decay-style=constant"
        )


def _data(run: "RunArgs") -> Iterator[str]:
    """What a run reads."""
    if run.tokenizer.tokenizer_type not in TOKENIZERS_BUILT:
        yield (
            f"--tokenizer-type={run.tokenizer.tokenizer_type}: is not supported yet; "
            f"use {' or '.join(TOKENIZERS_BUILT)}"
        )
    if run.program == "finetune":
        if run.finetuning.task is None:
            yield "--task: missing; give the name of the task, as --task=SST-2"
        if run.data.data_dir is None:
            yield "--data-dir: missing; give the folder of the task"
        return
    if not run.data.train_data:
        yield "--train-data: missing; give names of config/corpora.json, files or folders"
    if 0 <= run.blocks.bert_prob < 1:
        yield (
            f"--bert-prob={run.blocks.bert_prob}: samples of the other kinds (gap sentences, "
            "generation) are not supported yet; give --bert-prob=1"
        )
    try:
        parse_split(run.data.split)
    except ConfigError as error:
        yield from error.problems


def _precision(run: "RunArgs") -> Iterator[str]:
    if run.precision.fp16 and run.precision.bf16:
        yield "--fp16 and --bf16: choose one"
    for teacher in run.teachers:
        if teacher.fp16 and teacher.bf16:
            yield "--teacher_fp16 and --teacher_bf16: choose one"


def _processes(run: "RunArgs") -> Iterator[str]:
    if run.parallel.deepspeed and run.parallel.deepspeed_config is None:
        yield (
            "--deepspeed: needs --deepspeed_config=FILE, as config/config_block_base.json; "
            "without --deepspeed plain PyTorch trains"
        )
    if run.parallel.deepspeed_config is not None and not run.parallel.deepspeed:
        yield (
            f"--deepspeed_config={run.parallel.deepspeed_config}: needs --deepspeed; "
            "leave it out to train with plain PyTorch"
        )


def _distillation(run: "RunArgs") -> Iterator[str]:
    try:
        Compat.parse(run.distill.compat)
    except ConfigError as error:
        yield from error.problems
    for teacher in run.teachers:
        if teacher.load_pretrained is None and not teacher.random_para:
            yield (
                "--teacher_load_pretrained: missing; give the teacher's checkpoint, "
                "or --teacher_random_para for random weights"
            )
    stage = "pt" if run.program == "pretrain" else "ft"
    switches = [f"distill_{stage}_{kind}" for kind in ("soft", "hard")]
    names = [*switches, "distill_logits_parallel"]
    if run.distill.student_model == "kd" and not any(getattr(run.distill, n) for n in names):
        yield f"--student_model=kd: no loss is on; add {' or '.join('--' + s for s in switches)}"


def check_hardware(run: "RunArgs", *, cuda: bool, world_size: int) -> None:
    """ConfigError with all that these processes on this kind of device cannot do."""
    problems = [] if cuda else list(_without_gpu(run))
    problems += _model_parallel(run, world_size)
    if problems:
        raise ConfigError(problems)


def _without_gpu(run: "RunArgs") -> Iterator[str]:
    from_json = run.deepspeed is not None and not run.parallel.args_to_ds_config
    if run.precision.fp16 and from_json and "--fp16" not in run.flags:
        yield (
            f"--deepspeed_config={run.parallel.deepspeed_config}: enables fp16, which needs a GPU; "
            "use --args_to_ds_config with --bf16 (or without, for fp32), or a JSON as "
            "config/config_block_tiny4_fp32.json"
        )
    elif run.precision.fp16:
        yield "--fp16: needs a GPU; use --bf16, or leave both out for fp32"
    if any(teacher.fp16 for teacher in run.teachers):
        yield "--teacher_fp16: needs a GPU; use --teacher_bf16, or leave both out for fp32"
    if run.parallel.distributed_backend == "nccl":
        yield "--distributed-backend=nccl: needs a GPU; use gloo, or leave it out"


def _model_parallel(run: "RunArgs", world_size: int) -> Iterator[str]:
    size = run.parallel.model_parallel_size
    multiple = run.model.make_vocab_size_divisible_by
    for group in (run.model, *run.teachers):
        spelling = {f.name: name for name, f in group.flags().items()}
        for name in cut_sizes(group):
            if getattr(group, name) % size:
                yield (
                    f"--model-parallel-size={size}: does not divide "
                    f"{spelling[name]}={getattr(group, name)}"
                )
    if multiple % size:
        yield (
            f"--model-parallel-size={size}: does not divide the padded vocabulary; give "
            f"--make-vocab-size-divisible-by={multiple * size} (now {multiple})"
        )
    if world_size % size:
        yield (
            f"--model-parallel-size={size}: does not divide the {world_size} process(es); "
            "start a multiple of it"
        )


#: Flags -> (when they have no effect, why).
IDLE: tuple[tuple[tuple[str, ...], Callable[["RunArgs"], bool], str], ...] = (
    (("--vocab-size",), lambda run: True, "on a run with a tokenizer, which decides"),
    (
        ("--zero_stage", "--cpu_offload", "--args_to_ds_config"),
        lambda run: not run.parallel.deepspeed,
        "without --deepspeed",
    ),
    (
        ("--loss-scale",),
        lambda run: not run.precision.fp16,
        "without --fp16",
    ),
    (
        ("--checkpoint-num-layers",),
        lambda run: not run.model.checkpoint_activations,
        "without --checkpoint-activations",
    ),
    (
        ("--ib_hidden_size", "--ib_ffn_num"),
        lambda run: not run.model.inverted_bottleneck_mode,
        "without --inverted_bottleneck_mode",
    ),
    (
        ("--teacher_ib_hidden_size", "--teacher_ib_ffn_num"),
        lambda run: not any(t.inverted_bottleneck_mode for t in run.teachers),
        "without --teacher_inverted_bottleneck_mode",
    ),
    (
        ("--lr-decay-ratio",),
        lambda run: run.optim.lr_decay_style == "constant",
        "with --lr-decay-style=constant",
    ),
    (
        ("--multi-token", "--length-penalty", "--adapet", "--fast-decode", "--pattern-id"),
        lambda run: run.program == "finetune" and not run.finetuning.cloze_eval,
        "without --cloze-eval",
    ),
    (
        ("--pool-token",),
        lambda run: run.program == "finetune" and run.finetuning.cloze_eval,
        "with --cloze-eval",
    ),
    (
        ("--epochs",),
        lambda run: run.program == "pretrain",
        "on pretraining, whose length is --train-iters",
    ),
    (
        ("--train-iters",),
        lambda run: run.program == "finetune" and run.train.epochs is not None,
        "with --epochs",
    ),
    (
        ("--eval-epoch", "--save-epoch", "--ft_final_save"),
        lambda run: run.program == "pretrain",
        "on pretraining",
    ),
    (
        ("--train-data", "--valid-data", "--test-data", "--split", "--bert-prob")
        + ("--single-span-prob", "--avg-block-length", "--no-shuffle-block"),
        lambda run: run.program == "finetune",
        "on fine-tuning",
    ),
    (
        tuple("--distill_ft_" + kind for kind in ("soft", "hard", "soft_kl", "soft_mse")),
        lambda run: run.program == "pretrain",
        "on pretraining",
    ),
    (
        tuple("--distill_pt_" + kind for kind in ("soft", "hard", "soft_ce", "soft_mse")),
        lambda run: run.program == "finetune",
        "on fine-tuning",
    ),
    (
        ("--distill_logit_mask_pad", "--distill_logit_mse"),
        lambda run: not run.distill.distill_logits_parallel,
        "without --distill_logits_parallel",
    ),
    (
        tuple(f for f in FinetuneArgs.flags() if f not in ("--finetune", "--fast-decode")),
        lambda run: run.program == "pretrain",
        "on pretraining",
    ),
    (
        tuple(f for f in DistillArgs.flags() if f not in ("--student_model", "--compat"))
        + tuple(TeacherArgs.flags()),
        lambda run: run.distill.student_model is None,
        "without --student_model",
    ),
)


def warn_unused(run: "RunArgs", methods: Mapping[str, type[ArgGroup]]) -> None:
    """One warning for each flag that was given and does nothing in this run."""
    told = set()
    for flags, idle, why in IDLE:
        for flag in flags:
            if flag in run.flags and flag not in told and idle(run):
                told.add(flag)
                warn(f"{flag}: has no effect {why}")
    for flag in _of_other_methods(run, methods.values()):
        warn(f"{flag}: has no effect with --student_model={run.distill.student_model}")


def _of_other_methods(run: "RunArgs", groups: Iterable[type[ArgGroup]]) -> list[str]:
    own = type(run.method).flags()
    others = dict.fromkeys(flag for group in groups for flag in group.flags())
    return [flag for flag in others if flag in run.flags and flag not in own]
