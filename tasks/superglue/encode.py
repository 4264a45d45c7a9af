"""From filled patterns to token ids: truncation, the mask, the answer, compact storage.

A cloze row is `[ENC] A B [eos] [sop] answer...`; everything up to [eos], whose end is the
separator, is visible to all, the answer is generated at the mask. A classifier's row is
`[ENC] A [sep] B [eos]`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from config.errors import ConfigError
from data_utils.tokenization import Tokenizer


@dataclass(frozen=True, slots=True)
class Cut:
    """Text that may lose tokens at its end when a row is too long."""

    text: str


class Mask:
    """Where the answer belongs."""


MASK = Mask()
Part = str | Cut | Mask
Piece = tuple[list[int], Part]


@dataclass(frozen=True, slots=True)
class Row:
    """One filled pattern: parts A and B are shortened against each other; the answer never."""

    a: Sequence[Part]
    b: Sequence[Part] | None = None
    answer: str | None = None  # None: one token, scored by the verbalizers


@dataclass(frozen=True, slots=True)
class Layout:
    """How rows become ids."""

    seq_length: int
    cloze: bool = True
    fast_decode: bool = False  # one context a sample, the answers as rows of their own
    w14: bool = False  # the seed: answers belong to the first mask id, even one in the user's own
    # text; a classifier's row is cut at its end, where the second text may be lost


@dataclass(slots=True)
class Sample:
    """One example as ids. c choices; one context for all with fast decoding."""

    contexts: list[np.ndarray]  # int32, up to and including [eos]
    masks: list[int]  # position of the mask in each context; 0 without cloze
    answers: list[np.ndarray]  # int32, ending in [eop]; empty: one token, or no cloze
    label: int
    sample_id: int
    weight: float = 1.0


@dataclass(slots=True)
class Encoded:
    """All samples of a split in a few flat arrays."""

    contexts: "Ragged"
    answers: "Ragged"
    masks: np.ndarray  # int32 [contexts]
    first_context: np.ndarray  # int64 [samples + 1]
    first_answer: np.ndarray  # int64 [samples + 1]
    num_truncated: int = 0  # rows that lost tokens
    num_squeezed: int = 0  # those among them that also lost text meant to stay, as a COPA choice

    def sample(self, i: int, label: int, weight: float) -> Sample:
        """Sample i."""
        rows = range(self.first_context[i], self.first_context[i + 1])
        answers = range(self.first_answer[i], self.first_answer[i + 1])
        return Sample(
            contexts=[self.contexts[r] for r in rows],
            masks=[int(self.masks[r]) for r in rows],
            answers=[self.answers[r] for r in answers],
            label=label,
            sample_id=i,
            weight=weight,
        )


class Ragged:
    """Lists of ids of unequal length as one int32 array and offsets."""

    def __init__(self, lists: Sequence[Sequence[int]]):
        self.start = np.zeros(len(lists) + 1, dtype=np.int64)
        np.cumsum([len(x) for x in lists], out=self.start[1:])
        self.flat = np.fromiter((i for x in lists for i in x), np.int32, count=int(self.start[-1]))

    def __getitem__(self, i: int) -> np.ndarray:
        return self.flat[self.start[i] : self.start[i + 1]]

    def __len__(self) -> int:
        return len(self.start) - 1


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
        first_context.append(len(encoder.contexts))
        first_answer.append(len(encoder.answers))
    return Encoded(
        contexts=Ragged(encoder.contexts),
        answers=Ragged(encoder.answers),
        masks=np.array(encoder.masks, dtype=np.int32),
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
class _Encoder:
    tokenizer: Tokenizer
    layout: Layout
    contexts: list[list[int]] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)
    masks: list[int] = field(default_factory=list)
    num_truncated: int = 0
    num_squeezed: int = 0
    ids: dict[str, list[int]] = field(default_factory=dict)
    command: dict[str, int] = field(default_factory=dict)

    def __post_init__(self):
        names = ("ENC", "MASK", "sep", "eos", "eop")
        self.command = {name: self.tokenizer.get_command(name).Id for name in names}

    def tokenize(self, rows: Iterable[Row]) -> None:
        """Fill `ids` with every text of the rows."""
        texts: dict[str, None] = {}
        for row in rows:
            for part in (*row.a, *(row.b or ())):
                if not isinstance(part, Mask):
                    texts[part if isinstance(part, str) else part.text] = None
            if row.answer is not None:
                texts[row.answer] = None
        self.ids = dict(zip(texts, self.tokenizer.encode_batch(list(texts)), strict=True))

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
            else:
                answer = self._add_context(row, self._ids_of(row.answer), where)
                self._add_answer(row, answer)

    def _add_answer(self, row: Row, ids: list[int]) -> None:
        """The answer and [eop]; nothing where verbalizers score."""
        self.answers.append([] if row.answer is None else [*ids, self.command["eop"]])

    def _add_context(self, row: Row, answer: list[int], where: str) -> list[int]:
        """Append the ids up to [eos]; returns the answer, shorter if nothing else could give."""
        sides = [self._pieces(row.a), self._pieces(row.b or ())]
        # Beside the texts and the answer's inputs: [ENC], [eos], [sop].
        room = self.layout.seq_length - 3
        surplus = sum(len(ids) for side in sides for ids, _ in side) + len(answer) - room
        if surplus > 0:
            self.num_truncated += 1
            answer = self._fit(sides, answer, surplus, where)
        context = [self.command["ENC"]]
        mask = 0
        for ids, part in (piece for side in sides for piece in side):
            if isinstance(part, Mask):
                mask = len(context)
            context += ids
        self.contexts.append([*context, self.command["eos"]])
        self.masks.append(context.index(self.command["MASK"]) if self.layout.w14 else mask)
        return answer

    def _add_classifier_context(self, row: Row, where: str) -> None:
        sides = [self._pieces(row.a), self._pieces(row.b or ())]
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
        self.contexts.append([*context[: self.layout.seq_length - 1], self.command["eos"]])
        self.masks.append(0)
        self.answers.append([])

    def _pieces(self, parts: Sequence[Part]) -> list[Piece]:
        return [(self._part_ids(part), part) for part in parts]

    def _part_ids(self, part: Part) -> list[int]:
        if isinstance(part, Mask):
            return [self.command["MASK"]]
        return self._ids_of(part if isinstance(part, str) else part.text)

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
        lengths = [len(ids) for side in sides for ids, _ in side] + [len(answer)]
        cap = cut_level(lengths, sum(lengths) - surplus)
        if cap < 1:
            raise ValueError(f"{where}: no room in --seq-length={self.layout.seq_length}")
        for side in sides:
            side[:] = [(ids[:cap], part) for ids, part in side]
        return answer[:cap]
