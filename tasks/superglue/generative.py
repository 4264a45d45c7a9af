"""GenerativeTask: write the one right answer; an example is true if the model would write it.

WSC of the official GLM. Training: the language-model loss of the answer's tokens, on true examples.
Evaluation: an answer is predicted if every token of it is the likeliest one, given those before it.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from data_utils.batch import Batch
from data_utils.tokenization import Tokenizer
from model.build import HeadSpec
from mpu.layout import Layout
from mpu.softmax import take_last, top_k_threshold
from tasks.base import FinetuneTask
from tasks.block_lm import BlockLM
from tasks.superglue.dataset import Collator, EncodedDataset
from tasks.superglue.encoded import Sample
from tasks.superglue.options import prompts_of
from tasks.superglue.scores import Scorer
from tasks.superglue.splits import Splits

if TYPE_CHECKING:
    from tasks.superglue.pvp.base import PVP


class GenerativeTask(BlockLM, FinetuneTask):
    """`dataset(split)` gives samples, `collate` batches: labels [b, s] are the answer's tokens."""

    multi_token = True

    def __init__(self, pvp: "PVP", tokenizer: Tokenizer):
        super().__init__()
        self.pvp, self.tokenizer, self.options = pvp, tokenizer, pvp.options
        self.name, self.head = pvp.name, HeadSpec("lm", prompts=prompts_of(pvp.options))
        self.metric_names = pvp.metric_names
        self.splits = Splits(pvp, tokenizer, multi_token=True)
        self.scorer = Scorer(pvp, self.splits)
        self.collator = Collator(
            eos=tokenizer.get_command("eos").Id,
            sop=tokenizer.get_command("sop").Id,
            cloze=True,
            block_position=pvp.options.block_position,
        )

    def dataset(self, split: str) -> EncodedDataset | None:
        """The samples of "train", "val" or "test"; see `Splits`."""
        return self.splits(split)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Samples -> one micro-batch, padded to its longest row."""
        batch = self.collator(samples)
        return Batch(
            tokens=batch.tokens,
            position_ids=batch.position_ids,
            attention_mask=batch.attention_mask,
            labels=batch.target_ids,
            loss_mask=batch.logit_mask.float(),
            weight=batch.weight,
            sample_ids=batch.sample_ids,
        )

    def answers(self, model: nn.Module, batch: Batch) -> list[Any]:
        """Predictions, from the logits of answers alone."""
        scored = _scored(batch)
        outputs = model(*self.inputs(batch), output_rows=scored)
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        return _all_likeliest(logits, batch, scored)

    def predict(self, logits: Tensor, batch: Batch) -> list[int]:
        """[b, s, v/p] -> 1 for each sample whose answer is the likeliest text, else 0."""
        scored = _scored(batch)
        return _all_likeliest(logits.flatten(0, 1).index_select(0, scored), batch, scored)

    def metrics(self, predictions: Mapping[int, int], split: str = "val") -> dict[str, float]:
        """Index of a sample -> 1 (true) or 0, for a whole split. {} if it has no labels."""
        return self.scorer.metrics(predictions, split)

    def submission(
        self, predictions: Mapping[int, int], split: str
    ) -> tuple[str, list[str]] | None:
        """Name and lines of the file that the task's official server takes; None without one."""
        return self.scorer.submission(predictions, split)


def _scored(batch: Batch) -> Tensor:
    """int64 [r]: positions of the answers' tokens in the flattened [b * s]."""
    return batch.loss_mask.flatten().nonzero().squeeze(1)


def _all_likeliest(rows: Tensor, batch: Batch, scored: Tensor) -> list[int]:
    """Logits [r, v/p] of the answers' tokens -> 1 for each sample that has no better one."""
    target = batch.labels.flatten()[scored, None]
    best = top_k_threshold(rows, 1, Layout.SHARD_LAST).float()
    missed = (take_last(rows, target, Layout.SHARD_LAST) < best).squeeze(1)
    wrong = torch.zeros(len(batch), device=rows.device)
    wrong.index_add_(0, scored // batch.tokens.size(1), missed.float())
    return (wrong == 0).int().tolist()
