"""Tokenizers: GLM's command tokens over fast tokenizers. Here what all share, and BERT's WordPiece.

A literal command token in a text (`[MASK]`) becomes its id, as in GLM. `pad` and `eos` are one
id: it fills rows and ends documents. A model's vocabulary is `num_tokens` rounded up.

Not as in the seed: a model type or a word that is not known is an error, and byte-level BPE
looks a verbalizer up with its leading space (W14).
"""

import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from data_utils.units import Ids, UnitTable, flatten, merge, split_at

ASSETS = Path(__file__).parent / "assets"
SENTENCE_ENDS = ".?!;:\n\u3002\uff1f\uff01\uff1b\u2026"  # the last five: full-width . ? ! ; and ...
LONGEST = 100  # characters of a word; longer ones are [UNK] in WordPiece
JOINED = 32  # words that the library encodes as one text: fewer objects, and no slower cuts

# Rust threads do not survive a fork: forked workers (a DataLoader's) encode in one thread.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.register_at_fork(after_in_child=lambda: os.environ.update(TOKENIZERS_PARALLELISM="false"))


@dataclass(frozen=True)
class CommandToken:
    """A token with a meaning of its own. `lstrip`: it swallows the white space before it."""

    name: str
    token: str  # its surface in a text
    Id: int = -1
    lstrip: bool = False


def read_vocabulary(path: Path) -> dict[str, int]:
    """Token -> id of a vocab.txt (one token a line), or of the folder that holds one.

    Raises FileNotFoundError, or ValueError naming the file and line of a token given twice.
    """
    path = path / "vocab.txt" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such vocabulary file (--tokenizer-path)")
    vocabulary: dict[str, int] = {}
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    for number, token in enumerate(line.rstrip("\r") for line in lines):
        if token in vocabulary:
            raise ValueError(
                f"{path}:{number + 1}: token {token!r} is also on line {vocabulary[token] + 1}"
            )
        vocabulary[token] = number
    return vocabulary


class Tokenizer(ABC):
    """Text to ids and back. Subclasses say how text is cut and name the command tokens."""

    kind: str

    def __init__(self, commands: Sequence[CommandToken]):
        self.commands = {c.name: c for c in commands}
        self._surfaces = {c.Id: c.token for c in commands}
        self._units = UnitTable()
        assert self.get_command("pad").Id == self.get_command("eos").Id

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """Size of the vocabulary, command tokens included."""

    def padded_size(self, divisible_by: int = 128) -> int:
        """Rows of a model's word embeddings: `num_tokens` rounded up."""
        return -(-self.num_tokens // divisible_by) * divisible_by

    def get_command(self, name: str) -> CommandToken:
        """One of pad, eos, ENC, MASK, sep, unk, sop, eop; gMASK, sMASK, dBLOCK if asked for."""
        if name not in self.commands:
            known = ", ".join(self.commands)
            raise KeyError(f"{name}: no such command token; this tokenizer has {known}")
        return self.commands[name]

    def encode(self, text: str) -> list[int]:
        """The ids of a text; [] for one of white space only."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, in parallel."""
        blank = [not text.strip() for text in texts]
        found = self._encode(list(texts))
        return [[] if b else ids for b, ids in zip(blank, found, strict=True)]

    def encode_arrays(self, texts: Sequence[str]) -> Ids:
        """Ids of all texts in one array [tokens], and the length of each [texts].

        The same ids as `encode`. Text is cut where a word cannot depend on its neighbours, and a
        word is encoded once: on corpora several times faster than encoding whole texts.
        """
        joined = "\n".join(texts)
        commands = [c.token for c in self.commands.values() if c.token in joined]
        cut = self._cutter(joined)
        units = [
            []
            if not text or text.isspace()
            # A text with command tokens is a unit: they may swallow the space before them.
            else [text]
            if commands and any(token in text for token in commands)
            else cut(text)
            for text in texts
        ]
        ids, lengths = self._units.encode(self._encode_units, chain.from_iterable(units))
        ends = np.concatenate([[0], np.cumsum(lengths)])
        return ids, np.diff(ends[np.cumsum([0, *map(len, units)])])

    @cached_property
    def sentence_ends(self) -> np.ndarray:
        """[num_tokens] bool: does the text of this token hold the end of a sentence?"""
        words = (self.decode([i]) for i in range(self.num_tokens))
        return np.fromiter((any(c in w for c in SENTENCE_ENDS) for w in words), dtype=bool)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that decides ids: equal for tokenizers that encode alike."""
        commands = sorted((c.name, c.token, c.Id, c.lstrip) for c in self.commands.values())
        description = json.dumps([self.kind, commands, *self._definition()])
        return hashlib.sha256(description.encode()).hexdigest()[:32]

    def _encode_units(self, units: list[str]) -> Ids:
        """Ids of units, as `_encode` has them."""
        return flatten(self._encode(units))

    def _cutter(self, joined: str) -> Callable[[str], list[str]]:
        """`_cut`, or what does the same for each of some texts; `joined` has all of them."""
        return self._cut

    @abstractmethod
    def _encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, command tokens in it included."""

    @abstractmethod
    def _cut(self, text: str) -> list[str]:
        """Cut a text without command tokens into units whose ids do not depend on each other."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; command tokens by their surface."""

    @abstractmethod
    def token_id(self, word: str, *, stripped: bool = False) -> int:
        """Id of a word that is one token (a verbalizer). Raises ValueError if it is not one."""

    @abstractmethod
    def _definition(self) -> list[Any]:
        """What `fingerprint` hashes beside the command tokens."""


class FastTokenizer(Tokenizer):
    """One of Hugging Face's `tokenizers`, whose added tokens are the command tokens."""

    def __init__(self, fast: Any, commands: Sequence[CommandToken]):
        """Ids that are not yet in the vocabulary of `fast` follow its last one, in this order."""
        from tokenizers import AddedToken

        fast.add_special_tokens(
            [AddedToken(c.token, lstrip=c.lstrip, normalized=False) for c in commands]
        )
        self._fast = fast
        super().__init__([replace(c, Id=fast.token_to_id(c.token)) for c in commands])

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary, command tokens included."""
        return self._fast.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """The ids of a text; [] for one of white space only."""
        return self._fast.encode(text, add_special_tokens=False).ids if text.strip() else []

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [e.ids for e in self._fast.encode_batch_fast(texts, add_special_tokens=False)]

    def _encode_units(self, units: list[str]) -> Ids:
        """Many units as one text, between command tokens: those cut it before anything else."""
        end = self.get_command("sop")
        starts = range(0, len(units), JOINED)
        texts = ["".join(u + end.token for u in units[i : i + JOINED]) for i in starts]
        ids, lengths = split_at(flatten(self._encode(texts))[0], end.Id)
        # A unit that holds the same command token would be cut by it.
        return (ids, lengths) if len(lengths) == len(units) else super()._encode_units(units)


class BertWordPieceTokenizer(FastTokenizer):
    """BERT's uncased WordPiece. Ids of bert-base-uncased are those of GLM's checkpoints."""

    kind = "BertWordPieceTokenizer"
    # ASCII punctuation and Chinese characters stand alone. Else words end where white space
    # survives the normaliser: other control characters vanish.
    _P = r"!-/:-@\[-`{-~"
    _S = " \t\n\r\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
    _HAN = "\u4e00-\u9fff"
    _UNIT = re.compile(f"[^{_P}{_S}{_HAN}]+|[{_P}{_HAN}]")

    def __init__(
        self,
        vocabulary: Path,
        *,
        task_mask: bool = False,
        block_mask: bool = False,
        num_sentinels: int = 0,
    ):
        """`vocabulary` is a vocab.txt or its folder. Raises ValueError without [PAD], [CLS], ...

        num_sentinels: pairs of MASK1, sop1, ... for --sentinel-token.
        """
        from tokenizers import Tokenizer as Fast
        from tokenizers import models, normalizers, pre_tokenizers

        ids = read_vocabulary(vocabulary)
        commands = [
            CommandToken("pad", "[PAD]"),
            CommandToken("ENC", "[CLS]"),
            CommandToken("MASK", "[MASK]"),
            CommandToken("unk", "[UNK]"),
            CommandToken("sep", "[SEP]"),
            CommandToken("eos", "[PAD]"),
        ]
        missing = sorted({c.token for c in commands} - set(ids))
        if missing:
            raise ValueError(f"{vocabulary}: the vocabulary has no line {', '.join(missing)}")
        commands += extra_commands(task_mask, block_mask)
        for number in range(1, num_sentinels + 1):
            commands.append(CommandToken(f"MASK{number}", f"[MASK{number}]"))
            commands.append(CommandToken(f"sop{number}", f"<|startofpiece{number}|>"))
        fast = Fast(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=LONGEST))
        fast.normalizer = normalizers.BertNormalizer(lowercase=True)
        fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        super().__init__(fast, commands)
        self._ids = ids
        self._words = list(ids)
        # Words that are one token, whatever stands around them: the longest match is all of them.
        self._plain = {w: i for w, i in ids.items() if len(w) <= LONGEST and _is_plain(w)}

    def decode(self, ids: Sequence[int]) -> str:
        """Tokens joined by spaces, `##` pieces glued to the word before; padding ids are [UNK]."""
        known = len(self._words)
        words = [
            self._surfaces.get(i) or (self._words[i] if i < known else "[UNK]")
            for i in map(int, ids)
        ]
        return " ".join(words).replace(" ##", "")

    def token_id(self, word: str, *, stripped: bool = False) -> int:
        """Id of the stripped, lower-cased word. Raises ValueError if it is not one token."""
        key = word.strip().lower()
        if key not in self._ids:
            raise ValueError(f"verbalizer {word!r}: {key!r} is not in the vocabulary")
        return self._ids[key]

    def _cut(self, text: str) -> list[str]:
        # The vocabulary is lower-case; beyond ASCII that is left to the normaliser.
        return self._UNIT.findall(text.lower() if text.isascii() else text)

    def _encode_units(self, units: list[str]) -> Ids:
        """Words of the vocabulary are looked up here."""
        found = np.fromiter((self._plain.get(unit, -1) for unit in units), dtype=np.int32)
        known = found >= 0
        others = super()._encode_units([units[i] for i in np.flatnonzero(~known)])
        return merge(known, (found[known], np.ones(known.sum(), dtype=np.int64)), others)

    def _definition(self) -> list[Any]:
        return [self._words]


def _is_plain(word: str) -> bool:
    """Is it of lower-case ASCII letters and digits, which the normaliser leaves as they are?"""
    return word.isascii() and word.isalnum() and word == word.lower()


def extra_commands(task_mask: bool, block_mask: bool, lstrip: bool = False) -> list[CommandToken]:
    """The tokens GLM appends: pieces, then the masks of --task-mask, then dBLOCK."""
    added = [CommandToken("sop", "<|startofpiece|>"), CommandToken("eop", "<|endofpiece|>")]
    if task_mask:
        added.append(CommandToken("gMASK", "[gMASK]", lstrip=lstrip))
        added.append(CommandToken("sMASK", "[sMASK]", lstrip=lstrip))
    if block_mask:
        added.append(CommandToken("dBLOCK", "[dBLOCK]"))
    return added
