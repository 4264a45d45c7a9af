"""BlockDataset: pretraining samples, each a pure function of (seed, index).

A document is drawn with a probability proportional to its tokens. A long one is cropped, from
one sentence end to another where there are any; a short one is followed by further documents
until the sample is full:

    ENC document eos ENC document eos ...       at most seq_length tokens

Not as in the seed: the generator is keyed by --seed, and a last document needs room for a few
tokens.
"""

from collections.abc import Sequence
from random import Random

import numpy as np

from data_utils.block import BlockSample
from data_utils.infilling import BlankInfilling
from data_utils.parts import Part
from data_utils.tokenization import Tokenizer

SMALLEST_PIECE = 8  # tokens of a document worth starting at the end of a sample


class BlockDataset:
    """`dataset[i]` is sample i of an endless stream, `dataset[~i]` the same with weight 0.

    part: the documents that it draws from.
    stream: name of the stream of samples, so that training and validation differ.
    non_sentence_start: fraction of cropped samples that may start inside a sentence.
    """

    def __init__(
        self,
        part: Part,
        tokenizer: Tokenizer,
        corrupt: BlankInfilling,
        *,
        seq_length: int,
        seed: int,
        stream: str = "train",
        non_sentence_start: float = 0.0,
        one_document: bool = False,
    ):
        self.part, self.corrupt = part, corrupt
        self.seq_length, self.stream, self.seed = seq_length, stream, seed
        self.non_sentence_start, self.one_document = non_sentence_start, one_document
        self._sentence_ends = tokenizer.sentence_ends
        self._enc = tokenizer.get_command("ENC").Id
        self._eos = tokenizer.get_command("eos").Id

    @property
    def num_tokens(self) -> int:
        """Tokens of the documents of this part."""
        return self.part.num_tokens

    def __getitem__(self, index: int) -> BlockSample:
        number = index if index >= 0 else ~index
        rng = Random(f"{self.seed}/{self.stream}/{number}")
        tokens, mask = self.text(rng)
        sample = self.corrupt(tokens, rng, mask)
        sample.index, sample.weight = number, float(index >= 0)
        return sample

    def text(self, rng: Random) -> tuple[list[int], list[int]]:
        """Tokens of a sample before corruption [at most seq_length], and which may be targets."""
        document, prompt = self.part.draw(rng)
        room = self.seq_length - 1
        if len(document) + 1 > room:
            body, start = self._crop(document, room, rng)
            return [self._enc, *body], self._counts(len(body), prompt - start)
        tokens = [self._enc, *document.tolist(), self._eos]
        mask = self._counts(len(document) + 1, prompt)
        while not self.one_document and self.seq_length - len(tokens) >= SMALLEST_PIECE:
            room = self.seq_length - len(tokens) - 1
            document, prompt = self.part.draw(rng)
            whole = len(document) + 1 <= room
            piece = [*document.tolist(), self._eos] if whole else self._strip(document, room)
            tokens += [self._enc, *piece]
            mask += self._counts(len(piece), prompt)
            if not whole:
                break
        return tokens, mask

    @staticmethod
    def _counts(length: int, prompt: int) -> list[int]:
        """The mask of ENC and `length` tokens, of which the first `prompt` are no targets."""
        prompt = min(max(prompt, 0), length)
        return [0] * (1 + prompt) + [1] * (length - prompt)

    def _crop(self, document: np.ndarray, room: int, rng: Random) -> tuple[list[int], int]:
        """A window of at most `room` tokens, and where it starts in the document.

        eos follows where it reaches the document's end.
        """
        start = rng.randrange(len(document) + 1 - room + 1)
        if rng.random() >= self.non_sentence_start:
            start = self._sentence_start(document, start, backwards=rng.random() < 0.5)
        if start + room > len(document):
            return [*document[start:].tolist(), self._eos], start
        return self._strip(document[start:], room), start

    def _sentence_start(self, document: np.ndarray, start: int, backwards: bool) -> int:
        """The next place behind a sentence end, at most half a sample away; else `start`."""
        reach = self.seq_length // 2
        if backwards:
            first = max(0, start - reach)
            ends = np.flatnonzero(self._sentence_ends[document[first:start]])
            if len(ends):
                return first + int(ends[-1]) + 1
            return 0 if first == 0 else start
        if start == 0:
            return 0
        last = min(start + reach, len(document) - 1)
        ends = np.flatnonzero(self._sentence_ends[document[start - 1 : last]])
        return start + int(ends[0]) if len(ends) else start

    def _strip(self, tokens: Sequence[int], room: int) -> list[int]:
        """The first `room` tokens, cut back to a sentence end if at least half of them stay."""
        window = tokens[:room]
        ends = np.flatnonzero(self._sentence_ends[window])
        if len(ends) and 2 * (int(ends[-1]) + 1) >= room:
            window = window[: int(ends[-1]) + 1]
        return window.tolist()
