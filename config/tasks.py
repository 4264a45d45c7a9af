"""Fine-tuning: the task, its pattern and its head."""

from dataclasses import dataclass

from config.group import ArgGroup, flag


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
    adapet: bool = flag(False, "decoupled label loss over log-probabilities")
    fix_variable_num_choices: bool = flag(
        False,
        "pad every sample to the largest number of choices of its data",
        name="--fix_variable_num_choices",
    )
    validation_metric: str | None = flag(
        None, "metric that selects the best epoch; default: the first"
    )
