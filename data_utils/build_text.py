"""From arguments to the loaders of pretraining on consecutive text: `--transformer-xl`."""

import logging

import numpy as np

from config.data import DataArgs
from config.errors import ConfigError
from config.training import EvalArgs, TrainArgs
from data_utils.build import Loaders, cache_folder, find_stream, load_parts
from data_utils.loader import StepLoader
from data_utils.parts import Part, keep_part
from data_utils.samplers import StepSampler
from data_utils.text import TextDataset, collate_text
from data_utils.tokenization import Tokenizer

log = logging.getLogger(__name__)


def build_text_loaders(
    data: DataArgs,
    train: TrainArgs,
    tokenizer: Tokenizer,
    dp_rank: int = 0,
    dp_size: int = 1,
    start_iteration: int = 0,
    *,
    evaluation: EvalArgs | None = None,
    pin_memory: bool = False,
) -> Loaders:
    """Loaders of one data-parallel rank, whose rows go on where they stopped a step before.

    Training reads the documents in an order of --seed, validation and test in their own, at most
    once. Tokenises what is not in the cache. Raises ConfigError for data that is missing or
    streamed.
    """
    streamed = find_stream(data)
    if streamed is not None:
        raise ConfigError(
            f"--train-data={' '.join(data.train_data or ())}: is streamed, and --transformer-xl "
            "reads documents side by side; give files, or --block-lm"
        )
    parts = load_parts(data, tokenizer)
    assert parts[0] is not None, "there are documents to train on"
    evaluation = evaluation or EvalArgs()

    def loader(name: str, dataset: TextDataset, sampler: StepSampler) -> StepLoader:
        shape = dataset.num_tokens, dataset.num_chunks, dataset.seq_length
        log.info("%s: %d documents, %d tokens: %d chunks of %d", name, len(dataset.part), *shape)
        workers = {"num_workers": data.num_workers, "pin_memory": pin_memory}
        return StepLoader(dataset, collate_text, sampler, **workers)

    def evaluator(part: Part | None, name: str) -> StepLoader | None:
        """Of a part, each chunk at most once; None without documents."""
        if part is None:
            return None
        rows, length = evaluation.eval_batch_size or train.batch_size, data.eval_seq_length
        options = {"seq_length": length or data.seq_length, "lanes": rows * dp_size, "once": True}
        dataset = TextDataset(part, tokenizer, **options)
        steps = min(evaluation.eval_iters, dataset.steps)
        return loader(name, dataset, StepSampler(None, rows, 1, dp_rank, dp_size, iterations=steps))

    sampler = StepSampler(
        None,
        train.batch_size,
        train.gradient_accumulation_steps,
        dp_rank,
        dp_size,
        start_iteration=start_iteration,
        iterations=train.train_iters or None,
    )
    text, lanes = shuffled(parts[0], data, train.seed), sampler.global_batch_size
    dataset = TextDataset(text, tokenizer, seq_length=data.seq_length, lanes=lanes)
    if dataset.num_chunks < lanes:
        log.warning(
            "--train-data: has %d chunks of %d tokens, a step %d samples, so some are the same",
            *(dataset.num_chunks, data.seq_length, lanes),
        )
    training = loader("train", dataset, sampler)
    return Loaders(training, evaluator(parts[1], "valid"), evaluator(parts[2], "test"))


def shuffled(part: Part, data: DataArgs, seed: int) -> Part:
    """The same documents in an order of this seed; its tables are files of the cache."""
    order = np.random.default_rng((seed, len(part))).permutation(len(part))
    numbers = order if part.numbers is None else part.numbers[order]
    return keep_part(part.documents, numbers, cache_folder(data))
