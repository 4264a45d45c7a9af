"""Flags that were given and do nothing: a warning each reason, on the first process."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from config.data import BlockLMArgs
from config.distill import DistillArgs, TeacherArgs
from config.group import ArgGroup
from config.notes import warn
from config.recompute import warn_idle_recomputation
from config.tasks import FinetuneArgs, is_one_of
from config.teachers import MultiTeacherArgs
from config.text import TextArgs
from config.text_checks import is_lm, is_seq2seq
from config.vocabulary import warn_idle_map
from config.zero import warn_idle_zero

if TYPE_CHECKING:
    from config.run import RunArgs

#: Flags of samples that also decide which tokens there are.
VOCABULARY = ("--sentinel-token", "--block-mask-prob", "--context-mask-ratio", "--masked-lm")
BUILDING = ("--student_build_map_vocab", "--student_map_vocab_ranking")
BUILDING += ("--student_map_vocab_tn", "--student_map_vocab_method")
MULTI_TASK = ("--multi-task-data", "--multi-seq-length", "--multi-batch-size")
#: Of DistillArgs, what a model that is trained alone has too.
ALONE = ("--student_model", "--compat", "--student_build_map_vocab", "--student_map_vocab_ranking")

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
        ("--checkpoint-num-layers", "--deepspeed-activation-checkpointing"),
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
        ("--unmap_vocab_output", "--distill_logit_mask_map", *BUILDING),
        lambda run: not run.model.map_vocab_size,
        "without --map_vocab_size",
    ),
    (
        BUILDING,
        lambda run: bool(run.checkpoint.load or run.checkpoint.load_pretrained),
        "with a checkpoint, whose vocabulary map is used",
    ),
    (
        BUILDING,
        lambda run: not run.distill.student_build_map_vocab,
        "without --student_build_map_vocab",
    ),
    (
        ("--student_map_vocab_method",),
        lambda run: run.distill.student_map_vocab_tn is None,
        "without --student_map_vocab_tn",
    ),
    (
        ("--switch-linear",),
        lambda run: run.checkpoint.load is None,
        "without --load",
    ),
    (
        ("--adam-beta1", "--adam-beta2", "--adam-eps"),
        lambda run: run.optim.optimizer != "adam",
        "with --optimizer=adafactor",
    ),
    (
        ("--mem-length",),
        lambda run: run.model.mem_length > 0 and not run.remembers,
        "but on pretraining with --transformer-xl: other samples do not continue each other",
    ),
    (
        tuple(f for f in BlockLMArgs.flags() if f not in ("--block-lm", *VOCABULARY))
        + ("--non-sentence-start", "--sample-one-document", "--no-block-position"),
        lambda run: run.reads_text,
        "on text that is read from left to right (--transformer-xl without --block-lm)",
    ),
    (
        ("--lr-decay-ratio",),
        lambda run: run.optim.lr_decay_style == "constant",
        "with --lr-decay-style=constant",
    ),
    (
        ("--multi-token", "--adapet", "--fast-decode", "--pattern-id")
        + ("--segment-length", "--wsc-negative"),
        lambda run: run.program == "finetune" and not run.finetuning.cloze_eval,
        "without --cloze-eval",
    ),
    (
        ("--length-penalty",),
        lambda run: (
            run.program == "finetune" and not run.finetuning.cloze_eval and not is_seq2seq(run)
        ),
        "without --cloze-eval or a sequence-to-sequence task",
    ),
    (
        tuple(TextArgs.flags()),
        lambda run: run.program == "pretrain",
        "on pretraining",
    ),
    (
        ("--src-seq-length", "--tgt-seq-length", "--label-smoothing", "--num-beams")
        + ("--no-repeat-ngram-size", "--min-tgt-length", "--select-topk", "--blank-maskratio"),
        lambda run: not is_seq2seq(run),
        "without a sequence-to-sequence task",
    ),
    (
        ("--blank-maskratio",),
        lambda run: not is_one_of(run.finetuning.task, ("blank",)),
        "without --task=blank",
    ),
    (
        ("--select-topk",),
        lambda run: "W16" not in run.compat,
        "without --compat=W16: a beam always goes on with its likeliest tokens",
    ),
    (
        ("--temperature", "--top_k", "--top_p", "--out-seq-length"),
        lambda run: True,
        "on training; scripts/generate.py draws tokens",
    ),
    (
        ("--overlapping-eval", "--unidirectional"),
        lambda run: not is_lm(run),
        "without a task of language modelling",
    ),
    (
        ("--eval-seq-length",),
        lambda run: run.program == "finetune" and not is_lm(run),
        "on fine-tuning",
    ),
    (
        ("--overlapping-eval",),
        lambda run: is_one_of(run.finetuning.task, ("lambda", "lambada")),
        "on LAMBADA, whose texts have one window",
    ),
    (
        ("--data-dir",),
        is_lm,
        "on a task of language modelling, which reads --valid-data",
    ),
    (
        ("--seq-length",),
        is_seq2seq,
        "with a sequence-to-sequence task, which has --src-seq-length and --tgt-seq-length",
    ),
    (
        ("--cloze-eval", "--pool-token", "--loss-func", "--multi-token", "--pattern-id")
        + ("--adapet", "--fast-decode"),
        lambda run: is_seq2seq(run) or is_lm(run),
        "on a task whose answers are texts",
    ),
    (
        ("--valid-data", "--text-key"),
        lambda run: run.program == "finetune" and not is_lm(run),
        "on fine-tuning",
    ),
    (
        ("--loss-func",),
        lambda run: run.finetuning.adapet and run.finetuning.cloze_eval,
        "with --adapet, a loss of its own",
    ),
    (
        ("--num-prompt-tokens", "--prefix-prompt", "--prompt-func", "--prompt-init"),
        lambda run: run.program == "finetune" and not run.finetuning.continuous_prompt,
        "without --continuous-prompt",
    ),
    (
        ("--tune-prefix-layers",),
        lambda run: run.program == "finetune" and not run.finetuning.freeze_transformer,
        "without --freeze-transformer",
    ),
    (
        ("--wsc-negative",),
        lambda run: (
            run.program == "finetune" and run.finetuning.loss_func not in ("mix", "generative")
        ),
        "without --loss-func=mix or generative",
    ),
    (
        ("--validation-metric", "--custom_first_eval", "--eval-epoch"),
        lambda run: run.program == "finetune" and run.finetuning.no_validation,
        "with --no-validation",
    ),
    (
        ("--pool-token",),
        lambda run: run.program == "finetune" and run.finetuning.cloze_eval,
        "with --cloze-eval",
    ),
    (
        ("--gap-sentence-ratio",),
        lambda run: run.program == "pretrain" and run.blocks.gap_sentence_prob == 0,
        "without --gap-sentence-prob",
    ),
    (
        ("--gpt-infill-prob", "--gpt-min-ratio"),
        lambda run: run.program == "pretrain" and run.blocks.gpt_prob < 1e-9,
        "with --bert-prob and --gap-sentence-prob that are 1 together",
    ),
    (
        ("--no-shuffle-block", "--no-block-position"),
        lambda run: run.program == "pretrain" and run.blocks.masked_lm,
        "with --masked-lm",
    ),
    (
        ("--fix-command-token",),
        lambda run: run.tokenizer.tokenizer_type != "ChineseSPTokenizer",
        "without --tokenizer-type=ChineseSPTokenizer",
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
        ("--eval-epoch", "--save-epoch", "--ft_final_save")
        + ("--custom_first_eval", "--custom_tmp_result"),
        lambda run: run.program == "pretrain",
        "on pretraining",
    ),
    (
        MULTI_TASK,
        lambda run: run.program == "pretrain" and run.data.multi_task_ratio == 0,
        "without --multi-task-ratio above 0",
    ),
    (
        tuple(flag for flag in BlockLMArgs.flags() if flag not in ("--block-lm", *VOCABULARY)),
        lambda run: run.program == "finetune" and run.finetuning.block_lm_ratio == 0,
        "on fine-tuning without --block-lm-ratio",
    ),
    (
        ("--train-data", "--test-data", "--split", "--train-data-weights")
        + ("--load-splits", "--save-splits", "--save-test-data", "--filter-english")
        + ("--eval-interval", "--eval-iters", "--num-workers", "--cache-dir")
        + ("--sample-one-document", "--non-sentence-start", *MULTI_TASK, "--multi-task-ratio"),
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
        ("--ignore_first_backward_gard",),
        lambda run: run.distill.forward_repeat_num == 0,
        "without --forward_repeat_num",
    ),
    (
        ("--distill_random_data_n", "--distill_random_data_method"),
        lambda run: not run.distill.distill_random_data,
        "without --distill_random_data",
    ),
    (
        ("--distil_analysis_frcn",),
        lambda run: not run.distill.distil_analysis_inter,
        "without --distil_analysis_inter",
    ),
    (
        ("--student_init_layers",),
        lambda run: run.distill.student_truncate_tn is None,
        "without --student_truncate_tn",
    ),
    (
        ("--mt_load_pretrained", "--teacher_load_pretrained"),
        lambda run: run.multi_teacher.mt_load_from_s is not None and bool(run.teachers),
        "with --mt_load_from_s",
    ),
    (
        tuple(f for f in FinetuneArgs.flags() if f not in ("--finetune", "--fast-decode")),
        lambda run: run.program == "pretrain",
        "on pretraining",
    ),
    (
        tuple(f for f in DistillArgs.flags() if f not in ALONE)
        + tuple(TeacherArgs.flags())
        + tuple(MultiTeacherArgs.flags()),
        lambda run: run.distill.student_model is None,
        "without --student_model",
    ),
)


def warn_unused(run: "RunArgs", groups: Iterable[type[ArgGroup]]) -> None:
    """One warning for each reason why flags that were given do nothing in this run.

    `groups`: those of all methods and combiners.
    """
    told: set[str] = set()
    for flags, idle, why in IDLE:
        given = [flag for flag in flags if flag in run.flags and flag not in told]
        if given and idle(run):
            told.update(given)
            _tell(given, why)
    for shared, own in _overruled(run):
        if shared not in told:
            _tell([shared], f"with {own}, which has a value for every teacher")
    for group in _chosen(run):
        for flag, needed in type(group).needs.items():
            if flag in run.flags and needed not in run.flags:
                _tell([flag], f"without {needed}")
    combiner = run.multi_teacher.multi_teacher_model
    for flag in _of_others(run, groups):
        chosen = f"--student_model={run.distill.student_model}"
        _tell([flag], f"with {chosen}" + (f" --multi_teacher_model={combiner}" if combiner else ""))
    warn_idle_zero(run)
    warn_idle_map(run)
    warn_idle_recomputation(run)


def _overruled(run: "RunArgs") -> Iterable[tuple[str, str]]:
    """Shared flags that were given, of which every teacher has its own: (flag, the list's)."""
    for spelling, f in TeacherArgs.flags().items() if run.teachers else ():
        words = run.multi_teacher.words(f.name)
        if spelling in run.flags and words and all(words):
            yield spelling, "--mt_" + f.name


def _tell(flags: Sequence[str], why: str) -> None:
    warn(f"{', '.join(flags)}: {'has' if len(flags) == 1 else 'have'} no effect {why}")


def _chosen(run: "RunArgs") -> list[ArgGroup]:
    return [run.method, *run.mixed.values(), run.combiner, *run.combined.values()]


def _of_others(run: "RunArgs", groups: Iterable[type[ArgGroup]]) -> list[str]:
    own = {flag for group in _chosen(run) for flag in type(group).flags()}
    others = dict.fromkeys(flag for group in groups for flag in group.flags())
    return [flag for flag in others if flag in run.flags and flag not in own]
