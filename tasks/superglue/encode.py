"""From filled patterns to token ids: truncation, the mask, the answer, compact storage.

A cloze row is `[ENC] A B [eos] [sop] answer...`; everything up to [eos], whose end is the
separator, is visible to all, the answer is generated at the mask. A classifier's row is
`[ENC] A [sep] B [eos]`.

Continuous prompts are the ids -1, -2, ... in the order of their places: `model.prompt` has a
vector for each. An answer may be cut in segments, each a row of its own that reads those before it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from config.errors import ConfigError
from data_utils.tokenization import Tokenizer
from tasks.superglue.encoded import Encoded, Ragged


@dataclass(frozen=True, slots=True)
class Cut:
    """Text that may lose tokens at its end when a row is too long."""

    text: str


class Mask:
    """Where the answer belongs."""


class Prompt:
    """Where continuous prompts belong; nothing without --continuous-prompt."""


MASK, PROMPT = Mask(), Prompt()
Part = str | Cut | Mask | Prompt
Piece = tuple[list[int], Part]


@dataclass(frozen=True, slots=True)
class Row:
    """One filled pattern: parts A and B are shortened against each other; the answer never."""

    a: Sequence[Part]
    b: Sequence[Part] | None = None
    answer: str | None = None  # None: one token, scored by the verbalizers

    def same_pattern(self, other: Self) -> bool:
        """Do both have the very same parts A and B?"""
        return self.a is other.a and self.b is other.b


@dataclass(frozen=True, slots=True)
class Layout:
    """How rows become ids."""

    seq_length: int
    cloze: bool = True
    fast_decode: bool = False  # one context a sample, the answers as rows of their own
    segment_length: int = 0  # answers are cut in so many tokens, each part a row; 0: whole
    prompt_tokens: int = 0  # continuous prompts in the slots of the pattern
    prefix_tokens: int = 0  # and before it
    pattern: str = "the pattern"  # in messages
    w14: bool = False  # the seed: answers belong to the first mask id, even one in the user's own
    # text; a classifier's row is cut at its end, where the second text may be lost


def encode(
    rows: Sequence[Sequence[Row]], where: Sequence[str], tokenizer: Tokenizer, layout: Layout
) -> Encoded:
    """Rows of every sample -> ids. Every text is tokenized once, all in one call.

    A row that is too long loses what may be cut (`Cut`), as in the seed. Where that is not enough,
    and the seed fails, its longest pieces are cut to one length, the answer included. ValueError
    names the line (`where`) if there is no room for the pattern.
    """
    encoder = _Encoder(tokenizer, layout)
    encoder.tokenize(row for sample in rows for row in sample)
    first_context, first_answer = [0], [0]
    for sample, place in zip(rows, where, strict=True):
        encoder.add(sample, place)
        first_context.append(len(encoder.rows))
        first_answer.append(len(encoder.answers))
    return Encoded(
        contexts=Ragged(encoder.contexts, encoder.rows),
        answers=Ragged(encoder.answers),
        masks=np.array(encoder.masks, dtype=np.int32)[encoder.rows],
        segments=np.array(encoder.segments, dtype=np.int32) if layout.segment_length else None,
        num_choices=np.array([len(sample) for sample in rows], dtype=np.int32),
        first_context=np.array(first_context, dtype=np.int64),
        first_answer=np.array(first_answer, dtype=np.int64),
        num_truncated=encoder.num_truncated,
        num_squeezed=encoder.num_squeezed,
    )


def cut_shares(a: int, b: int, surplus: int) -> tuple[int, int]:
    """How many tokens A and B lose when `surplus` are taken from the longer side, one at a time.

    a, b: tokens that may go. At equal lengths B loses first.
    """
    ahead = min(surplus, abs(a - b))
    rest = surplus - ahead
    return rest // 2 + (ahead if a > b else 0), (rest + 1) // 2 + (ahead if b > a else 0)


def cut_level(lengths: Sequence[int], room: int) -> int:
    """The largest cap with which pieces of these lengths, each cut to it, fill at most `room`."""
    low, high = 0, max(lengths)
    while low < high:
        cap = (low + high + 1) // 2
        if sum(min(n, cap) for n in lengths) <= room:
            low = cap
        else:
            high = cap - 1
    return low


@dataclass(slots=True)
class _Filled:
    """A pattern's parts as ids. Answers that leave it the same room read the same context."""

    row: Row
    sides: list[list[Piece]]
    size: int  # ids of all parts
    contexts: dict[int, int] = field(default_factory=dict)  # tokens too many -> which context

    @classmethod
    def of(cls, row: Row, sides: list[list[Piece]]) -> Self:
        """Without contexts yet."""
        return cls(row, sides, sum(len(ids) for side in sides for ids, _ in side))


@dataclass(slots=True)
class _Encoder:
    tokenizer: Tokenizer
    layout: Layout
    contexts: list[list[int]] = field(default_factory=list)
    masks: list[int] = field(default_factory=list)  # of each context
    rows: list[int] = field(default_factory=list)  # context of each row
    answers: list[list[int]] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    num_truncated: int = 0
    num_squeezed: int = 0
    ids: dict[str, list[int]] = field(default_factory=dict)
    command: dict[str, int] = field(default_factory=dict)
    filled: "_Filled | None" = None

    def __post_init__(self):
        names = ("ENC", "MASK", "sep", "eos", "eop")
        self.command = {name: self.tokenizer.get_command(name).Id for name in names}

    def tokenize(self, rows: Iterable[Row]) -> None:
        """Fill `ids` with every text of the rows."""
        texts: dict[str, None] = {}
        last = None
        for row in rows:
            if last is None or not row.same_pattern(last):
                for part in (*row.a, *(row.b or ())):
                    if not isinstance(part, Mask | Prompt):
                        texts[_text(part)] = None
            last = row
            if row.answer is not None:
                texts[row.answer] = None
        ids, lengths = self.tokenizer.encode_arrays(list(texts))
        flat, ends = ids.tolist(), np.cumsum(lengths).tolist()
        starts = [0, *ends[:-1]]
        self.ids = {text: flat[i:j] for text, i, j in zip(texts, starts, ends, strict=True)}

    def add(self, rows: Sequence[Row], where: str) -> None:
        """Append the contexts, the positions of their masks and the answers of one sample."""
        for k, row in enumerate(rows):
            if not self.layout.cloze:
                self._add_classifier_context(row, where)
            elif self.layout.fast_decode:
                if k == 0:
                    self._add_context(row, [], where)
                elif (row.a, row.b) != (rows[0].a, rows[0].b):
                    raise ConfigError(
                        "--fast-decode: this pattern has another context for each choice; leave "
                        "it out, or give another --pattern-id"
                    )
                self._add_answer(row, self._ids_of(row.answer))
            elif self.layout.segment_length and row.answer is not None:
                self._add_segments(row, k, where)
            else:
                answer = self._add_context(row, self._ids_of(row.answer), where)
                self._add_answer(row, answer)

    def _add_answer(self, row: Row, ids: list[int]) -> None:
        """The answer and [eop]; nothing where verbalizers score."""
        self.answers.append([] if row.answer is None else [*ids, self.command["eop"]])

    def _add_segments(self, row: Row, choice: int, where: str) -> None:
        """A row for each part of the answer; those before it stand in front of its mask."""
        answer, step = [*self._ids_of(row.answer), self.command["eop"]], self.layout.segment_length
        for start in range(0, len(answer), step):
            part = answer[start : start + step]
            # Of the inputs [sop] has its seat, the part's last token none.
            kept = self._add_context(row, part[:-1], where, before=answer[:start])
            self.answers.append([*kept, part[-1]])
            self.segments.append(choice)

    def _add_context(
        self, row: Row, answer: list[int], where: str, before: Sequence[int] = ()
    ) -> list[int]:
        """Append the ids up to [eos]; returns the answer, shorter if nothing else could give.

        `before`: ids in front of the mask.
        """
        filled = self.filled
        if before or filled is None or not row.same_pattern(filled.row):
            filled = _Filled.of(row, self._sides(row, before))
            self.filled = None if before else filled
        # Beside the texts and the answer's inputs: [ENC], [eos], [sop].
        surplus = max(0, filled.size + len(answer) - (self.layout.seq_length - 3))
        self.num_truncated += surplus > 0
        if surplus in filled.contexts:
            self.rows.append(filled.contexts[surplus])
            return answer
        sides, squeezed = [list(side) for side in filled.sides], self.num_squeezed
        if surplus > 0:
            answer = self._fit(sides, answer, surplus, where)
        self._join(sides)
        if squeezed == self.num_squeezed:
            filled.contexts[surplus] = self.rows[-1]
        return answer

    def _join(self, sides: list[list[Piece]]) -> None:
        """A context of a cloze row, and a row that has it."""
        context = [self.command["ENC"]]
        mask = 0
        for ids, part in (piece for side in sides for piece in side):
            context += ids
            if isinstance(part, Mask):
                mask = len(context) - 1
        mask = context.index(self.command["MASK"]) if self.layout.w14 else mask
        self._append([*context, self.command["eos"]], mask)

    def _append(self, context: list[int], mask: int) -> None:
        self.rows.append(len(self.contexts))
        self.contexts.append(context)
        self.masks.append(mask)

    def _add_classifier_context(self, row: Row, where: str) -> None:
        sides = self._sides(row)
        pair = row.b is not None
        surplus = sum(len(ids) for side in sides for ids, _ in side) + 2 + pair
        surplus -= self.layout.seq_length
        self.num_truncated += surplus > 0
        if surplus > 0 and not self.layout.w14:
            self._fit(sides, [], surplus, where)
        first, second = ([i for ids, _ in side for i in ids] for side in sides)
        context = [self.command["ENC"], *first]
        if pair:
            context += [self.command["sep"], *second]
        self._append([*context[: self.layout.seq_length - 1], self.command["eos"]], 0)
        self.answers.append([])

    def _sides(self, row: Row, before: Sequence[int] = ()) -> list[list[Piece]]:
        """Parts A and B as ids; prompts are dealt out to the slots, the first get one more."""
        parts = [row.a, row.b or ()]
        slots = sum(isinstance(part, Prompt) for side in parts for part in side)
        left, number = self.layout.prompt_tokens, 0
        if left and not slots:
            raise ConfigError(
                f"--num-prompt-tokens={left}: {self.layout.pattern} has no slots for them; give "
                "--prefix-prompt instead"
            )
        share = math.ceil(left / max(1, slots))
        sides: list[list[Piece]] = [[], []]
        if self.layout.prefix_tokens:
            number = self.layout.prefix_tokens
            sides[0].append((_prompt_ids(0, number), PROMPT))
        for side, pieces in zip(parts, sides, strict=True):
            for part in side:
                if isinstance(part, Prompt):
                    size = min(share, left)
                    pieces.append((_prompt_ids(number, size), part))
                    number, left = number + size, left - size
                elif isinstance(part, Mask):
                    pieces += [([*before], "")] if before else []
                    pieces.append(([self.command["MASK"]], part))
                else:
                    pieces.append((self._ids_of(_text(part)), part))
        return sides

    def _ids_of(self, text: str | None) -> list[int]:
        return [] if text is None else self.ids[text]

    def _fit(
        self, sides: list[list[Piece]], answer: list[int], surplus: int, where: str
    ) -> list[int]:
        """Shorten the pieces in place; returns the answer."""
        free = [sum(len(ids) for ids, part in side if isinstance(part, Cut)) for side in sides]
        shares = cut_shares(free[0], free[1], surplus)
        if shares[0] > free[0] or shares[1] > free[1]:
            return self._squeeze(sides, answer, surplus, where)
        for side, share in zip(sides, shares, strict=True):
            for k in range(len(side) - 1, -1, -1):
                ids, part = side[k]
                if share and isinstance(part, Cut):
                    lost = min(share, len(ids))
                    side[k] = (ids[: len(ids) - lost], part)
                    share -= lost
        return answer

    def _squeeze(
        self, sides: list[list[Piece]], answer: list[int], surplus: int, where: str
    ) -> list[int]:
        """Not even without all text that may go does the row fit: every long piece is cut."""
        self.num_squeezed += 1
        texts = [ids for side in sides for ids, part in side if not isinstance(part, Prompt)]
        lengths = [len(ids) for ids in texts] + [len(answer)]
        cap = cut_level(lengths, sum(lengths) - surplus)
        if cap < 1:
            raise ValueError(f"{where}: no room in --seq-length={self.layout.seq_length}")
        for side in sides:
            side[:] = [(ids if isinstance(part, Prompt) else ids[:cap], part) for ids, part in side]
        return answer[:cap]


def _prompt_ids(first: int, number: int) -> list[int]:
    """Ids of `number` prompts, `first` of which there are before them."""
    return [-1 - k for k in range(first, first + number)]


def _text(part: str | Cut) -> str:
    return part if isinstance(part, str) else part.text
