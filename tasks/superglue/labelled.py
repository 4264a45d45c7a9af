"""Labelled examples as samples of a language model: the right answer is the text to be written."""

from collections.abc import Sequence

import numpy as np

from data_utils.block import BlockSample
from data_utils.tokenization import Tokenizer
from tasks.superglue.data import Example
from tasks.superglue.encode import Layout, Mask, Part, Row, encode
from tasks.superglue.encoded import Sample
from tasks.superglue.pvp.base import PVP


class LabelledTexts:
    """The examples of one split of a task, each under any of its patterns; encoded when asked for.

    A verbalizer of one token is predicted at the start-of-piece token, without an end, as a cloze
    head does; an answer of several is written to its end.
    """

    def __init__(
        self,
        pvps: Sequence[PVP],
        examples: Sequence[Example],
        tokenizer: Tokenizer,
        layout: Layout,
        *,
        block_position: bool = True,
    ):
        """`pvps`: one a pattern. ValueError if a pattern has no room in the layout."""
        self.pvps, self.examples, self.tokenizer = pvps, examples, tokenizer
        self.layout, self.block_position = layout, block_position
        self._sop = tokenizer.get_command("sop").Id
        self._words = [_words(pvp, tokenizer) for pvp in pvps]
        for pattern in range(len(pvps)):
            self.cloze(0, pattern)

    def __len__(self) -> int:
        return len(self.examples)

    def cloze(self, number: int, pattern: int) -> BlockSample:
        """The pattern as context, the right answer to be written at its mask."""
        example, words = self.examples[number], self._words[pattern]
        rows = self.pvps[pattern].cloze_rows(example, multi_token=words is None)
        if words is not None:
            sample = self._encode(rows[0], example)
            return self._sample(sample, np.array([words[example.label]]))
        sample = self._encode(rows[self._right(example)], example)
        return self._sample(sample, sample.answers[0])

    def text(self, number: int, pattern: int) -> list[int]:
        """Ids of the pattern with the right answer in it: [ENC] ... [eos]."""
        example = self.examples[number]
        rows = self.pvps[pattern].cloze_rows(example, multi_token=True)
        row = rows[self._right(example)]
        assert row.answer is not None, row
        filled = Row(_filled(row.a, row.answer), row.b and _filled(row.b, row.answer))
        return self._encode(filled, example).contexts[0].tolist()

    def _right(self, example: Example) -> int:
        """The row of the right answer; where answers are not chosen there is only that one."""
        return 0 if self.pvps[0].generative else example.label

    def _encode(self, row: Row, example: Example) -> Sample:
        encoded = encode([[row]], [example.where], self.tokenizer, self.layout)
        return encoded.sample(0, example.label, 1.0)

    def _sample(self, sample: Sample, answer: np.ndarray) -> BlockSample:
        context, size = sample.contexts[0].tolist(), len(answer)
        ids, sep = answer.tolist(), len(context)
        return BlockSample(
            text=[*context, self._sop, *ids[:-1]],
            target=[*context, *ids],
            position=[*range(sep), *[sample.masks[0]] * size],
            block_position=[0] * sep
            + (list(range(1, size + 1)) if self.block_position else [1] * size),
            sep=sep,
            loss=[0] * sep + [1] * size,
            kind="multi-task",
        )


def _filled(parts: Sequence[Part], answer: str) -> list[Part]:
    return [answer if isinstance(part, Mask) else part for part in parts]


def _words(pvp: PVP, tokenizer: Tokenizer) -> list[int] | None:
    """Ids of the labels' words; None where they are not all one token, or the example's own."""
    if pvp.own_answers:
        return None
    try:
        return [tokenizer.token_id(x, stripped=pvp.options.w14) for x in pvp.verbalizers()]
    except ValueError:
        return None
