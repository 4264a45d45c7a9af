"""Cloze rows encoded as toolkits used to: each epoch anew, token by token, in plain Python.

What benchmarks compare `tasks.superglue.encode` with. The same ids; of the seed it has what it
costs (toolkit specification, sections 11.2 and 17, 24): texts are tokenised at every look at an
example, its parts are copied for every answer, a row that is too long loses one token at a time,
and every array is as long as a row may be.
"""

import copy
from collections.abc import Sequence

import numpy as np

from scripts.slow_wordpiece import SlowWordPiece
from tasks.superglue.encode import Cut, Mask, Part, Row

SlowPart = tuple[list[int], bool]  # ids, and may they go


def slow_sample(
    rows: Sequence[Row], tokenizer: SlowWordPiece, seq_length: int
) -> dict[str, np.ndarray]:
    """The answers of one pattern: tokens, targets, logit_mask [c, s], positions [c, 2, s], sep [c].

    A row is its context, [sop] and the answer but for [eop], filled with [eos].
    """
    first = rows[0]
    sides = [[_encode(part, tokenizer) for part in side] for side in (first.a, first.b or ())]
    found = []
    for row in rows:
        a, b = copy.deepcopy(sides)
        assert row.answer is not None, "answers are texts"
        answer = tokenizer.encode(row.answer)
        _truncate(a, b, len(answer), seq_length - 3)
        context = [i for ids, _ in [*a, *b] for i in ids]
        found.append(_arrays(context, answer, tokenizer, seq_length))
    return {name: np.stack([arrays[name] for arrays in found]) for name in found[0]}


def _encode(part: Part, tokenizer: SlowWordPiece) -> SlowPart:
    if isinstance(part, Mask):
        return [tokenizer.get_command("MASK").Id], False
    if isinstance(part, Cut):
        return tokenizer.encode(part.text), True
    return (tokenizer.encode(part) if isinstance(part, str) else []), False


def _truncate(a: list[SlowPart], b: list[SlowPart], answer: int, room: int) -> None:
    while sum(len(ids) for ids, _ in a) + sum(len(ids) for ids, _ in b) + answer > room:
        longer = sum(len(ids) for ids, cut in a if cut) > sum(len(ids) for ids, cut in b if cut)
        side = a if longer else b
        last = max(k for k, (ids, cut) in enumerate(side) if cut and ids)
        side[last] = (side[last][0][:-1], True)


def _arrays(
    context: list[int], answer: list[int], tokenizer: SlowWordPiece, size: int
) -> dict[str, np.ndarray]:
    eos, eop = tokenizer.get_command("eos").Id, tokenizer.get_command("eop").Id
    mask = tokenizer.get_command("MASK").Id
    ids = [tokenizer.get_command("ENC").Id, *context, eos]
    sep, place, steps = len(ids), ids.index(mask), len(answer) + 1
    rest = size - sep - steps
    inputs = [*ids, tokenizer.get_command("sop").Id, *answer, *[eos] * rest]
    positions = [*range(sep), *[place] * steps, *[0] * rest]
    blocks = [*[0] * sep, *range(1, steps + 1), *[0] * rest]
    targets = [*[0] * sep, *answer, eop, *[0] * rest]
    scored = [*[0] * sep, *[1] * steps, *[0] * rest]
    return {
        "tokens": np.array(inputs, dtype=np.int64),
        "positions": np.array([positions, blocks], dtype=np.int64),
        "targets": np.array(targets, dtype=np.int64),
        "logit_mask": np.array(scored, dtype=np.int64),
        "sep": np.array(sep, dtype=np.int64),
    }
