"""Multi-task pretraining: labelled tasks as samples of the language model (GLM 10B's recipe)."""

import dataclasses
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from random import Random

from config.compat import Compat
from config.data import DataArgs
from config.errors import ConfigError
from config.multi_task import MULTI_TASKS, multi_task_name
from config.training import TrainArgs
from data_utils.bad_lines import BadLines
from data_utils.block import BlockSample
from data_utils.mixed import Mixture
from data_utils.parts import SPLIT_SEED
from data_utils.tokenization import Tokenizer
from tasks.registry import TASKS, task_name
from tasks.superglue.data import find_split
from tasks.superglue.encode import Layout
from tasks.superglue.labelled import LabelledTexts
from tasks.superglue.options import Options

MOST = 200_000  # examples of a task that count
POWER = 0.8  # weight of a task: min(examples, MOST) ** POWER


class MultiTaskDataset:
    """`dataset[i]` is sample i of an endless stream, a pure function of (seed, i).

    A task is drawn by its weight, an example and a pattern of it uniformly.
    """

    def __init__(self, tasks: Sequence[LabelledTexts], seed: int, stream: str):
        self.tasks, self.seed, self.stream = tasks, seed, stream
        weights = [min(len(task), MOST) ** POWER for task in tasks]
        self.weights = [weight / sum(weights) for weight in weights]
        self._ends = list(accumulate(self.weights))

    def __getitem__(self, index: int) -> BlockSample:
        rng = Random(f"{self.seed}/multi-task/{self.stream}/{index}")
        (task,) = rng.choices(self.tasks, cum_weights=self._ends)
        return task.cloze(rng.randrange(len(task)), rng.randrange(len(task.pvps)))


def build_multi_task(
    data: DataArgs,
    train: TrainArgs,
    tokenizer: Tokenizer,
    compat: Compat,
    *,
    block_position: bool = True,
) -> Mixture | None:
    """The samples of --multi-task-data for training and validation; None if there are none.

    All files are read now. ConfigError: unknown task, no such folder or file, too short samples.
    """
    if data.multi_task_ratio == 0 or not data.multi_task_data:
        return None
    seq_length = data.multi_seq_length or data.seq_length
    options = dataclasses.replace(
        Options(seq_length=seq_length, w14="W14" in compat), skip_bad_lines=data.skip_bad_lines
    )
    assert data.data_dir is not None, "--multi-task-data without --data-dir"
    datasets = {}
    for stream, split, seed in (("train", "train", train.seed), ("valid", "val", SPLIT_SEED)):
        found = [
            _texts(given, Path(data.data_dir), split, tokenizer, options, block_position)
            for given in data.multi_task_data
        ]
        datasets[stream] = MultiTaskDataset(found, seed, stream)
    return Mixture(data.multi_task_ratio, data.multi_batch_size or train.batch_size, datasets)


def _texts(
    given: str,
    data_dir: Path,
    split: str,
    tokenizer: Tokenizer,
    options: Options,
    block_position: bool,
) -> LabelledTexts:
    """The examples of one task."""
    name = multi_task_name(given)
    if name is None:
        known = ", ".join(MULTI_TASKS)
        raise ConfigError(f"--multi-task-data={given}: unknown task; known are {known}")
    kind = TASKS[task_name(name)]
    pvps = [kind(name, pattern, options) for pattern in range(kind.num_patterns)]
    folder = data_dir.expanduser() / MULTI_TASKS[name]
    try:
        path = find_split(folder, pvps[0].files_of(split), name, split)
        bad = BadLines(options.skip_bad_lines)
        examples = pvps[0].read(path, split, bad)
        bad.report(path)
        if not examples:
            raise ValueError(f"{path}: holds no examples that can be used")
        layout = Layout(options.seq_length, pattern=name, w14=options.w14)
        return LabelledTexts(pvps, examples, tokenizer, layout, block_position=block_position)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"--multi-task-data={given}: {error}") from error
