"""From arguments to the tokenizer of a run."""

import logging
from pathlib import Path
from typing import Any

from config.data import BlockLMArgs, TokenizerArgs
from config.errors import ConfigError
from data_utils.bpe import GPT2BPETokenizer
from data_utils.chinese import ChineseSPTokenizer
from data_utils.tokenization import ASSETS, BertWordPieceTokenizer, Tokenizer

log = logging.getLogger(__name__)

NO_PATH = TokenizerArgs().tokenizer_path
CHINESE_MODEL = "cog-pretrain.model"
WORDPIECE = {  # --tokenizer-model-type -> file; the two are the same vocabulary
    "bert-base-uncased": "bert-base-uncased-vocab.txt",
    "bert-large-uncased": "bert-base-uncased-vocab.txt",
}


def build_tokenizer(
    tokenizer: TokenizerArgs, blocks: BlockLMArgs, max_positions: int = 512
) -> Tokenizer:
    """The tokenizer of a run, always with GLM's block symbols.

    max_positions: --max-position-embeddings, which is how many spans --sentinel-token can tell
    apart. Raises ConfigError for an unknown kind or model type, FileNotFoundError or ValueError
    for a vocabulary that is missing or malformed.
    """
    kind = tokenizer.tokenizer_type
    own = None if tokenizer.tokenizer_path == NO_PATH else Path(tokenizer.tokenizer_path)
    own = own.expanduser() if own else None
    options: dict[str, Any] = {
        "task_mask": tokenizer.task_mask,
        "block_mask": tokenizer.block_mask
        or blocks.block_mask_prob > 0
        or blocks.context_mask_ratio > 0,
    }
    if kind == "BertWordPieceTokenizer":
        sentinels = max_positions - 1 if blocks.sentinel_token else tokenizer.num_sentinels
        vocabulary = _wordpiece(own, tokenizer.tokenizer_model_type)
        return BertWordPieceTokenizer(vocabulary, num_sentinels=sentinels, **options)
    if kind == "GPT2BPETokenizer":
        folder, roberta = _bpe(own, tokenizer.tokenizer_model_type)
        return GPT2BPETokenizer(folder, roberta=roberta, **options)
    if kind == "ChineseSPTokenizer":
        options["fix_command_token"] = tokenizer.fix_command_token
        if tokenizer.task_mask and not tokenizer.fix_command_token:
            log.warning(
                "--task-mask: the ids of the first Chinese models give gMASK that of eop; "
                "a model that is trained anew should have --fix-command-token"
            )
        return ChineseSPTokenizer(own or ASSETS / CHINESE_MODEL, **options)
    raise ConfigError(
        f"--tokenizer-type={kind}: unknown; BertWordPieceTokenizer, GPT2BPETokenizer or "
        "ChineseSPTokenizer"
    )


def _wordpiece(own: Path | None, model_type: str | None) -> Path:
    if own and model_type:
        raise ConfigError(
            f"--tokenizer-path={own}: --tokenizer-model-type={model_type} names another "
            "vocabulary; give one of the two"
        )
    model_type = model_type or "bert-base-uncased"
    if model_type not in WORDPIECE:
        raise ConfigError(
            f"--tokenizer-model-type={model_type}: no such vocabulary ships; give "
            f"{' or '.join(WORDPIECE)}, or a vocab.txt of your own with --tokenizer-path"
        )
    return own or ASSETS / WORDPIECE[model_type]


def _bpe(own: Path | None, model_type: str | None) -> tuple[Path, bool | None]:
    """The folder of the vocabulary, and whether it has RoBERTa's commands (None: as it looks)."""
    family = (model_type or "").split("-")[0]
    if family not in ("", "gpt2", "roberta"):
        raise ConfigError(
            f"--tokenizer-model-type={model_type}: is no byte-level BPE that GLM uses; give gpt2, "
            "or roberta with --tokenizer-path"
        )
    if family == "roberta" and own is None:
        raise ConfigError(
            f"--tokenizer-model-type={model_type}: this vocabulary does not ship; give the folder "
            "of its vocab.json and merges.txt with --tokenizer-path"
        )
    return own or ASSETS, family == "roberta" if family else None
