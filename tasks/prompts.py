"""Prompts: texts with masks in them, which a model fills from left to right.

    [ENC] text [mask] text [eos]      a prompt that ends in [gMASK] has no [eos]

Without a mask one is put at the end: [gMASK], or [MASK] where the tokenizer has no task masks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from data_utils.tokenization import Tokenizer
from tasks.generation import Decoding, Symbols, Writer

MASKS = ("gMASK", "sMASK", "MASK")


@dataclass(frozen=True)
class Filled:
    """A prompt with its blanks filled."""

    text: str  # the whole, without [ENC] and [eos]
    pieces: list[str]  # what was written, in order


@dataclass(frozen=True)
class Prompt:
    """The ids of a prompt."""

    ids: list[int]  # [ENC] to [eos]
    blanks: list[int]  # positions of its masks


class PromptFiller:
    """A language model and its tokenizer."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        *,
        longest: int,
        block_position: bool = True,
    ):
        """longest: tokens of a prompt, [ENC] and [eos] included (positions of the model)."""
        self.model, self.tokenizer, self.longest = model, tokenizer, longest
        self.block_position = block_position
        self.symbols = Symbols.of(tokenizer)
        self.commands = {c.name: c for c in tokenizer.commands.values()}
        self.masks = {self.commands[name].Id for name in MASKS if name in self.commands}

    def encode(self, text: str, where: str = "prompt") -> Prompt:
        """The ids of a text. ValueError names it (`where`) if it is empty or too long."""
        if not text.strip():
            raise ValueError(f"{where}: is empty; write a text, with [MASK] where one is wanted")
        for name in MASKS:
            if f"[{name}]" in text and name not in self.commands:
                raise ValueError(
                    f"{where}: the model has no [{name}], which would be read as letters; write "
                    "[MASK], or give --task-mask if it was trained with it"
                )
        ids = self.tokenizer.encode(text)
        if not self.masks.intersection(ids):
            ids.append(self.commands.get("gMASK", self.commands["MASK"]).Id)
        last = self.commands.get("gMASK")
        end = [] if last is not None and ids[-1] == last.Id else [self.commands["eos"].Id]
        ids = [self.commands["ENC"].Id, *ids, *end]
        if len(ids) > self.longest:
            raise ValueError(
                f"{where}: has {len(ids)} tokens, the model has {self.longest} positions "
                "(--max-position-embeddings); shorten it"
            )
        return Prompt(ids, [i for i, token in enumerate(ids) if token in self.masks])

    @torch.no_grad()
    def fill(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[Filled]:
        """All blanks of all prompts, as one batch."""
        device = next(self.model.parameters()).device
        width = max(len(prompt.ids) for prompt in prompts)
        pad = self.symbols.pad
        tokens = torch.tensor([p.ids + [pad] * (width - len(p.ids)) for p in prompts])
        places = torch.zeros(len(prompts), 2, width, dtype=torch.long)
        places[:, 0] = torch.arange(width)
        sep = torch.tensor([len(prompt.ids) for prompt in prompts])
        writer = Writer(
            self.model,
            self.symbols,
            tokens.to(device),
            places.to(device),
            sep.to(device),
            block_position=self.block_position,
        )
        found = writer.fill([prompt.blanks for prompt in prompts], decoding)
        return [self._filled(p, own) for p, own in zip(prompts, found, strict=True)]

    def _filled(self, prompt: Prompt, pieces: list[list[int]]) -> Filled:
        whole: list[int] = []
        rest = iter(pieces)
        for token in prompt.ids[1:]:
            whole += next(rest) if token in self.masks else [token]
        if whole and whole[-1] == self.commands["eos"].Id:
            whole.pop()
        decode = self.tokenizer.decode
        return Filled(decode(whole).strip(), [decode(piece).strip() for piece in pieces])
