"""Text: which corpora, which tokenizer, how spans are cut out."""

from collections.abc import Iterator
from dataclasses import dataclass

from config.errors import ConfigError
from config.group import ArgGroup, flag

TOKENIZERS_BUILT = ("BertWordPieceTokenizer", "GPT2BPETokenizer", "ChineseSPTokenizer")
TOKENIZERS = ("CharacterLevelTokenizer", "SentencePieceTokenizer", *TOKENIZERS_BUILT)


@dataclass(frozen=True, kw_only=True)
class TokenizerArgs(ArgGroup):
    """The vocabulary. Student and teachers share it."""

    title, sep = "tokenizer", "-"
    tokenizer_type: str = flag("BertWordPieceTokenizer", "kind of tokenizer", choices=TOKENIZERS)
    tokenizer_model_type: str | None = flag(
        None, "vocabulary: bert-base-uncased, gpt2; roberta with --tokenizer-path"
    )
    tokenizer_path: str = flag(
        "tokenizer.model",
        "your own vocab.txt, vocab.json and merges.txt, or .model; the file or its folder",
    )
    task_mask: bool = flag(False, "own mask tokens for generation (gMASK) and sentences (sMASK)")
    fix_command_token: bool = flag(
        False, "ChineseSPTokenizer: later ids, gMASK's not that of eop; as large-chinese has them"
    )
    block_mask: bool = False  # the vocabulary has dBLOCK: by other flags, or by a checkpoint
    num_sentinels: int = 0  # pairs of --sentinel-token: likewise


@dataclass(frozen=True, kw_only=True)
class DataArgs(ArgGroup):
    """Corpora for pretraining and how batches are cut from them."""

    title, sep = "data", "-"
    train_data: tuple[str, ...] | None = flag(
        None, "corpora: names of config/corpora.json or paths"
    )
    train_data_weights: tuple[float, ...] | None = flag(
        None, "how often each corpus of --train-data is drawn; 1: by its tokens"
    )
    valid_data: tuple[str, ...] | None = flag(None, "corpora for validation; else --split")
    test_data: tuple[str, ...] | None = flag(None, "corpora for the test; else --split")
    data_dir: str | None = flag(None, "folder of a task; or where named corpora lie")
    filter_english: bool = flag(False, "leave out texts in other languages; needs py3langid")
    load_splits: str | None = flag(None, "order of the documents that --split cuts (.npy)")
    save_splits: str | None = flag(None, "write that order to this file (.npy)")
    save_test_data: str | None = flag(None, "write the test documents to this file, one a line")
    split: str = flag("1000,1,1", "documents for training, validation, test (proportions)")
    text_key: str = flag("text", "field of a .jsonl or .parquet row that holds the text")
    seq_length: int = flag(512, "longest sample (tokens)")
    eval_seq_length: int | None = flag(None, "in evaluation; default: --seq-length (tokens)")
    num_workers: int = flag(2, "data-loader processes")
    cache_dir: str | None = flag(None, "folder of token caches; default: in the user's cache")
    shuffle: bool = flag(False, "kept for the seed's commands: samples are always drawn at random")
    no_lazy_loader: bool = flag(False, "kept for the seed's commands: caches are memory-mapped")
    non_sentence_start: float = flag(0.0, "fraction of samples that may start inside a sentence")
    sample_one_document: bool = flag(False, "never fill a short sample with the next document")
    skip_bad_lines: bool = flag(False, "leave out lines that cannot be used, and report how many")
    multi_task_data: tuple[str, ...] | None = flag(
        None, "labelled tasks to pretrain on besides, as mnli race; folders below --data-dir"
    )
    multi_task_ratio: float = flag(0.0, "fraction of micro-batches that are of these tasks")
    multi_seq_length: int | None = flag(
        None, "longest sample of these tasks (tokens); default: --seq-length"
    )
    multi_batch_size: int | None = flag(
        None, "micro-batch of these tasks (samples); default: --batch-size"
    )

    @property
    def shares(self) -> tuple[float, float, float]:
        """Fractions of the documents for training, validation and test; their sum is 1."""
        return parse_split(self.split)


def parse_split(text: str) -> tuple[float, float, float]:
    """`949,50,1` or `949/50/1`, as fractions. One or two numbers leave the later parts empty."""
    try:
        parts = [float(part) for part in text.replace("/", ",").split(",")]
    except ValueError:
        parts = []
    usable = 1 <= len(parts) <= 3 and all(0 <= p < float("inf") for p in parts) and parts[0] > 0
    if not usable:
        raise ConfigError(
            f"--split={text}: must be proportions for training, validation and test, as 1000,1,1"
        )
    train, valid, test = (p / sum(parts) for p in [*parts, 0.0, 0.0][:3])
    return train, valid, test


@dataclass(frozen=True, kw_only=True)
class BlockLMArgs(ArgGroup):
    """Blank infilling (GLM, Du et al., 2022, arXiv 2103.10360). Ratios are parts of a sample."""

    title, sep = "block language model", "-"
    block_lm: bool = flag(
        False, "autoregressive blank infilling; implied, but for pretraining with --transformer-xl"
    )
    masked_lm: bool = flag(False, "BERT's masked language model instead, in place: an ablation")
    bert_prob: float = flag(0.5, "fraction of samples with short spans")
    gap_sentence_prob: float = flag(
        0.0, "fraction of samples without some of their sentences; the rest of 1 is generated"
    )
    gap_sentence_ratio: float = flag(0.15, "sentences are cut out until they are this part of it")
    gpt_infill_prob: float = flag(
        0.5, "fraction of generated samples whose end is generated; else a span anywhere"
    )
    gpt_min_ratio: float = flag(0.5, "smallest part of a sample that is generated")
    short_seq_prob: float = flag(0.0, "fraction of samples cut short (32 tokens or more)")
    avg_block_length: int = flag(3, "mean span length (tokens)")
    no_shuffle_block: bool = flag(False, "spans keep their order in the target part")
    single_span_prob: float = flag(0.0, "fraction of samples with one span")
    sentinel_token: bool = flag(
        False, "BertWordPieceTokenizer: a mask and a piece token of its own for every span"
    )
    block_mask_prob: float = flag(0.0, "fraction of a short span's input tokens to hide (dBLOCK)")
    random_position: bool = flag(False, "positions start anywhere, up to --seq-length")
    context_mask_ratio: float = flag(
        0.0, "hide this part of a sample's tokens (dBLOCK), of those within 3 of a short span"
    )

    @property
    def gpt_prob(self) -> float:
        """Fraction of generated samples."""
        return 1 - self.bert_prob - self.gap_sentence_prob


def block_problems(blocks: BlockLMArgs) -> Iterator[str]:
    """What is wrong between flags that say how samples are corrupted."""
    kinds = f"--bert-prob={blocks.bert_prob} --gap-sentence-prob={blocks.gap_sentence_prob}"
    if blocks.bert_prob + blocks.gap_sentence_prob > 1 + 1e-9:
        yield f"{kinds}: are more than 1 together; what is left of 1 is generated"
    if not blocks.masked_lm:
        return
    if blocks.bert_prob != 1:
        yield f"--masked-lm: {kinds}: has no other kinds of samples; give --bert-prob=1"
    for flag_, given in (
        ("--sentinel-token", blocks.sentinel_token),
        ("--block-mask-prob", blocks.block_mask_prob),
        ("--context-mask-ratio", blocks.context_mask_ratio),
        ("--random-position", blocks.random_position),
    ):
        if given:
            yield f"{flag_}: is an option of blanks, which --masked-lm has not; leave it out"


def weight_problems(data: DataArgs) -> Iterator[str]:
    """What is wrong with --train-data-weights."""
    weights, names = data.train_data_weights, data.train_data or ()
    if weights is None:
        return
    given = f"--train-data-weights={' '.join(map(str, weights))}"
    if len(weights) != len(names):
        yield f"{given}: needs one for each of the {len(names)} corpora of --train-data"
    elif not all(0 <= w < float("inf") for w in weights) or not any(weights):
        yield f"{given}: must be positive, or 0 for a corpus that is not drawn"
