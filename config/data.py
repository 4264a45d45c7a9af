"""Text: which corpora, which tokenizer, how spans are cut out."""

from dataclasses import dataclass

from config.group import ArgGroup, flag


@dataclass(frozen=True, kw_only=True)
class TokenizerArgs(ArgGroup):
    """The vocabulary. Student and teachers share it."""

    title, sep = "tokenizer", "-"
    tokenizer_type: str = flag("BertWordPieceTokenizer", "kind of tokenizer")
    tokenizer_model_type: str | None = flag(None, "a vocabulary that ships: bert-base-uncased")
    tokenizer_path: str = flag("tokenizer.model", "a vocab.txt of your own, or its folder")
    task_mask: bool = flag(False, "own mask tokens for generation (gMASK) and sentences (sMASK)")


@dataclass(frozen=True, kw_only=True)
class DataArgs(ArgGroup):
    """Corpora for pretraining and how batches are cut from them."""

    title, sep = "data", "-"
    train_data: tuple[str, ...] | None = flag(None, "corpora: names of config/corpora.json or paths")
    valid_data: tuple[str, ...] | None = flag(None, "corpora for validation; else --split")
    test_data: tuple[str, ...] | None = flag(None, "corpora for the test; else --split")
    data_dir: str | None = flag(None, "folder of a task; or where named corpora lie")
    split: str = flag("1000,1,1", "documents for training, validation, test (proportions)")
    text_key: str = flag("text", "field of a .jsonl or .parquet row that holds the text")
    seq_length: int = flag(512, "longest sample (tokens)")
    num_workers: int = flag(2, "data-loader processes")
    cache_dir: str | None = flag(None, "where token caches are kept; default: beside the user's cache")
    shuffle: bool = flag(False, "kept for the seed's commands: samples are always drawn at random")
    no_lazy_loader: bool = flag(False, "kept for the seed's commands: caches are memory-mapped")
    non_sentence_start: float = flag(0.0, "fraction of samples that may start inside a sentence")
    sample_one_document: bool = flag(False, "never fill a short sample with the next document")


@dataclass(frozen=True, kw_only=True)
class BlockLMArgs(ArgGroup):
    """Span corruption (GLM, Du et al., 2022, arXiv 2103.10360)."""

    title, sep = "block language model", "-"
    block_lm: bool = flag(False, "train by autoregressive blank infilling")
    bert_prob: float = flag(0.5, "fraction of samples with short spans")
    avg_block_length: int = flag(3, "mean span length (tokens)")
    no_shuffle_block: bool = flag(False, "spans keep their order in the target part")
    single_span_prob: float = flag(0.0, "fraction of samples with one span")
