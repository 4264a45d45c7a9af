"""Fine-tuning: the task, its pattern and its head."""

import re
from dataclasses import dataclass

from config.group import ArgGroup, flag

#: Tasks whose answers are texts; all others choose.
SEQ2SEQ_TASKS = (
    *("cnn_dm", "cnn_dm_original", "gigaword", "xsum", "customization"),
    *("squad_generation", "squad_v1", "cmrc", "blank", "extraction"),
)
#: Language modelling: evaluated only. `lambda` is the seed's spelling of LAMBADA.
LM_TASKS = ("lambda", "lambada", "wikitext", "language_model")


def plain_name(task: str) -> str:
    """What is compared of a task's name: `SST-2`, `sst2` and `sst_2` are the same."""
    return re.sub(r"[^a-z0-9]", "", task.lower())


def is_one_of(task: str | None, names: tuple[str, ...]) -> bool:
    """Whether --task is one of these, in whatever spelling."""
    return task is not None and plain_name(task) in map(plain_name, names)


@dataclass(frozen=True, kw_only=True)
class FinetuneArgs(ArgGroup):
    """One task. Its folder is --data-dir (group data)."""

    title, sep = "fine-tuning", "-"
    finetune: bool = flag(False, "kept for the seed's commands: distill/finetune.py implies it")
    task: str | None = flag(None, "name of the task, as SST-2 or copa")
    cloze_eval: bool = flag(False, "fill the pattern's mask; otherwise a classification head")
    multi_token: bool = flag(False, "answers are scored as token sequences")
    pattern_id: int = flag(0, "pattern of the task")
    pool_token: str = flag(
        "cls", "input of the classification head", choices=("start", "pad", "cls")
    )
    fast_decode: bool = flag(False, "encode the context once for all answers of a sample")
    length_penalty: float = flag(0.0, "divide a sequence's score by length ** this")
    loss_func: str = flag(
        "cross_entropy",
        "loss over the choices",
        choices=("cross_entropy", "hinge", "generative", "mix"),
    )
    segment_length: int = flag(
        0, "score answers in parts of so many tokens, each reading those before it; 0: whole"
    )
    few_superglue: bool = flag(
        False, "FewGLUE's files: dev32.jsonl to validate, val.jsonl as the test"
    )
    wsc_negative: bool = flag(
        False, "WSC with --loss-func=mix or generative: choose among the line's candidates"
    )
    continuous_prompt: bool = flag(False, "trained vectors in the slots of the pattern")
    num_prompt_tokens: int = flag(0, "vectors in the slots (tokens)")
    prefix_prompt: int = flag(0, "vectors before the pattern (tokens)")
    prompt_func: str = flag(
        "lstm", "what stands between the vectors and the model", choices=("lstm", "mlp", "none")
    )
    prompt_init: bool = flag(False, "vectors start as words, mixed with the task's verbalizers")
    freeze_transformer: bool = flag(False, "the GLM keeps its weights; the rest is trained")
    tune_prefix_layers: int | None = flag(
        None, "with --freeze-transformer: the first layers, so many, are trained after all"
    )
    block_lm_ratio: float = flag(
        0.0, "steps of blank infilling on labelled texts for every step of the task"
    )
    no_validation: bool = flag(False, "no validation split: the last weights are the result")
    adapet: bool = flag(False, "decoupled label loss over log-probabilities")
    fix_variable_num_choices: bool = flag(
        False,
        "pad every sample to the largest number of choices of its data",
        name="--fix_variable_num_choices",
    )
    validation_metric: str | None = flag(
        None, "metric that selects the best epoch; default: the first"
    )
