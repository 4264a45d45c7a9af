"""Heads that turn a GLM into a scorer of choices or classes.

A cloze head without answers to score is the language model itself, its logits sharded again.

`lm` is a GLMModel or a student around one. A head calls it as it is, hands hooks down unchanged (a
hook's root is the GLM, whatever is around it) and asks only for the rows it reads, so that the
vocabulary product is not made for the others. Checkpoint keys are the GLM's own, without a prefix.

With a hook every forward returns ((scores, *rest), captured), else (scores, *rest).
"""

from typing import Any

import torch
from torch import Tensor, nn

from model.init import linear, normal
from model.keys import rename_keys
from model.vocab_map import VocabMap
from mpu import derive_seed, scatter_to_model_parallel_region

INIT_STD = 0.02


class _Head(nn.Module):
    """Holds `model`; everything but the modules named in `own` is the lm's in checkpoints."""

    own: tuple[str, ...] = ()

    def __init__(self, lm: nn.Module):
        super().__init__()
        self.model = lm
        rename_keys(self, self._to_file, self._to_module)

    @property
    def label_map(self) -> VocabMap | None:
        """The map from ids to the lm's logits; None where these are over ids."""
        return getattr(self.model, "label_map", None)

    def _labels(self, ids: Tensor) -> Tensor:
        """Ids of words as the lm's logits count them."""
        return ids if self.label_map is None else self.label_map(ids)

    def _language_model(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
        output_rows: Tensor | None,
    ) -> tuple:
        """The lm's own outputs: (logits [b, s, v/p], *mems), or [r, v/p] of the output rows."""
        logits, *mems = self.model(input_ids, position_ids, attention_mask, output_rows=output_rows)
        return (scatter_to_model_parallel_region(logits), *mems)

    def _to_file(self, name: str) -> str:
        return name.removeprefix("model.")

    def _to_module(self, name: str) -> str:
        return name if name.split(".", 1)[0] in self.own else "model." + name


class GLMForSingleTokenCloze(_Head):
    """Scores of one-word answers: the logits of the verbalizers at the start-of-piece token."""

    def __init__(self, lm: nn.Module, take_softmax: bool = False):
        super().__init__(lm)
        self.take_softmax = take_softmax

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
        target_ids: Tensor | None = None,
        hook: dict | None = None,
        hook_op: dict | None = None,
        output_rows: Tensor | None = None,
    ) -> tuple:
        """[b, s], [b, 2, s], sep [b], verbalizer ids [b, k] -> (scores [b, k], logits, *mems).

        The logits [b, v] are those at position sep. `take_softmax`: scores are log-probabilities.
        Without verbalizers: the language model, of `output_rows` only where they are given.
        """
        if target_ids is None:
            return self._language_model(input_ids, position_ids, attention_mask, output_rows)
        batch, length = input_ids.shape
        rows = torch.arange(batch, device=input_ids.device) * length + attention_mask
        (logits, *mems), captured = _call(
            self.model, input_ids, position_ids, attention_mask, rows, hook, hook_op
        )
        values = logits.float().log_softmax(-1) if self.take_softmax else logits.float()
        return _result((values.gather(1, self._labels(target_ids)), logits, *mems), captured, hook)


class GLMForMultiTokenCloze(_Head):
    """Scores of answers of several words: the sum of their tokens' log-probabilities."""

    def __init__(self, lm: nn.Module, length_penalty: float = 0.0, take_softmax: bool = True):
        super().__init__(lm)
        self.length_penalty, self.take_softmax = length_penalty, take_softmax

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
        target_ids: Tensor | None = None,
        logit_mask: Tensor | None = None,
        segments: Tensor | None = None,
        hook: dict | None = None,
        hook_op: dict | None = None,
        output_rows: Tensor | None = None,
    ) -> tuple:
        """[b, c, s], [b, c, 2, s], sep [b, c], then [b, c, s] twice -> (scores [b, c], *mems).

        `target_ids` holds the answers' tokens, `logit_mask` 1 where one is scored.
        `segments` [b, c, r]: the r rows are parts of c answers, 1 where row r is one of answer c;
        an answer's score is the sum of its parts'. Captures have b * c (or b * r) rows.
        Without answers: the language model of [b, s], as in `GLMForSingleTokenCloze`.
        """
        if target_ids is None:
            return self._language_model(input_ids, position_ids, attention_mask, output_rows)
        rows = logit_mask.flatten().nonzero().squeeze(1)
        (logits, *mems), captured = _call(
            self.model,
            input_ids.flatten(0, 1),
            position_ids.flatten(0, 1),
            attention_mask.flatten(),
            rows,
            hook,
            hook_op,
        )
        scores = _answer_scores(
            *(logits, rows, self._labels(target_ids), logit_mask),
            *(self.length_penalty, self.take_softmax),
        )
        if segments is not None:
            scores = (segments * scores[:, None]).sum(-1)
        return _result((scores, *mems), captured, hook)


class GLMForMultiTokenClozeFast(_Head):
    """The same scores with the context encoded once for all its answers.

    The context's states are the memory of every answer; each answer sees it up to sep, and itself
    causally, as in `GLMForMultiTokenCloze`. Hooks go to the pass over the answers.
    """

    def __init__(self, lm: nn.Module, length_penalty: float = 0.0):
        super().__init__(lm)
        self.length_penalty = length_penalty

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
        dec_input_ids: Tensor | None = None,
        dec_position_ids: Tensor | None = None,
        dec_target_ids: Tensor | None = None,
        dec_logit_mask: Tensor | None = None,
        hook: dict | None = None,
        hook_op: dict | None = None,
        output_rows: Tensor | None = None,
    ) -> tuple:
        """Context [b, s], [b, 2, s], sep [b] and c answers of t tokens -> (scores [b, c],).

        `dec_*`: ids, targets and mask [b, c, t], positions [b, c, 2, t]; without them the language
        model, as in `GLMForSingleTokenCloze`.
        """
        if dec_input_ids is None:
            return self._language_model(input_ids, position_ids, attention_mask, output_rows)
        choices = dec_input_ids.size(1)
        nothing = input_ids.new_empty(0)
        _, *mems = self.model(
            input_ids,
            position_ids,
            attention_mask,
            return_memory=True,
            detach_memory=False,
            output_rows=nothing,
        )
        mems = [memory.repeat_interleave(choices, 0) for memory in mems]
        mask = _answer_mask(attention_mask, input_ids.size(1), dec_input_ids.size(2))
        rows = dec_logit_mask.flatten().nonzero().squeeze(1)
        (logits, *_), captured = _call(
            self.model,
            dec_input_ids.flatten(0, 1),
            dec_position_ids.flatten(0, 1),
            mask.repeat_interleave(choices, 0),
            rows,
            hook,
            hook_op,
            mems,
        )
        targets = self._labels(dec_target_ids)
        scores = _answer_scores(logits, rows, targets, dec_logit_mask, self.length_penalty)
        return _result((scores,), captured, hook)


class GLMForSequenceClassification(_Head):
    """Classes from one hidden state: linear, tanh, dropout, linear. The lm predicts no words.

    `pool_token`: cls is position 0, start is position sep, pad is position sep - 1.
    """

    own = ("pool_layer", "multichoice_head")

    def __init__(
        self,
        lm: nn.Module,
        hidden_size: int,
        dropout: float,
        pool_token: str,
        num_classes: int,
        seed: int = 1234,
    ):
        super().__init__(lm)
        assert pool_token in ("cls", "start", "pad"), pool_token
        self.pool_token, self.num_classes = pool_token, num_classes
        init_method = normal(INIT_STD, torch.Generator().manual_seed(derive_seed(seed, "head")))
        self.pool_layer = linear(hidden_size, hidden_size, init_method)
        self.dropout = nn.Dropout(dropout)
        self.multichoice_head = linear(hidden_size, num_classes, init_method)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
        hook: dict | None = None,
        hook_op: dict | None = None,
    ) -> tuple:
        """[b, s], [b, 2, s], sep [b] -> (scores [b, classes], *mems).

        With choices ([b, c, s], [b, c, 2, s], [b, c], one class): (scores [b, c], *mems).
        """
        choices = input_ids.size(1) if input_ids.dim() == 3 else None
        if choices is not None:
            assert self.num_classes == 1, self.num_classes
            input_ids, position_ids = input_ids.flatten(0, 1), position_ids.flatten(0, 1)
            attention_mask = attention_mask.flatten()
        batch, length = input_ids.shape
        rows = torch.arange(batch, device=input_ids.device) * length
        if self.pool_token != "cls":
            rows = rows + attention_mask - int(self.pool_token == "pad")
        (hidden, *mems), captured = _call(
            self.model, input_ids, position_ids, attention_mask, rows, hook, hook_op
        )
        scores = self.multichoice_head(self.dropout(torch.tanh(self.pool_layer(hidden))))
        scores = scores if choices is None else scores.view(-1, choices)
        return _result((scores, *mems), captured, hook)


def _call(
    lm: nn.Module,
    input_ids: Tensor,
    position_ids: Tensor,
    attention_mask: Tensor,
    rows: Tensor,
    hook: dict | None,
    hook_op: dict | None,
    mems: list[Tensor] | tuple = (),
) -> tuple[tuple, Any]:
    """(outputs, captured or None) of the lm at these rows."""
    outputs = lm(
        input_ids,
        position_ids,
        attention_mask,
        *mems,
        output_rows=rows,
        hook=hook,
        hook_op=hook_op,
    )
    return (outputs, None) if hook is None else outputs


def _result(outputs: tuple, captured: Any, hook: dict | None) -> tuple:
    return outputs if hook is None else (outputs, captured)


def _answer_mask(sep: Tensor, context: int, length: int) -> Tensor:
    """bool [b, 1, t, s + t]: columns of the context up to sep, those of the answer causally."""
    column = torch.arange(context + length, device=sep.device)
    row = torch.arange(context, context + length, device=sep.device)
    answer = (column >= context) & (column <= row[:, None])
    return (column < sep.view(-1, 1, 1, 1)) | answer


def _answer_scores(
    logits: Tensor,
    rows: Tensor,
    target_ids: Tensor,
    logit_mask: Tensor,
    length_penalty: float,
    take_softmax: bool = True,
) -> Tensor:
    """Logits [r, v] at the r set positions of logit_mask [b, c, s] -> scores [b, c], float32.

    score = sum over an answer's tokens of log softmax(z)[token], divided by length ** penalty.
    """
    values = logits.float().log_softmax(-1) if take_softmax else logits.float()
    values = values.gather(1, target_ids.flatten()[rows].unsqueeze(1)).squeeze(1)
    scores = values.new_zeros(logit_mask.numel()).index_copy(0, rows, values)
    scores = scores.view_as(logit_mask).sum(-1)
    if length_penalty > 0:
        scores = scores / logit_mask.sum(-1).clamp(min=1) ** length_penalty
    return scores
