"""From filled patterns to token ids: truncation, the mask, the answer, compact storage.

A cloze row is `[ENC] A B [eos] [sop] answer...`; everything up to [eos], whose end is the
separator, is visible to all, the answer is generated at the mask. A classifier's row is
`[ENC] A [sep] B [eos]`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from data_utils.tokenization import Tokenizer


@dataclass(frozen=True, slots=True)
class Cut:
    """Text that may lose tokens at its end when a row is too long."""

    text: str


class Mask:
    """Where the answer belongs."""


MASK = Mask()
Part = str | Cut | Mask


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
    first_mask: bool = False  # W14: answers belong to the first mask id, the user's own included


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

    ValueError names the line (`where`) whose pattern does not fit into --seq-length.
    """
    encoder = _Encoder(tokenizer, layout)
    encoder.tokenize(row for sample in rows for row in sample)
    first_context, first_answer = [0], [0]
    for sample, place in zip(rows, where, strict=True):
        for row in sample[:1] if layout.fast_decode else sample:
            encoder.add_context(row, place)
        for row in sample:
            encoder.answers.append(encoder.answer(row))
        first_context.append(len(encoder.contexts))
        first_answer.append(len(encoder.answers))
    return Encoded(
        contexts=Ragged(encoder.contexts),
        answers=Ragged(encoder.answers),
        masks=np.array(encoder.masks, dtype=np.int32),
        first_context=np.array(first_context, dtype=np.int64),
        first_answer=np.array(first_answer, dtype=np.int64),
        num_truncated=encoder.num_truncated,
    )


def cut_shares(a: int, b: int, surplus: int) -> tuple[int, int]:
    """How many tokens A and B lose when `surplus` are taken from the longer side, one at a time.

    a, b: tokens that may go. At equal lengths B loses first.
    """
    ahead = min(surplus, abs(a - b))
    rest = surplus - ahead
    return rest // 2 + (ahead if a > b else 0), (rest + 1) // 2 + (ahead if b > a else 0)


@dataclass(slots=True)
class _Encoder:
    tokenizer: Tokenizer
    layout: Layout
    contexts: list[list[int]] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)
    masks: list[int] = field(default_factory=list)
    num_truncated: int = 0
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

    def answer(self, row: Row) -> list[int]:
        """The answer's ids and [eop]; none where the verbalizers or a classifier score."""
        if row.answer is None:
            return []
        return [*self.ids[row.answer], self.command["eop"]]

    def add_context(self, row: Row, where: str) -> None:
        """Append the ids up to [eos] and the position of the mask."""
        if not self.layout.cloze:
            return self._add_classifier_row(row)
        # Seats: [ENC], [eos], and either [sop] or the answer, whose last token is no input.
        seats = 2 + max(1, 0 if self.layout.fast_decode else len(self.answer(row)))
        sides = [self._pieces(row.a), self._pieces(row.b or ())]
        surplus = sum(len(ids) for side in sides for ids, _ in side) + seats
        surplus -= self.layout.seq_length
        if surplus > 0:
            self.num_truncated += 1
            self._shorten(sides, surplus, where)
        context = [self.command["ENC"]]
        mask = 0
        for ids, part in (piece for side in sides for piece in side):
            if isinstance(part, Mask):
                mask = len(context)
            context += ids
        self.contexts.append([*context, self.command["eos"]])
        self.masks.append(context.index(self.command["MASK"]) if self.layout.first_mask else mask)
        return None

    def _add_classifier_row(self, row: Row) -> None:
        context = [self.command["ENC"]]
        context += [i for ids, _ in self._pieces(row.a) for i in ids]
        if row.b is not None:
            context.append(self.command["sep"])
            context += [i for ids, _ in self._pieces(row.b) for i in ids]
        room = self.layout.seq_length - 1
        self.num_truncated += len(context) > room
        self.contexts.append([*context[:room], self.command["eos"]])
        self.masks.append(0)

    def _pieces(self, parts: Sequence[Part]) -> list[tuple[list[int], Part]]:
        return [(self._part_ids(part), part) for part in parts]

    def _part_ids(self, part: Part) -> list[int]:
        if isinstance(part, Mask):
            return [self.command["MASK"]]
        return self.ids[part if isinstance(part, str) else part.text]

    def _shorten(self, sides: list[list[tuple[list[int], Part]]], surplus: int, where: str) -> None:
        free = [sum(len(ids) for ids, part in side if isinstance(part, Cut)) for side in sides]
        shares = cut_shares(free[0], free[1], surplus)
        if shares[0] > free[0] or shares[1] > free[1]:
            raise ValueError(
                f"{where}: without any text the pattern still is {surplus - sum(free)} tokens "
                f"longer than --seq-length={self.layout.seq_length}"
            )
        for side, share in zip(sides, shares, strict=True):
            for k in range(len(side) - 1, -1, -1):
                ids, part = side[k]
                if share and isinstance(part, Cut):
                    lost = min(share, len(ids))
                    side[k] = (ids[: len(ids) - lost], part)
                    share -= lost
