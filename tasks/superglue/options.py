"""Options: how a task is set up, from all flags that say something about it."""

from dataclasses import dataclass
from typing import Self

from config.compat import Compat
from config.data import DataArgs
from config.tasks import FinetuneArgs
from model.build import PromptSpec

FEW_FILES = {"train": ("train.jsonl",), "val": ("dev32.jsonl",), "test": ("val.jsonl",)}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What FinetuneArgs, DataArgs and --compat say about a task."""

    seq_length: int = 512
    data_dir: str | None = None
    skip_bad_lines: bool = False
    few: bool = False  # the files of FewGLUE
    cloze: bool = True
    multi_token: bool = False  # score answers of several tokens where verbalizers would do
    fast_decode: bool = False
    segment_length: int = 0  # answers are scored in parts of so many tokens; 0: whole
    block_position: bool = True
    length_penalty: float = 0.0
    pool_token: str = "cls"
    loss: str = "cross_entropy"
    prompts: bool = False  # continuous prompts in the slots of the pattern
    prompt_tokens: int = 0  # how many; prefix_tokens stand before the pattern
    prefix_tokens: int = 0
    prompt_func: str = "lstm"
    fixed_choices: bool = False  # batches of one number of choices, whatever their samples have
    w14: bool = False  # the seed's lookup of verbalizers, position of masks, cut of pairs
    w29: bool = False  # the seed's units: some scores as fractions

    @classmethod
    def of(
        cls, finetuning: FinetuneArgs, data: DataArgs, compat: Compat, block_position: bool
    ) -> Self:
        """Those of a command line."""
        cloze = finetuning.cloze_eval
        prompts = finetuning.continuous_prompt and cloze
        return cls(
            seq_length=data.seq_length,
            data_dir=data.data_dir,
            skip_bad_lines=data.skip_bad_lines,
            few=finetuning.few_superglue,
            cloze=cloze,
            multi_token=finetuning.multi_token,
            fast_decode=finetuning.fast_decode,
            segment_length=finetuning.segment_length,
            block_position=block_position,
            length_penalty=finetuning.length_penalty,
            pool_token=finetuning.pool_token,
            loss="adapet" if finetuning.adapet and cloze else finetuning.loss_func,
            prompts=prompts,
            prompt_tokens=finetuning.num_prompt_tokens if prompts else 0,
            prefix_tokens=finetuning.prefix_prompt if prompts else 0,
            prompt_func=finetuning.prompt_func,
            fixed_choices=finetuning.fix_variable_num_choices,
            w14="W14" in compat,
            w29="W29" in compat,
        )


def prompts_of(options: Options) -> PromptSpec | None:
    """The continuous prompts that the model has, if any."""
    length = options.prompt_tokens + options.prefix_tokens
    return PromptSpec(length, options.prompt_func) if options.prompts else None
