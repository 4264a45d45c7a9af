"""From arguments to the loaders of a pretraining run."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from config.data import BlockLMArgs, DataArgs
from config.errors import ConfigError
from config.training import EvalArgs, TrainArgs
from data_utils.block import SpecialIds, collate
from data_utils.corpora import Documents, find_corpus, load_documents
from data_utils.dataset import BlockDataset
from data_utils.infilling import BlankInfilling
from data_utils.loader import StepLoader
from data_utils.samplers import StepSampler
from data_utils.tokenization import Tokenizer

log = logging.getLogger(__name__)

# Which documents and samples validate does not depend on --seed: runs stay comparable, and a
# student is never validated on what its teacher was trained on.
SPLIT_SEED = 1234


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
) -> Loaders:
    """Loaders of one data-parallel rank; every model-parallel rank builds the same.

    block_position: False with --no-block-position, where every token of a span has position 1.
    Tokenises what is not in the cache. Raises ConfigError for data that is missing or too little.
    """
    evaluation = evaluation or EvalArgs()
    parts = load_parts(data, tokenizer)

    def loader(part: int, stream: str, seed: int, sampler: StepSampler) -> StepLoader | None:
        """Of one part of the corpus; None where it has no documents."""
        documents, numbers = parts[part]
        if documents is None:
            return None
        seq_length = data.seq_length if part == 0 else data.eval_seq_length or data.seq_length
        dataset = BlockDataset(
            documents,
            tokenizer,
            blank_infilling(blocks, tokenizer, seq_length, block_position=block_position),
            seq_length=seq_length,
            seed=seed,
            stream=stream,
            numbers=numbers,
            non_sentence_start=data.non_sentence_start,
            one_document=data.sample_one_document,
        )
        log.info("%s: %d documents, %d tokens", stream, len(numbers), dataset.num_tokens)
        return StepLoader(
            dataset, collate, sampler, num_workers=data.num_workers, pin_memory=pin_memory
        )

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
    assert training is not None, "load_parts gives documents to train on"
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


Part = tuple[Documents | None, np.ndarray]  # and the numbers of its documents


def load_parts(data: DataArgs, tokenizer: Tokenizer) -> tuple[Part, Part, Part]:
    """Training, validation and test documents; (None, []) for a part there is none of.

    --valid-data and --test-data replace their share of --split.
    """
    if not data.train_data:
        raise ConfigError(
            "--train-data: missing; give names of config/corpora.json, or paths to .txt, .jsonl "
            "or .parquet files or folders"
        )

    def load(names: Sequence[str], flag: str) -> Documents:
        corpora = [
            find_corpus(name, data_dir=data.data_dir, text_key=data.text_key, flag=flag)
            for name in names
        ]
        return load_documents(corpora, tokenizer, data.cache_dir)

    given = [None, data.valid_data, data.test_data]
    shares = [0.0 if names else x for names, x in zip(given, data.shares, strict=True)]
    documents = load(data.train_data, "--train-data")
    numbers = split_documents(len(documents), shares, data.split)
    parts: list[Part] = [(documents if len(n) else None, n) for n in numbers]
    for part, flag in ((1, "--valid-data"), (2, "--test-data")):
        if names := given[part]:
            held_out = load(names, flag)
            parts[part] = (held_out, np.arange(len(held_out)))
    return parts[0], parts[1], parts[2]


def split_documents(num_documents: int, shares: Sequence[float], split: str) -> list[np.ndarray]:
    """Numbers of the documents of each part, sorted: disjoint, at least one where the share is.

    Raises ConfigError if there are fewer documents than parts.
    """
    parts = sum(share > 0 for share in shares)
    if num_documents < parts:
        raise ConfigError(
            f"--split={split}: --train-data has {num_documents} document(s), too few for {parts} "
            "parts; give --valid-data and --test-data, or --split=1,0,0"
        )
    order = np.random.default_rng(SPLIT_SEED).permutation(num_documents)
    total = sum(shares)
    sizes = [max(1, int(num_documents * share / total)) if share else 0 for share in shares[1:]]
    while sum(sizes) > num_documents - 1:
        sizes[sizes.index(max(sizes))] -= 1
    ends = np.cumsum([num_documents - sum(sizes), *sizes])[:-1]
    return [np.sort(numbers) for numbers in np.split(order, ends)]
