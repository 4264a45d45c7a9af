"""Fine-tuning with steps of blank infilling in between, on patterns with their answers in them."""

import dataclasses
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from config.data import BlockLMArgs
from data_utils.bad_lines import BadLines
from data_utils.batch import Batch
from data_utils.block import BlockSample
from data_utils.block import collate as collate_blocks
from data_utils.build import blank_infilling
from data_utils.infilling import BlankInfilling
from data_utils.mixed import MixedDataset
from tasks.superglue.data import find_split
from tasks.superglue.generative import GenerativeTask
from tasks.superglue.labelled import LabelledTexts
from tasks.superglue.task import SuperGlueTask


class LabelledBlocks:
    """`dataset[e * n + i]` is the text of example i of n with its answer, corrupted for epoch e."""

    def __init__(self, texts: LabelledTexts, corrupt: BlankInfilling, seed: int):
        self.texts, self.corrupt, self.seed = texts, corrupt, seed

    def __getitem__(self, index: int) -> BlockSample:
        tokens = self.texts.text(index % len(self.texts), 0)
        return self.corrupt(tokens, Random(f"{self.seed}/block-lm/{index}"))


def with_blocks(
    task: SuperGlueTask | GenerativeTask, blocks: BlockLMArgs, seed: int
) -> tuple[MixedDataset, Callable[[Sequence[Any]], Batch]]:
    """The task's training samples and, from SECOND on, their texts; and what collates either."""
    samples = task.dataset("train")
    assert samples is not None, "a task has a training split"
    texts = labelled_texts(task, "train")
    assert len(texts) == len(samples), (len(texts), len(samples))
    options = task.options
    corrupt = blank_infilling(
        blocks, task.tokenizer, options.seq_length, block_position=options.block_position
    )

    def collate(rows: Sequence[Any]) -> Batch:
        """One micro-batch, of the task or of texts."""
        made = collate_blocks if isinstance(rows[0], BlockSample) else task.collate
        return made(rows)

    return MixedDataset(samples, LabelledBlocks(texts, corrupt, seed)), collate


def labelled_texts(task: SuperGlueTask | GenerativeTask, split: str) -> LabelledTexts:
    """The examples of a split under the task's pattern, in the order of its samples.

    Continuous prompts have no words, so their slots are empty.
    """
    pvp, options = task.pvp, task.options
    assert options.data_dir is not None, "a task has a folder"
    path = find_split(options.data_dir, pvp.files_of(split), pvp.name, split)
    assert path is not None, split
    layout = dataclasses.replace(
        task.splits.layout(),
        prompt_tokens=0,
        prefix_tokens=0,
        segment_length=0,
        fast_decode=False,
    )
    examples = pvp.read(path, split, BadLines(options.skip_bad_lines))
    return LabelledTexts(
        [pvp], examples, task.tokenizer, layout, block_position=options.block_position
    )


__all__ = ["LabelledBlocks", "labelled_texts", "with_blocks"]
