"""From arguments to the loaders of a pretraining run."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from config.data import BlockLMArgs, DataArgs
from config.errors import ConfigError
from config.training import EvalArgs, TrainArgs
from data_utils.block import SpecialIds, collate
from data_utils.corpora import Corpus, find_corpus
from data_utils.dataset import BlockDataset
from data_utils.documents import Documents
from data_utils.infilling import BlankInfilling
from data_utils.loader import StepLoader
from data_utils.mixed import Mixture, mix
from data_utils.parts import (
    SPLIT_SEED,
    Part,
    document_order,
    keep_part,
    read_order,
    save_array,
    split_documents,
)
from data_utils.samplers import StepSampler
from data_utils.stream import StreamDataset
from data_utils.token_cache import default_cache_dir, load_documents
from data_utils.tokenization import Tokenizer

log = logging.getLogger(__name__)


@dataclass
class Loaders:
    """What a pretraining run reads. Iterating yields list[Batch], one list a step.

    train: this rank's micro-batches of each iteration, up to --train-iters (0: without end).
    valid, test: lists of one batch, --eval-iters of them, the same each time; None without data.
    """

    train: StepLoader
    valid: StepLoader | None
    test: StepLoader | None


def build_pretrain_loaders(
    data: DataArgs,
    blocks: BlockLMArgs,
    train: TrainArgs,
    tokenizer: Tokenizer,
    dp_rank: int = 0,
    dp_size: int = 1,
    start_iteration: int = 0,
    *,
    evaluation: EvalArgs | None = None,
    block_position: bool = True,
    pin_memory: bool = False,
    mixture: Mixture | None = None,
) -> Loaders:
    """Loaders of one data-parallel rank; every model-parallel rank builds the same.

    block_position: False with --no-block-position, where every token of a span has position 1.
    mixture: samples of labelled tasks, whose micro-batches take the place of some.
    Tokenises what is not in the cache. Raises ConfigError for data that is missing or too little.
    """
    evaluation = evaluation or EvalArgs()
    streamed = find_stream(data)
    parts = load_parts(data, tokenizer, streamed=streamed is not None)

    def loader(part: int, stream: str, seed: int, sampler: StepSampler) -> StepLoader | None:
        """Of one part of the corpus; None where it has no documents."""
        documents = parts[part]
        if documents is None and (part or streamed is None):
            return None
        seq_length = data.seq_length if part == 0 else data.eval_seq_length or data.seq_length
        corrupt = blank_infilling(blocks, tokenizer, seq_length, block_position=block_position)
        options = {
            "seq_length": seq_length,
            "seed": seed,
            "stream": stream,
            "non_sentence_start": data.non_sentence_start,
            "one_document": data.sample_one_document,
        }
        dataset: BlockDataset | StreamDataset
        if documents is None:
            assert streamed is not None
            where = (streamed, tokenizer, corrupt, cache_folder(data), options)
            dataset = StreamDataset(*where, skip_bad_lines=data.skip_bad_lines)
        else:
            dataset = BlockDataset(documents, tokenizer, corrupt, **options)
            log.info("%s: %d documents, %d tokens", stream, len(documents), documents.num_tokens)
        source = mix(dataset, sampler, mixture, stream, seed)
        workers = {"num_workers": data.num_workers, "pin_memory": pin_memory}
        return StepLoader(source[0], collate, source[1], **workers)

    def evaluator(part: int, stream: str) -> StepLoader | None:
        micro_batch = evaluation.eval_batch_size or train.batch_size
        sampler = StepSampler(
            None, micro_batch, 1, dp_rank, dp_size, iterations=evaluation.eval_iters
        )
        return loader(part, stream, SPLIT_SEED, sampler)

    steps = StepSampler(
        None,
        train.batch_size,
        train.gradient_accumulation_steps,
        dp_rank,
        dp_size,
        start_iteration=start_iteration,
        iterations=train.train_iters or None,
    )
    training = loader(0, "train", train.seed, steps)
    assert training is not None, "there are documents to train on"
    return Loaders(training, evaluator(1, "valid"), evaluator(2, "test"))


def blank_infilling(
    blocks: BlockLMArgs, tokenizer: Tokenizer, seq_length: int, *, block_position: bool = True
) -> BlankInfilling:
    """How samples of at most `seq_length` tokens are corrupted."""
    return BlankInfilling(
        SpecialIds.of(tokenizer),
        tokenizer.sentence_ends,
        seq_length,
        average=blocks.avg_block_length,
        bert_prob=blocks.bert_prob,
        gap_sentence_prob=blocks.gap_sentence_prob,
        gap_sentence_ratio=blocks.gap_sentence_ratio,
        gpt_infill_prob=blocks.gpt_infill_prob,
        gpt_min_ratio=blocks.gpt_min_ratio,
        short_seq_prob=blocks.short_seq_prob,
        single_span_prob=blocks.single_span_prob,
        block_mask_prob=blocks.block_mask_prob,
        context_mask_ratio=blocks.context_mask_ratio,
        random_position=blocks.random_position,
        sentinels=blocks.sentinel_token,
        masked_lm=blocks.masked_lm,
        shuffle=not blocks.no_shuffle_block,
        block_position=block_position,
    )


def find_stream(data: DataArgs) -> Corpus | None:
    """The corpus of --train-data if it is one that is streamed.

    Raises ConfigError where a stream cannot do what is asked.
    """
    for name in data.train_data or ():
        corpus = _find(data, name, "--train-data")
        if corpus.dataset is None:
            continue
        if len(data.train_data or ()) > 1:
            raise ConfigError(f"--train-data: {name} is streamed, and must be the only corpus")
        if any(data.shares[1:]) and not (data.valid_data and data.test_data):
            raise ConfigError(
                f"--split={data.split}: {name} is streamed and cannot be divided; give --split=1, "
                "and --valid-data, --test-data for an evaluation"
            )
        for flag, value in (
            ("--load-splits", data.load_splits),
            ("--save-splits", data.save_splits),
        ):
            if value:
                raise ConfigError(f"{flag}={value}: {name} is streamed and cannot be divided")
        return corpus
    return None


def load_parts(
    data: DataArgs, tokenizer: Tokenizer, *, streamed: bool = False
) -> tuple[Part | None, Part | None, Part | None]:
    """Training, validation and test documents; None for a part there is none of.

    --valid-data and --test-data replace their share of --split. streamed: nothing is trained on
    but a stream.
    """
    if not data.train_data:
        raise ConfigError(
            "--train-data: missing; give names of config/corpora.json, or paths to .txt, .jsonl "
            "or .parquet files or folders"
        )
    given = [None, data.valid_data, data.test_data]
    parts: list[Part | None] = [None, None, None]
    if not streamed:
        shares = [0.0 if names else x for names, x in zip(given, data.shares, strict=True)]
        parts = _split(data, _load(data, data.train_data, "--train-data", tokenizer), shares)
    for place, flag in ((1, "--valid-data"), (2, "--test-data")):
        if names := given[place]:
            parts[place] = Part(_load(data, names, flag, tokenizer))
    if data.save_test_data and parts[2] is not None:
        _write_texts(parts[2], tokenizer, Path(data.save_test_data).expanduser())
    return parts[0], parts[1], parts[2]


def _split(data: DataArgs, documents: Documents, shares: Sequence[float]) -> list[Part | None]:
    order = read_order(data.load_splits, len(documents)) if data.load_splits else None
    if data.save_splits:
        save_array(
            npy(data.save_splits), document_order(len(documents)) if order is None else order
        )
    numbers = split_documents(len(documents), shares, data.split, order)
    weights = data.train_data_weights
    return [
        keep_part(documents, n, cache_folder(data), weights) if len(n) else None for n in numbers
    ]


def cache_folder(data: DataArgs) -> Path:
    """Where token caches lie."""
    return Path(data.cache_dir).expanduser() if data.cache_dir else default_cache_dir()


def npy(path: str) -> Path:
    """The path with the suffix that NumPy gives its files."""
    found = Path(path).expanduser()
    return found if found.suffix == ".npy" else found.with_name(found.name + ".npy")


def _find(data: DataArgs, name: str, flag: str) -> Corpus:
    how = {"data_dir": data.data_dir, "text_key": data.text_key, "english": data.filter_english}
    return find_corpus(name, **how, flag=flag)


def _load(data: DataArgs, names: Sequence[str], flag: str, tokenizer: Tokenizer) -> Documents:
    corpora = [_find(data, name, flag) for name in names]
    return load_documents(corpora, tokenizer, data.cache_dir, skip_bad_lines=data.skip_bad_lines)


def _write_texts(part: Part, tokenizer: Tokenizer, path: Path) -> None:
    """The test documents as text, one a line, for --save-test-data."""
    numbers = range(len(part)) if part.numbers is None else part.numbers
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for number in numbers:
            text = tokenizer.decode(part.documents[int(number)].tolist())
            file.write(" ".join(text.split("\n")) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
