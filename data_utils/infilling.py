"""BlankInfilling: what becomes of the tokens of a sample.

    bert      short spans, 15% of the tokens, back in random order      --bert-prob
    sentence  whole sentences (gap sentences)                           --gap-sentence-prob
    gpt       one long blank: the rest of the sample after its start,   what is left of 1
              or a span anywhere (1 - --gpt-infill-prob)

Not as in the seed, which draws the kind (and whether sequences are short) once for a batch: a
sample is a pure function of its tokens and its generator. And no sample is dropped: where a kind
finds nothing to cut out, or spans do not all fit, it is drawn again, or becomes one of short spans.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from data_utils.block import (
    BlockSample,
    SpecialIds,
    assemble,
    continue_text,
    hide_context,
    hide_inputs,
    mask_in_place,
)
from data_utils.spans import (
    BERT_RATIO,
    Span,
    draw_crop,
    draw_lengths,
    draw_sentences,
    place_spans,
    sentence_spans,
)

SHORTEST = 32  # tokens that --short-seq-prob leaves at least


@dataclass(frozen=True, eq=False)
class BlankInfilling:
    """Corrupts samples; see the module. Probabilities and ratios are the flags of their names."""

    ids: SpecialIds
    sentence_ends: np.ndarray | None = None  # [vocabulary] bool; for sentences and short sequences
    seq_length: int = 512
    average: int = 3
    bert_prob: float = 1.0
    gap_sentence_prob: float = 0.0
    gap_sentence_ratio: float = 0.15
    gpt_infill_prob: float = 0.5
    gpt_min_ratio: float = 0.5
    short_seq_prob: float = 0.0
    single_span_prob: float = 0.0
    block_mask_prob: float = 0.0
    context_mask_ratio: float = 0.0
    random_position: bool = False
    sentinels: bool = False
    masked_lm: bool = False
    shuffle: bool = True  # the order of spans in the target part
    block_position: bool = True

    def __call__(
        self, tokens: Sequence[int], rng: Random, mask: Sequence[int] | None = None
    ) -> BlockSample:
        """Corrupt a sample. Deterministic in (tokens, mask, state of rng).

        mask: 1 on tokens that may count as targets where the sample itself says it (its rest to be
        generated, and --masked-lm); default: all but ENC. Something is always to be predicted.
        """
        counts = [int(t != self.ids.ENC) for t in tokens] if mask is None else list(mask)
        if self.short_seq_prob and rng.random() < self.short_seq_prob:
            tokens, counts = self.shorten(tokens, counts, rng)
        single = rng.random() < self.single_span_prob
        kind = "bert" if single or self.bert_prob >= 1 else self.draw_kind(rng)
        sample = None
        if kind == "sentence":
            sample = self.sentences(tokens, rng)
        elif kind == "gpt":
            sample = self.generation(tokens, counts, rng)
        return sample or self.short_spans(tokens, counts, rng, single)

    def draw_kind(self, rng: Random) -> str:
        """bert, sentence or gpt."""
        draw = rng.random()
        if draw < self.bert_prob:
            return "bert"
        return "sentence" if draw < self.bert_prob + self.gap_sentence_prob else "gpt"

    def shorten(
        self, tokens: Sequence[int], counts: list[int], rng: Random
    ) -> tuple[list[int], list[int]]:
        """A part of the sample, and of its mask: 32 to seq_length - 2 tokens, and ENC.

        The seed puts several such parts of every sample into the batch, which grows.
        """
        assert self.sentence_ends is not None, "short sequences end with sentences"
        most = self.seq_length - 1
        target = rng.randrange(min(SHORTEST, most // 2), most)
        body, counts = list(tokens[1:]), counts[1:]
        start, end = draw_crop(body, target, self.sentence_ends, self.ids.eos, rng)
        if body[start] == self.ids.ENC and end - start > 1:
            start += 1
        return [tokens[0], *body[start:end]], [0, *counts[start:end]]

    def short_spans(
        self, tokens: Sequence[int], counts: Sequence[int], rng: Random, single: bool = False
    ) -> BlockSample:
        """A sample of the kind bert, or a masked one with --masked-lm."""
        spans: list[Span] = []
        # GLM's rule may leave no room: many short documents in a row. Draw again, and then let
        # the shorter documents take more than their share.
        for ratio in (BERT_RATIO, BERT_RATIO, 0.5, 1.0, 1.0):
            lengths = draw_lengths(len(tokens), rng, self.average, single)
            spans = self._place(tokens, lengths, rng, ratio)
            if len(spans) == len(lengths):
                break
        if not spans:
            spans = self._place(tokens, [1], rng, 1.0)
        assert spans, f"nothing to predict in {list(tokens)[:20]}"
        if self.masked_lm:
            masked = mask_in_place(tokens, spans, self.ids, counts)
            return (
                masked
                if any(masked.loss)
                else mask_in_place(tokens, spans, self.ids, [1] * len(tokens))
            )
        return self.finish(tokens, spans, rng)

    def sentences(self, tokens: Sequence[int], rng: Random) -> BlockSample | None:
        """A sample of the kind sentence; None if it has none."""
        assert self.sentence_ends is not None, "gap sentences end with sentences"
        spans = sentence_spans(tokens, self.sentence_ends, self.ids.eos, self.ids.ENC)
        if not spans:
            return None
        chosen = draw_sentences(spans, len(tokens), self.gap_sentence_ratio, rng)
        return self.finish(tokens, chosen, rng, "sentence")

    def generation(
        self, tokens: Sequence[int], counts: Sequence[int], rng: Random
    ) -> BlockSample | None:
        """A sample of the kind gpt; None if it is too short."""
        most = len(tokens) - 2
        if most < 1:
            return None
        least = min(max(1, int(self.gpt_min_ratio * len(tokens))), most)
        length = rng.randint(least, most)
        several = self.ids.eos in tokens[:-1]
        if several or rng.random() < self.gpt_infill_prob:
            sample = continue_text(
                tokens, length, self.ids, counts, block_position=self.block_position
            )
            return sample if any(sample.loss) else None
        spans = self._place(tokens, [length], rng, BERT_RATIO)
        return self.finish(tokens, spans, rng, "gpt") if spans else None

    def finish(
        self, tokens: Sequence[int], spans: list[Span], rng: Random, kind: str = "bert"
    ) -> BlockSample:
        """Bring the spans into their order in the target part and assemble the sample."""
        kept = len(tokens) - sum(end - start - 1 for start, end in spans)  # tokens of the context
        shift = 0
        if self.random_position and kept < self.seq_length:
            shift = rng.randrange(self.seq_length - kept + 1)
        spans = list(spans)
        if self.shuffle:
            rng.shuffle(spans)
        else:
            spans.sort()
        sample = assemble(
            *(tokens, spans, self.ids),
            kind=kind,
            block_position=self.block_position,
            shift=shift,
            sentinel_position=self.seq_length if self.sentinels else None,
        )
        if kind == "bert" and self.block_mask_prob:
            hide_inputs(sample, spans, self.ids, self.block_mask_prob, rng)
        if kind == "bert" and self.context_mask_ratio:
            count = int(self.context_mask_ratio * len(tokens))
            hide_context(sample, spans, self.ids, count, rng)
        return sample

    def _place(
        self, tokens: Sequence[int], lengths: list[int], rng: Random, ratio: float
    ) -> list[Span]:
        return place_spans(tokens, lengths, rng, self.ids.eos, self.ids.ENC, ratio)
