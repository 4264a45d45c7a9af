"""ChineseSP: the SentencePiece (unigram) vocabulary of GLM's Chinese models.

Command tokens follow the 50000 pieces. Without --fix-command-token the ids are those of the first
Chinese models, where gMASK (of --task-mask) and dBLOCK share eop's id.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from data_utils.tokenization import CommandToken, Tokenizer
from data_utils.units import Ids, flatten, merge

SPACE = "\u2581"  # how a piece spells the space before it
JOINED = 256  # words that the library encodes as one text


def find_model(path: Path) -> Path:
    """A SentencePiece model, or the only one of a folder. Raises FileNotFoundError."""
    if path.is_dir():
        found = sorted(path.glob("*.model"))
        if len(found) != 1:
            raise FileNotFoundError(
                f"{path}: holds {len(found)} .model files; name one with --tokenizer-path"
            )
        return found[0]
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such SentencePiece model (--tokenizer-path)")
    return path


class ChineseSPTokenizer(Tokenizer):
    """GLM's tokenizer of that name. White space is one space, or none at the ends."""

    kind = "ChineseSPTokenizer"
    _UNIT = re.compile("[^ \t\n\r]+")
    _MORE_SPACES = "\x0b\x0c\x1c\x1d\x1e\x1f"  # what str.split takes for white space beside
    _PLAIN = re.compile(r"[!-;=-Z\\-~]+")  # printable ASCII, but what command tokens begin with

    def __init__(
        self,
        model: Path,
        *,
        task_mask: bool = False,
        block_mask: bool = False,
        fix_command_token: bool = False,
    ):
        """`model` is a .model file or its folder.

        Raises FileNotFoundError or ValueError for one that is missing or malformed, and
        ImportError that says what to install.
        """
        self._file = find_model(model)
        self._model = _load(self._file)
        commands = _commands(self._model.get_piece_size(), task_mask, block_mask, fix_command_token)
        # Numbers after the last piece, one of which no command may have.
        self._num_tokens = max(c.Id for c in commands) + 1
        super().__init__(commands)
        surfaces = "|".join(re.escape(c.token) for c in commands)
        self._split = re.compile(f"({surfaces})")
        self._by_surface = {c.token: c for c in commands}

    @property
    def num_tokens(self) -> int:
        """Size of the vocabulary, command tokens included."""
        return self._num_tokens

    def decode(self, ids: Sequence[int]) -> str:
        """Pieces of consecutive tokens joined; ids that nothing has are left out."""
        size, text = self._model.get_piece_size(), []
        for plain, group in groupby(map(int, ids), key=lambda i: i < size):
            if plain:
                text.append(self._model.decode(list(group)))
            else:
                text += [self._surfaces.get(i, "") for i in group]
        return "".join(text)

    def token_id(self, word: str, *, stripped: bool = False) -> int:
        """Id of a word that is one token, with a space before it or, else, without.

        `stripped`: the piece of just these letters (W14). Raises ValueError if there is none.
        """
        word, unknown = word.strip(), self._model.unk_id()
        for piece in (word,) if stripped else (SPACE + word, word):
            found = self._model.piece_to_id(piece)
            if found != unknown:
                return found
        raise ValueError(f"verbalizer {word!r}: is not one token of {self._file.name}")

    def _encode(self, texts: list[str]) -> list[list[int]]:
        parts = [self._split.split(text) for text in texts]  # every second one is a command
        plain = [part for of_text in parts for part in of_text[::2]]
        encoded = iter(self._model.encode(plain, num_threads=1))
        found = []
        for of_text in parts:
            ids: list[int] = []
            for number, part in enumerate(of_text):
                ids += [self._by_surface[part].Id] if number % 2 else next(encoded)
            found.append(ids)
        return found

    def _cut(self, text: str) -> list[str]:
        return self._UNIT.findall(text) if self._word_starts is not None else [text]

    def _cutter(self, joined: str) -> Callable[[str], list[str]]:
        plain = joined.isascii() and not any(c in joined for c in self._MORE_SPACES)
        return str.split if plain and self._word_starts is not None else self._cut

    def _encode_units(self, units: list[str]) -> Ids:
        """Words in ASCII are encoded together: each begins where a piece has a space."""
        if self._word_starts is None:
            return super()._encode_units(units)
        plain = np.fromiter(map(bool, map(self._PLAIN.fullmatch, units)), dtype=bool)
        words = [units[i] for i in np.flatnonzero(plain)]
        texts = [" ".join(words[i : i + JOINED]) for i in range(0, len(words), JOINED)]
        ids, _ = flatten(self._model.encode(texts, num_threads=1))
        first = np.flatnonzero(self._word_starts[ids])
        if len(first) != len(words):  # of one, the normaliser makes nothing, or two
            return super()._encode_units(units)
        others = super()._encode_units([units[i] for i in np.flatnonzero(~plain)])
        return merge(plain, (ids, np.diff(first, append=len(ids))), others)

    @cached_property
    def _word_starts(self) -> np.ndarray | None:
        """[pieces] bool: has it a space? None where words do not stand alone in this model.

        They do if every word gets a space, and no piece has one but at its start.
        """
        pieces = [self._model.id_to_piece(i) for i in range(self._model.get_piece_size())]
        alone = "".join(self._model.encode(" \t a\r\n b ", out_type=str)) == f"{SPACE}a{SPACE}b"
        if not alone or any(SPACE in piece[1:] for piece in pieces):
            return None
        return np.array([piece.startswith(SPACE) for piece in pieces])

    def _definition(self) -> list[Any]:
        return [hashlib.sha256(self._file.read_bytes()).hexdigest()]


def _load(path: Path) -> Any:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise ImportError(
            "--tokenizer-type=ChineseSPTokenizer needs sentencepiece: pip install sentencepiece"
        ) from None
    try:
        return SentencePieceProcessor(model_file=str(path))
    except RuntimeError as e:
        raise ValueError(f"{path}: not a SentencePiece model: {e}") from None


def _commands(base: int, task_mask: bool, block_mask: bool, fixed: bool) -> list[CommandToken]:
    """GLM's commands after `base` pieces; one id, base + 5, stays free."""
    commands = [
        CommandToken("pad", "<|endoftext|>", base),
        CommandToken("eos", "<|endoftext|>", base),
        CommandToken("sep", "[SEP]", base + 1),
        CommandToken("ENC", "[CLS]", base + 2),
        CommandToken("MASK", "[MASK]", base + 3, lstrip=True),
        CommandToken("unk", "[UNK]", base + 4),
        CommandToken("sop", "<|startofpiece|>", base + 6),
        CommandToken("eop", "<|endofpiece|>", base + 7),
    ]
    following = base + 8 if fixed else base + 7
    if task_mask:
        names = ("sMASK", "gMASK") if fixed else ("gMASK", "sMASK")
        commands += [
            CommandToken(name, f"[{name}]", following + i, lstrip=True)
            for i, name in enumerate(names)
        ]
        following += 2
    if block_mask:
        commands.append(CommandToken("dBLOCK", "[dBLOCK]", following))
    return commands
