"""Span corruption: GLM's autoregressive blank infilling (Du et al., 2022, arXiv 2103.10360).

    tokens   ENC x1 x2 x3 x4 x5 eos        spans (2, 4) and (5, 6), the second one first
    text     ENC x1 M  x4 M  eos | sop x5  sop x2  x3
    target   ENC x1 M  x4 M  eos | x5  eop x2  x3  eop      counted in the loss after the |
    position 0   1  2  3  4  5   | 4   4   2   2   2
    block    0   0  0  0  0  0   | 1   2   1   2   3
    sep = 6: what lies before it sees itself in both directions, what follows is causal.

Spans cover 15% of a sample. Their lengths follow Poisson(average)'s probabilities of 1..39.
Every random choice comes from the generator that is passed in.

Not as in the seed: a sample whose spans do not all fit is drawn again instead of dropped, and a
sample shorter than 7 tokens gets a span as well. Other kinds of samples (gap sentences,
generation) are further functions from tokens and a generator to spans; `assemble` serves all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from random import Random

import numpy as np
import torch

from data_utils.batch import Batch
from data_utils.tokenization import Tokenizer

BERT_RATIO = 0.15
LONGEST_SPAN = 39

Span = tuple[int, int]  # first token, one behind the last token


@dataclass(frozen=True)
class SpecialIds:
    """The ids that span corruption knows."""

    eos: int
    ENC: int  # noqa: N815 - names of the command tokens
    MASK: int
    sop: int
    eop: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "SpecialIds":
        """Those of a tokenizer."""
        names = ("eos", "ENC", "MASK", "sop", "eop")
        return cls(*(tokenizer.get_command(name).Id for name in names))


@dataclass
class BlockSample:
    """One corrupted sample: context up to `sep`, then the spans. All lists are as long as text."""

    text: list[int]
    target: list[int]
    position: list[int]
    block_position: list[int]
    sep: int
    index: int = 0
    weight: float = 1.0


@dataclass(frozen=True)
class SpanCorruption:
    """BERT-like short spans: samples of the kind that --bert-prob counts."""

    ids: SpecialIds
    average: int = 3
    single_span_prob: float = 0.0
    shuffle: bool = True  # the order of spans in the target part
    block_position: bool = True

    def __call__(self, tokens: Sequence[int], rng: Random) -> BlockSample:
        """Corrupt a sample. Deterministic in (tokens, state of rng); there is always a span."""
        single = rng.random() < self.single_span_prob
        spans: list[Span] = []
        # GLM's rule may leave no room: many short documents in a row. Draw again, and then let
        # the shorter documents take more than their share.
        for ratio in (BERT_RATIO, BERT_RATIO, 0.5, 1.0, 1.0):
            lengths = self.draw_lengths(len(tokens), rng, single)
            spans = place_spans(tokens, lengths, rng, self.ids, ratio)
            if len(spans) == len(lengths):
                break
        if not spans:
            spans = place_spans(tokens, [1], rng, self.ids, 1.0)
        assert spans, f"nothing to predict in {list(tokens)[:20]}"
        return self.finish(tokens, spans, rng)

    def like_the_seed(self, samples: Sequence[Sequence[int]], rng: Random) -> list[BlockSample]:
        """A batch with the seed's order of random calls; samples that do not fit are dropped."""
        rng.random()  # short sequences: probability 0
        single = rng.random() < self.single_span_prob
        if not single:
            rng.random()  # the kind of the batch
        batch = []
        for tokens in samples:
            lengths = self.draw_lengths(len(tokens), rng, single, least=0)
            rng.shuffle(lengths)
            spans = place_spans(tokens, lengths, rng, self.ids)
            if len(spans) == len(lengths):
                batch.append(self.finish(tokens, spans, rng))
        return batch

    def draw_lengths(
        self, num_tokens: int, rng: Random, single: bool = False, least: int = 1
    ) -> list[int]:
        """Lengths of spans until they cover 15% of `num_tokens`, or of one span."""
        lengths: list[int] = []
        covered, goal = 0, max(least, int(BERT_RATIO * num_tokens))
        while covered < goal and not (single and lengths):
            lengths += rng.choices(range(1, LONGEST_SPAN + 1), cum_weights=self._weights)
            covered += lengths[-1]
        return lengths

    def finish(self, tokens: Sequence[int], spans: list[Span], rng: Random) -> BlockSample:
        """Bring the spans into their order in the target part and assemble the sample."""
        if self.shuffle:
            rng.shuffle(spans)
        else:
            spans = sorted(spans)
        return assemble(tokens, spans, self.ids, block_position=self.block_position)

    @cached_property
    def _weights(self) -> list[float]:
        return list(accumulate(span_weights(self.average)))


def span_weights(average: int) -> list[float]:
    """Poisson(average)'s probabilities of the lengths 1 ... 39, not normalised."""
    return [
        math.exp(k * math.log(average) - average - math.lgamma(k + 1))
        for k in range(1, LONGEST_SPAN + 1)
    ]


def place_spans(
    tokens: Sequence[int],
    lengths: list[int],
    rng: Random,
    ids: SpecialIds,
    ratio: float = BERT_RATIO,
) -> list[Span]:
    """Places for spans of these lengths (which are shuffled). Fewer come back if not all fit.

    Documents inside the sample end with eos, and neither eos nor a leading ENC is masked. The
    shorter ones take spans up to `ratio` of their tokens, the longest takes the rest.
    """
    rng.shuffle(lengths)
    regions = sorted(_regions(tokens, ids), key=lambda region: region[1])
    spans: list[Span] = []
    done = 0
    for number, (offset, length) in enumerate(regions):
        last = number == len(regions) - 1
        covered, taken = 0, done
        while taken < len(lengths):
            more = covered + lengths[taken]
            # n spans need a token between each other: n - 1 more
            fits = more + taken - done <= length
            if not fits or (not last and more > int(length * ratio)):
                break
            covered, taken = more, taken + 1
        spans += _spread(lengths[done:taken], offset, length, rng)
        done = taken
    return spans


def _regions(tokens: Sequence[int], ids: SpecialIds) -> list[Span]:
    """(first maskable token, number of them) of each document, the last document first."""
    regions, end = [], len(tokens)
    borders = [i for i, token in enumerate(tokens) if token == ids.eos]
    for border in reversed([-1, *borders]):
        start = border + 1
        if start < len(tokens) and tokens[start] == ids.ENC:
            start += 1
        length = end - start
        if end == len(tokens):  # not ended by eos: its last token stays
            length -= 1
        regions.append((start, max(0, length)))
        end = border
    return regions


def _spread(lengths: Sequence[int], offset: int, length: int, rng: Random) -> list[Span]:
    """Spans of these lengths, in order, at random places of a region, a token between them."""
    if not lengths:
        return []
    room = length - sum(lengths) - len(lengths) + 1
    places = sorted(rng.randrange(room + 1) for _ in lengths)
    spans = []
    for place, span in zip(places, lengths, strict=True):
        spans.append((offset + place, offset + place + span))
        offset += span + 1
    return spans


def assemble(
    tokens: Sequence[int],
    spans: Sequence[Span],
    ids: SpecialIds,
    *,
    mask_id: int | None = None,
    block_position: bool = True,
) -> BlockSample:
    """Cut `spans` out of `tokens` and append them in the order given (module docstring).

    mask_id: what stands for a span; default MASK. Without `block_position` all are 1.
    Raises ValueError if a span holds the end of a document.
    """
    tokens = list(tokens)
    mask_id = ids.MASK if mask_id is None else mask_id
    text: list[int] = []
    mask_at, end = {}, 0
    for span in sorted(spans):
        text += tokens[end : span[0]]
        mask_at[span] = len(text)
        text.append(mask_id)
        end = span[1]
    text += tokens[end:]
    sep = len(text)
    target, position, block = text.copy(), list(range(sep)), [0] * sep
    for span in spans:
        piece = tokens[span[0] : span[1]]
        if ids.eos in piece:
            raise ValueError(f"span {span} holds the end of a document: {piece}")
        text += [ids.sop, *piece]
        target += [*piece, ids.eop]
        position += [mask_at[span]] * (len(piece) + 1)
        block += range(1, len(piece) + 2) if block_position else [1] * (len(piece) + 1)
    return BlockSample(text, target, position, block, sep)


def collate(samples: Sequence[BlockSample]) -> Batch:
    """Batch of corrupted samples, padded with 0 on the right to the longest."""
    rows, longest = len(samples), max(len(s.text) for s in samples)
    tokens, target = np.zeros((2, rows, longest), dtype=np.int64)
    positions = np.zeros((rows, 2, longest), dtype=np.int64)
    loss_mask = np.zeros((rows, longest), dtype=np.float32)
    for row, sample in enumerate(samples):
        length = len(sample.text)
        tokens[row, :length] = sample.text
        target[row, :length] = sample.target
        positions[row, 0, :length] = sample.position
        positions[row, 1, :length] = sample.block_position
        loss_mask[row, sample.sep : length] = 1
    return Batch(
        tokens=torch.from_numpy(tokens),
        position_ids=torch.from_numpy(positions),
        attention_mask=torch.tensor([s.sep for s in samples]),
        labels=torch.from_numpy(target),
        weight=torch.tensor([s.weight for s in samples]),
        sample_ids=torch.tensor([s.index for s in samples]),
        loss_mask=torch.from_numpy(loss_mask),
    )
