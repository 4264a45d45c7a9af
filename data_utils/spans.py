"""Which tokens of a sample are cut out: short spans, whole sentences, one long span.

Short spans cover 15% of a sample. Their lengths follow Poisson(average)'s probabilities of
1 ... 39. Every random choice comes from the generator that is passed in.
"""

import math
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from random import Random

import numpy as np

BERT_RATIO = 0.15
LONGEST_SPAN = 39

Span = tuple[int, int]  # first token, one behind the last token


@cache
def span_weights(average: int) -> tuple[float, ...]:
    """Poisson(average)'s probabilities of the lengths 1 ... 39, not normalised."""
    return tuple(
        math.exp(k * math.log(average) - average - math.lgamma(k + 1))
        for k in range(1, LONGEST_SPAN + 1)
    )


@cache
def _cumulative(average: int) -> list[float]:
    return list(accumulate(span_weights(average)))


def draw_lengths(
    num_tokens: int, rng: Random, average: int = 3, single: bool = False, least: int = 1
) -> list[int]:
    """Lengths of spans until they cover 15% of `num_tokens`, or of one span."""
    lengths: list[int] = []
    covered, goal = 0, max(least, int(BERT_RATIO * num_tokens))
    while covered < goal and not (single and lengths):
        lengths += rng.choices(range(1, LONGEST_SPAN + 1), cum_weights=_cumulative(average))
        covered += lengths[-1]
    return lengths


def place_spans(
    tokens: Sequence[int],
    lengths: list[int],
    rng: Random,
    eos: int,
    enc: int,
    ratio: float = BERT_RATIO,
) -> list[Span]:
    """Places for spans of these lengths (which are shuffled). Fewer come back if not all fit.

    Documents inside the sample end with eos, and neither eos nor a leading ENC is masked. The
    shorter ones take spans up to `ratio` of their tokens, the longest takes the rest.
    """
    rng.shuffle(lengths)
    regions = sorted(_regions(tokens, eos, enc), key=lambda region: region[1])
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


def _regions(tokens: Sequence[int], eos: int, enc: int) -> list[Span]:
    """(first maskable token, number of them) of each document, the last document first."""
    regions, end = [], len(tokens)
    borders = [i for i, token in enumerate(tokens) if token == eos]
    for border in reversed([-1, *borders]):
        start = border + 1
        if start < len(tokens) and tokens[start] == enc:
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


def sentence_spans(
    tokens: Sequence[int], sentence_ends: np.ndarray, eos: int, enc: int
) -> list[Span]:
    """The sentences of a sample: runs up to a token that holds a sentence end, and the rest.

    sentence_ends [vocabulary] bool. ENC starts a sentence anew; what an eos cuts off is none.
    """
    spans, first = [], 0
    for i, token in enumerate(tokens):
        if token in (eos, enc):
            first = i + 1
        elif sentence_ends[token]:
            spans.append((first, i + 1))
            first = i + 1
    if first < len(tokens):
        spans.append((first, len(tokens)))
    return spans


def draw_sentences(spans: Sequence[Span], num_tokens: int, ratio: float, rng: Random) -> list[Span]:
    """Sentences in random order until they cover `ratio` of `num_tokens`; at least one."""
    order = list(spans)
    rng.shuffle(order)
    chosen: list[Span] = []
    covered = 0
    for span in order:
        chosen.append(span)
        covered += span[1] - span[0]
        if covered >= int(ratio * num_tokens):
            break
    return chosen


def draw_crop(
    tokens: Sequence[int],
    target: int,
    sentence_ends: np.ndarray,
    eos: int,
    rng: Random,
) -> Span:
    """A window of about `target` tokens, from one sentence to the end of another.

    Its start moves left to a sentence's or document's, its end to the left likewise unless that
    leaves less than half. The whole of `tokens` if they are no more than `target`.
    """
    if target >= len(tokens):
        return 0, len(tokens)

    def ends(i: int) -> bool:
        return bool(tokens[i] == eos or sentence_ends[tokens[i]])

    start = rng.randrange(len(tokens) - target)
    while start > 0 and (tokens[start] == eos or not ends(start - 1)):
        start -= 1
    end = start + target
    while end > start and not ends(end - 1):
        end -= 1
    return start, end if end - start >= target // 2 else start + target
