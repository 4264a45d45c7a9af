"""Checks between groups of flags: everything wrong with a command line, in one ConfigError."""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from config.block_steps import block_step_problems
from config.compat import Compat
from config.consecutive import consecutive_problems
from config.data import TOKENIZERS_BUILT, block_problems, parse_split, weight_problems
from config.deepspeed import setting_of
from config.errors import ConfigError
from config.model import cut_sizes
from config.multi_task import multi_task_problems
from config.recompute import recomputation_problems
from config.shape_checks import shape_checks
from config.text_checks import is_lm, is_seq2seq, text_problems
from config.vocabulary import map_problems
from config.zero import teacher_zero_problems, zero_problems, zero_without_gpu

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
        "eval_seq_length": (lambda x: x >= 4, "must be at least 4"),
        "num_workers": AT_LEAST_ZERO,
        "multi_task_ratio": FRACTION,
        "multi_seq_length": (lambda x: x >= 16, "must be at least 16"),
        "multi_batch_size": AT_LEAST_ONE,
        "non_sentence_start": FRACTION,
    },
    "blocks": {
        "bert_prob": FRACTION,
        "single_span_prob": FRACTION,
        "avg_block_length": AT_LEAST_ONE,
        "gap_sentence_prob": FRACTION,
        "gap_sentence_ratio": FRACTION,
        "gpt_infill_prob": FRACTION,
        "gpt_min_ratio": FRACTION,
        "short_seq_prob": FRACTION,
        "block_mask_prob": FRACTION,
        "context_mask_ratio": FRACTION,
    },
    "train": {
        "batch_size": AT_LEAST_ONE,
        "gradient_accumulation_steps": AT_LEAST_ONE,
        "epochs": AT_LEAST_ZERO,
        "train_iters": AT_LEAST_ZERO,
        "clip_grad": AT_LEAST_ZERO,
        "seed": (lambda x: 0 <= x < 2**63, "must be in [0, 2^63)"),
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
        "zero_stage": (lambda x: x in (0, 1, 2, 3), "must be 0, 1, 2 or 3"),
    },
    "evaluation": {
        "eval_batch_size": AT_LEAST_ONE,
        "eval_iters": AT_LEAST_ONE,
        "eval_interval": AT_LEAST_ONE,
        "eval_epoch": AT_LEAST_ONE,
    },
    "finetuning": {
        "pattern_id": AT_LEAST_ZERO,
        "block_lm_ratio": AT_LEAST_ZERO,
        "length_penalty": AT_LEAST_ZERO,
        "segment_length": AT_LEAST_ZERO,
        "num_prompt_tokens": AT_LEAST_ZERO,
        "prefix_prompt": AT_LEAST_ZERO,
        "tune_prefix_layers": AT_LEAST_ONE,
    },
    "text": {
        "label_smoothing": BELOW_ONE,
        "blank_maskratio": FRACTION,
        "num_beams": AT_LEAST_ONE,
        "no_repeat_ngram_size": AT_LEAST_ZERO,
        "min_tgt_length": AT_LEAST_ZERO,
        "temperature": POSITIVE,
        "top_k": AT_LEAST_ZERO,
        "top_p": FRACTION,
        "out_seq_length": AT_LEAST_ONE,
        "overlapping_eval": AT_LEAST_ONE,
    },
    "distill": {
        "distill_soft_rate": AT_LEAST_ZERO,
        "distill_hard_rate": AT_LEAST_ZERO,
        "distill_temperature": POSITIVE,
    },
}


def check_run(run: "RunArgs") -> list[str]:
    """Every problem that flags alone show: `--flag=value: what is wrong; what would be right`."""
    checks = (_finite, _ranges, shape_checks, _length, _data, _precision, _processes, _distillation)
    checks += (text_problems, map_problems, consecutive_problems)
    return [problem for check in checks for problem in check(run)]


def check_values(run: "RunArgs") -> list[str]:
    """Problems of single values, shapes and number formats: for programs that train nothing."""
    checks = (_finite, _ranges, shape_checks, _precision)
    return [problem for check in checks for problem in check(run)]


def _finite(run: "RunArgs") -> Iterator[str]:
    """Numbers that are infinite or NaN, from flags and from DeepSpeed's JSON."""
    groups = {key: getattr(run, key) for key in RANGES} | {"method": run.method}
    groups |= {f"teacher {number}": group for number, group in enumerate(run.teachers)}
    groups |= run.mixed
    for key, group in groups.items():
        for spelling, field in group.flags().items():
            value = getattr(group, field.name)
            if _is_infinite(value):
                file = setting_of(run, key, field.name)
                yield f"{file or spelling}={value}: must be a finite number"


def _is_infinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _ranges(run: "RunArgs") -> Iterator[str]:
    for key, fields in RANGES.items():
        group = getattr(run, key)
        spelling = {f.name: name for name, f in group.flags().items()}
        for name, (holds, right) in fields.items():
            value = getattr(group, name)
            if value is not None and not _is_infinite(value) and not holds(value):
                file = setting_of(run, key, name)
                yield f"{file or spelling[name]}={value}: {right}"


def _length(run: "RunArgs") -> Iterator[str]:
    """How long a run is, and how long its samples are."""
    longest = run.model.max_position_embeddings
    for flag, length in (
        ("--seq-length", 0 if is_seq2seq(run) else run.data.seq_length),  # it has its own
        ("--eval-seq-length", run.data.eval_seq_length or 0),
        ("--multi-seq-length", run.data.multi_seq_length or 0),
    ):
        if length > longest:
            yield (
                f"{flag}={length}: is longer than "
                f"--max-position-embeddings={longest}; source tokens have a position each"
            )
    for t_no, teacher in enumerate(run.teachers):
        if run.data.seq_length > teacher.max_position_embeddings and not is_seq2seq(run):
            yield (
                f"--seq-length={run.data.seq_length}: is longer than the teacher's "
                f"{_flag(run, t_no, 'max_position_embeddings')}={teacher.max_position_embeddings}; "
                "it has learned nothing about later positions"
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
    if run.blocks.sentinel_token and run.tokenizer.tokenizer_type != "BertWordPieceTokenizer":
        yield "--sentinel-token: is built for --tokenizer-type=BertWordPieceTokenizer; leave it out"
    if run.program == "finetune":
        if run.finetuning.task is None:
            yield "--task: missing; give the name of the task, as --task=SST-2"
        if run.data.data_dir is None and not is_lm(run):
            yield "--data-dir: missing; give the folder of the task"
        yield from _patterns(run)
        yield from block_step_problems(run)
        return
    if not run.data.train_data:
        yield "--train-data: missing; give names of config/corpora.json, files or folders"
    yield from block_problems(run.blocks)
    yield from multi_task_problems(run)
    yield from weight_problems(run.data)
    try:
        parse_split(run.data.split)
    except ConfigError as error:
        yield from error.problems


def _patterns(run: "RunArgs") -> Iterator[str]:
    """What patterns with prompts or parts of answers need."""
    args = run.finetuning
    if args.continuous_prompt and not args.cloze_eval:
        yield "--continuous-prompt: a classification head has no pattern; add --cloze-eval"
    elif args.continuous_prompt and args.num_prompt_tokens + args.prefix_prompt == 0:
        yield "--continuous-prompt: how many? give --num-prompt-tokens or --prefix-prompt"
    if args.segment_length > 0 and args.fast_decode and args.cloze_eval:
        yield (
            f"--segment-length={args.segment_length}: has a context for each part of an answer; "
            "leave out --fast-decode"
        )


def _precision(run: "RunArgs") -> Iterator[str]:
    if run.precision.fp16 and run.precision.bf16:
        yield "--fp16 and --bf16: choose one"
    for t_no, teacher in enumerate(run.teachers):
        if teacher.fp16 and teacher.bf16:
            yield f"{_flag(run, t_no, 'fp16')} and {_flag(run, t_no, 'bf16')}: choose one"


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
    yield from zero_problems(run)
    yield from recomputation_problems(run)
    yield from teacher_zero_problems(run)


def _distillation(run: "RunArgs") -> Iterator[str]:
    try:
        Compat.parse(run.distill.compat)
    except ConfigError as error:
        yield from error.problems
    yield from run.distill.passes_that_never_come()
    yield from _teachers(run)
    if run.distill.student_model == "kd" and not _kd_losses(run):
        stage = "pt" if run.program == "pretrain" else "ft"
        yield (
            f"--student_model=kd: no loss is on; add --distill_{stage}_soft or "
            f"--distill_{stage}_hard, at a rate above 0 (--distill_soft_rate, --distill_hard_rate)"
        )


def _kd_losses(run: "RunArgs") -> bool:
    """Whether any loss of --student_model=kd is on, and weighs something."""
    args = run.distill
    if run.program == "pretrain":
        soft, hard = args.distill_pt_soft, args.distill_pt_hard
    else:
        soft, hard = args.distill_ft_soft, args.distill_ft_hard
    weighed = (soft and args.distill_soft_rate != 0) or (hard and args.distill_hard_rate != 0)
    return weighed or args.distill_logits_parallel or run.multi_teacher.trains_teachers_alone


def _flag(run: "RunArgs", t_no: int, name: str) -> str:
    """The flag that says a field of a teacher."""
    return run.multi_teacher.flag_of(t_no, name)


def _teachers(run: "RunArgs") -> Iterator[str]:
    """Weights of every teacher, and what trained or absent ones need."""
    group = run.multi_teacher
    for t_no, teacher in enumerate(run.teachers):
        if teacher.load_pretrained is None and not teacher.random_para and not group.mt_load_from_s:
            entry = f"--mt_load_pretrained={group.mt_load_pretrained}: entry {t_no} is empty"
            yield (
                (entry if group.mt_load_pretrained else "--teacher_load_pretrained: missing")
                + "; give the teacher's checkpoint, or --teacher_random_para for random weights"
            )
    if run.teachers and group.mt_has_grad:
        yield from _live_teachers(run)
    if run.teachers and group.student_use_empty_glm:
        yield from _no_student(run)


def _live_teachers(run: "RunArgs") -> Iterator[str]:
    for t_no, teacher in enumerate(run.teachers):
        for name in ("fp16", "bf16"):
            if getattr(teacher, name):
                yield (
                    f"{_flag(run, t_no, name)}: a teacher that is trained (--mt_has_grad) has the "
                    f"run's precision; leave it out, and give --{name}"
                )
        if not teacher.runs:
            yield (
                f"--mt_disable_operation={run.multi_teacher.mt_disable_operation}: teacher {t_no} "
                "is trained (--mt_has_grad), which needs its forward; give 0 for it"
            )
    if run.multi_teacher.teacher_offload != "none":
        yield (
            f"--teacher_offload={run.multi_teacher.teacher_offload}: teachers that are trained "
            "(--mt_has_grad) stay on the device; leave one of them out"
        )


def _no_student(run: "RunArgs") -> Iterator[str]:
    """What a run without a student cannot do."""
    flag, group, args = "--student_use_empty_glm", run.multi_teacher, run.distill
    if not group.trains_teachers_alone:
        yield (
            f"{flag}: nothing would be trained; add --mt_has_grad and --mt_has_loss, so that the "
            "teachers learn from the data"
        )
    stage = "pt" if run.program == "pretrain" else "ft"
    for name, given in (
        (f"--distill_{stage}_soft", getattr(args, f"distill_{stage}_soft")),
        ("--distill_logits_parallel", args.distill_logits_parallel),
        ("--distil_analysis_inter", args.distil_analysis_inter),
    ):
        if given:
            yield f"{name}: there is no student to compare ({flag}); leave it out"
    for name, given in (
        ("--load-pretrained", run.checkpoint.load_pretrained),
        ("--student_truncate_tn", args.student_truncate_tn),
    ):
        if given is not None:
            yield f"{name}={given}: there is no student to load ({flag}); leave it out"


def check_hardware(run: "RunArgs", *, cuda: bool, world_size: int) -> None:
    """ConfigError with all that these processes on this kind of device cannot do."""
    problems = [] if cuda else list(_without_gpu(run))
    problems += _model_parallel(run, world_size)
    if problems:
        raise ConfigError(dict.fromkeys(problems))


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
    for t_no, teacher in enumerate(run.teachers):
        if teacher.fp16:
            fp16 = _flag(run, t_no, "fp16")
            bf16 = "--teacher_bf16" if fp16.startswith("--teacher") else "--mt_bf16"
            yield f"{fp16}: needs a GPU; use {bf16}, or leave both out for fp32"
    yield from zero_without_gpu(run)
    if run.parallel.distributed_backend == "nccl":
        yield "--distributed-backend=nccl: needs a GPU; use gloo, or leave it out"


def _model_parallel(run: "RunArgs", world_size: int) -> Iterator[str]:
    size = run.parallel.model_parallel_size
    for t_no, group in enumerate((run.model, *run.teachers), start=-1):
        spelling = {f.name: name for name, f in group.flags().items()}
        for name in cut_sizes(group):
            if getattr(group, name) % size:
                flag = spelling[name] if t_no < 0 else _flag(run, t_no, name)
                yield (
                    f"--model-parallel-size={size}: does not divide {flag}={getattr(group, name)}"
                )
    if world_size % size:
        yield (
            f"--model-parallel-size={size}: does not divide the {world_size} process(es); "
            "start a multiple of it"
        )
