"""Byte-level BPE, of GPT-2 and of RoBERTa: a word carries the space before it."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_utils.tokenization import CommandToken, FastTokenizer, extra_commands

FILES = (("gpt2-vocab.json", "gpt2-merges.txt"), ("vocab.json", "merges.txt"))
#: RoBERTa's words for GLM's commands. Its `</s>` is pad, eos and sep.
ROBERTA = {"</s>": "<|endoftext|>", "<s>": "[CLS]", "<mask>": "[MASK]", "<unk>": "[UNK]"}


def find_files(folder: Path) -> tuple[Path, Path]:
    """The vocabulary and the merges in a folder. Raises FileNotFoundError without them."""
    for names in FILES:
        found = [folder / name for name in names]
        if all(path.is_file() for path in found):
            return found[0], found[1]
    wanted = " or ".join(" and ".join(names) for names in FILES)
    raise FileNotFoundError(f"{folder}: holds neither {wanted} (--tokenizer-path)")


def read_json_vocabulary(path: Path) -> dict[str, int]:
    """Token -> id of a vocab.json. Raises ValueError naming the file if it is none."""
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ValueError(f"{path}: not a vocabulary in JSON: {e}") from None
    if not isinstance(ids, dict) or sorted(ids.values()) != list(range(len(ids))):
        raise ValueError(f"{path}: must map every token to an id, 0 ... size - 1, each once")
    return ids


class GPT2BPETokenizer(FastTokenizer):
    """GLM's tokenizer of that name, over the vocabulary of GPT-2 or of RoBERTa."""

    kind = "GPT2BPETokenizer"
    _S = "\t-\r \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
    # Signs but ', which begins 's and the like: letters before one of them are a word.
    _SIGN = r"!-&(-/:-@\[-`{-~"
    _UNIT = re.compile(f" ?[A-Za-z]+(?=[{_SIGN}{_S}]|$)| ?[^{_S}]+|[{_S}]+(?![^{_S}])|[{_S}]")

    def __init__(
        self,
        folder: Path,
        *,
        task_mask: bool = False,
        block_mask: bool = False,
        roberta: bool | None = None,
    ):
        """`folder` holds gpt2-vocab.json and gpt2-merges.txt, or vocab.json and merges.txt.

        roberta: whether the vocabulary has RoBERTa's command tokens; None: as it looks.
        Raises FileNotFoundError or ValueError for a vocabulary that is missing or malformed.
        """
        from tokenizers import Tokenizer as Fast
        from tokenizers import decoders, models, pre_tokenizers

        self._files = find_files(folder)
        ids, merges = read_json_vocabulary(self._files[0]), _read_merges(*self._files)
        self._roberta = set(ROBERTA) <= set(ids) if roberta is None else roberta
        if self._roberta:
            ids = _rename(ids, self._files[0])
        elif "<|endoftext|>" not in ids:
            raise ValueError(f"{self._files[0]}: the vocabulary has no token <|endoftext|>")
        fast = Fast(models.BPE(ids, merges))
        fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        fast.decoder = decoders.ByteLevel()
        pieces, others = _split(extra_commands(task_mask, block_mask, lstrip=True))
        end = [CommandToken(name, "<|endoftext|>") for name in ("pad", "eos")]
        enc, mask = CommandToken("ENC", "[CLS]"), CommandToken("MASK", "[MASK]", lstrip=True)
        unk, sep = CommandToken("unk", "[UNK]"), CommandToken("sep", "[SEP]")
        if self._roberta:
            super().__init__(fast, [*end, enc, mask, unk, *pieces, *others])
            self.commands["sep"] = replace(sep, Id=self.get_command("eos").Id)
        else:
            super().__init__(fast, [*end, *pieces, enc, mask, sep, unk, *others])

    def encode(self, text: str) -> list[int]:
        """The ids of a text; [] for one of white space only."""
        return super().encode(self._one_end(text))

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return super()._encode([self._one_end(text) for text in texts])

    def _one_end(self, text: str) -> str:
        """RoBERTa has one id, so one surface, for sep and eos."""
        return text.replace("[SEP]", "<|endoftext|>") if self._roberta else text

    def decode(self, ids: Sequence[int]) -> str:
        """Bytes of consecutive tokens joined; an incomplete character becomes U+FFFD."""
        text, plain = [], []
        for i in map(int, ids):
            if i in self._surfaces:
                text += [self._fast.decode(plain), self._surfaces[i]]
                plain = []
            else:
                plain.append(i)
        return "".join([*text, self._fast.decode(plain)])

    def token_id(self, word: str, *, stripped: bool = False) -> int:
        """Id of a word that is one token, its leading space included.

        `stripped`: the seed's lookup without the space (W14). Raises ValueError if there is none.
        """
        ids = self.encode(word.strip() if stripped else word)
        if len(ids) != 1:
            raise ValueError(f"verbalizer {word!r}: {len(ids)} tokens, needs to be one")
        return ids[0]

    def _cut(self, text: str) -> list[str]:
        return self._UNIT.findall(text)

    def _definition(self) -> list[Any]:
        described = [hashlib.sha256(f.read_bytes()).hexdigest() for f in self._files]
        return [*described, "roberta"] if self._roberta else described


def _read_merges(vocabulary: Path, merges: Path) -> list[tuple[str, str]]:
    from tokenizers import models

    try:
        return models.BPE.read_file(str(vocabulary), str(merges))[1]
    except Exception as e:  # the library raises nothing narrower
        raise ValueError(f"{merges}: not the merges of a byte-level BPE: {e}") from None


def _rename(ids: dict[str, int], path: Path) -> dict[str, int]:
    """A RoBERTa vocabulary with GLM's surfaces. Its own unused `<|endoftext|>` steps aside."""
    missing = sorted(set(ROBERTA) - set(ids))
    if missing:
        raise ValueError(f"{path}: no vocabulary of RoBERTa: has no {', '.join(missing)}")
    unused = set(ROBERTA.values())
    aside = {token: f"<unused {i}> {token}" for token, i in ids.items() if token in unused}
    return {ROBERTA.get(t) or aside.get(t, t): i for t, i in ids.items()}


def _split(added: list[CommandToken]) -> tuple[list[CommandToken], list[CommandToken]]:
    return added[:2], added[2:]
