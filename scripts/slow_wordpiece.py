"""A WordPiece tokenizer in plain Python, as toolkits used to have: what benchmarks compare with."""

import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from data_utils.tokenization import BertWordPieceTokenizer

LONGEST_WORD = 100  # characters; longer ones are [UNK]


class SlowWordPiece(BertWordPieceTokenizer):
    """The same ids as its base class, a word at a time. Command tokens in texts are plain text."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return [i for word in self._words_of(text) for i in self._pieces_of(word)]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, one after the other."""
        return [self.encode(text) for text in texts]

    def encode_arrays(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts in one array, and the length of each."""
        found = self.encode_batch(texts)
        flat = np.array([i for ids in found for i in ids], dtype=np.int32)
        return flat, np.array([len(ids) for ids in found])

    def _words_of(self, text: str) -> Iterator[str]:
        kept = (
            c for c in text if not (unicodedata.category(c).startswith("C") and c not in "\t\n\r")
        )
        for chunk in "".join(kept).split():
            letters = unicodedata.normalize("NFD", chunk.lower())
            word = ""
            for c in letters:
                if unicodedata.category(c) == "Mn":
                    continue
                if _stands_alone(c):
                    if word:
                        yield word
                    yield c
                    word = ""
                else:
                    word += c
            if word:
                yield word

    def _pieces_of(self, word: str) -> list[int]:
        unknown, ids, start = [self.get_command("unk").Id], [], 0
        if len(word) > LONGEST_WORD:
            return unknown
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:end]
                if piece in self._ids:
                    ids.append(self._ids[piece])
                    start = end
                    break
            else:
                return unknown
        return ids


def _stands_alone(c: str) -> bool:
    ascii_sign = c.isascii() and not c.isalnum()
    return ascii_sign or unicodedata.category(c).startswith("P") or "\u4e00" <= c <= "\u9fff"
