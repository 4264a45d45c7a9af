"""BlockLM: predict the tokens of the target part. Pretraining, and tasks with LM labels."""

import math
from collections.abc import Iterable, Mapping

from torch import Tensor

import mpu
from data_utils.batch import Batch
from data_utils.block import KINDS
from model.build import HeadSpec
from mpu.row_losses import HardRows
from tasks.base import Task, as_float, token_mask, weighted


class BlockLM(Task):
    """Autoregressive blank infilling (GLM, Du et al., 2022, arXiv 2103.10360).

    loss = mean over target tokens of -log softmax(z)[label],  z [b, s, v/p], in nats
    """

    name = "block_lm"
    head = HeadSpec("lm")
    vocab_parallel = True
    hard_rows = "targets"
    metric_names = ("loss", "ppl")

    def __init__(self, label_smoothing: float = 0.0):
        """label_smoothing: the part of a label's probability that is spread over all words."""
        self.label_smoothing = label_smoothing

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """(tokens [b, s], position_ids [b, 2, s], separators [b])."""
        return batch.tokens, batch.position_ids, batch.attention_mask

    def hard_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """[b, s, v/p] -> [b, s], nats. All-reduces over the model-parallel group."""
        return mpu.vocab_parallel_cross_entropy(logits, batch.labels, self.label_smoothing)

    def hard_rows_term(self, batch: Batch) -> HardRows:
        """The same, of logits that never exist whole."""
        return HardRows(batch.labels.flatten(), smoothing=self.label_smoothing)

    def row_masks(self, batch: Batch) -> dict[str, Tensor]:
        """`targets` [b, s]: the loss mask. `tokens` [b, s]: everything but padding."""
        return {
            "targets": weighted(as_float(batch.loss_mask, batch.tokens), batch.weight),
            "tokens": weighted(token_mask(batch.position_ids), batch.weight),
        }

    def predict(self, logits: Tensor, batch: Batch) -> list[tuple[float, float, int]]:
        """Per sample: (summed loss in nats, target tokens, kind)."""
        return self.predict_rows(self.hard_loss(logits, batch), batch)

    def predict_rows(self, losses: Tensor, batch: Batch) -> list[tuple[float, float, int]]:
        """The same of the hard losses [b, s], right at the targets."""
        mask = self.row_masks(batch)["targets"]
        sums = (losses * mask).sum(-1)
        kinds = [0] * len(batch) if batch.kinds is None else batch.kinds.tolist()
        return list(zip(sums.tolist(), mask.sum(-1).tolist(), kinds, strict=True))

    def metrics(
        self, predictions: Mapping[int, tuple[float, float, int]], split: str = "val"
    ) -> dict[str, float]:
        """`loss`: nats per target token. `ppl`: exp of it, of at most 20 nats as in the seed.

        Where samples are of several kinds also `loss_bert`, `loss_gpt`, ...: of that kind.
        """
        scores = _scores("", predictions.values())
        kinds = sorted({kind for _, _, kind in predictions.values()})
        for kind in kinds if len(kinds) > 1 else ():
            rows = [row for row in predictions.values() if row[2] == kind]
            scores |= {
                name: v for name, v in _scores(f"_{KINDS[kind]}", rows).items() if "loss" in name
            }
        return scores


def _scores(suffix: str, rows: Iterable[tuple[float, float, int]]) -> dict[str, float]:
    rows = list(rows)
    total, count = math.fsum(row[0] for row in rows), math.fsum(row[1] for row in rows)
    if not count:
        return {}
    loss = total / count
    return {f"loss{suffix}": loss, f"ppl{suffix}": math.exp(min(20.0, loss))}
