"""Samples of autoregressive blank infilling (GLM, Du et al., 2022, arXiv 2103.10360).

    tokens   ENC x1 x2 x3 x4 x5 eos        spans (2, 4) and (5, 6), the second one first
    text     ENC x1 M  x4 M  eos | sop x5  sop x2  x3
    target   ENC x1 M  x4 M  eos | x5  eop x2  x3  eop      counted in the loss after the |
    position 0   1  2  3  4  5   | 4   4   2   2   2
    block    0   0  0  0  0  0   | 1   2   1   2   3
    sep = 6: what lies before it sees itself in both directions, what follows is causal.

Which spans are cut out is said in data_utils/spans.py and infilling.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch

from data_utils.batch import Batch
from data_utils.spans import Span
from data_utils.tokenization import Tokenizer

CONTEXT_RANGE = 3  # tokens before and behind a span that --context-mask-ratio may hide
KINDS = ("bert", "sentence", "gpt", "multi-task")


@dataclass(frozen=True)
class SpecialIds:
    """The ids that samples are made with. gMASK and sMASK are MASK without --task-mask."""

    eos: int
    ENC: int  # noqa: N815 - names of the command tokens
    MASK: int
    sop: int
    eop: int
    gMASK: int | None = None  # noqa: N815
    sMASK: int | None = None  # noqa: N815
    dBLOCK: int | None = None  # noqa: N815
    sentinels: tuple[tuple[int, int], ...] = ()  # (MASK1, sop1), (MASK2, sop2), ...

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "SpecialIds":
        """Those of a tokenizer."""
        names = ("eos", "ENC", "MASK", "sop", "eop")
        extra = ("gMASK", "sMASK", "dBLOCK")
        known = {name: command.Id for name, command in tokenizer.commands.items()}
        pairs = []
        while f"MASK{len(pairs) + 1}" in known:
            number = len(pairs) + 1
            pairs.append((known[f"MASK{number}"], known[f"sop{number}"]))
        return cls(*map(known.__getitem__, names), *map(known.get, extra), tuple(pairs))

    def mask_of(self, kind: str) -> int:
        """The token that stands for what a sample of this kind lacks."""
        own = {"gpt": self.gMASK, "sentence": self.sMASK}.get(kind)
        return self.MASK if own is None else own


@dataclass
class BlockSample:
    """One corrupted sample: context up to `sep`, then the spans. All lists are as long as text."""

    text: list[int]
    target: list[int]
    position: list[int]
    block_position: list[int] | None  # None: the model knows no block positions (--masked-lm)
    sep: int
    loss: list[int]  # 1 on targets that count
    kind: str = "bert"
    index: int = 0
    weight: float = 1.0


def assemble(
    tokens: Sequence[int],
    spans: Sequence[Span],
    ids: SpecialIds,
    *,
    kind: str = "bert",
    block_position: bool = True,
    shift: int = 0,
    sentinel_position: int | None = None,
) -> BlockSample:
    """Cut `spans` out of `tokens` and append them in the order given (module docstring).

    Without `block_position` all are 1. shift: of the context's positions (--random-position).
    sentinel_position: every span but the first has a mask and a sop of its own, and all tokens of
    spans have this position. Raises ValueError if a span holds the end of a document.
    """
    tokens = list(tokens)
    masks, sops = [ids.mask_of(kind)], [ids.sop]
    if sentinel_position is not None:
        own, sop = zip((masks[0], sops[0]), *ids.sentinels, strict=True)
        masks, sops = list(own) if kind == "bert" else masks * len(own), list(sop)
    count = len(spans)
    if sentinel_position is None:
        masks, sops = masks * count, sops * count
    text: list[int] = []
    mask_at, end = {}, 0
    for number in sorted(range(count), key=lambda i: spans[i]):
        span = spans[number]
        text += tokens[end : span[0]]
        mask_at[span] = len(text) + shift
        text.append(masks[number])
        end = span[1]
    text += tokens[end:]
    sep = len(text)
    target, position, block = text.copy(), [i + shift for i in range(sep)], [0] * sep
    for number, span in enumerate(spans):
        piece = tokens[span[0] : span[1]]
        if ids.eos in piece:
            raise ValueError(f"span {span} holds the end of a document: {piece}")
        text += [sops[number], *piece]
        target += [*piece, ids.eop]
        place = mask_at[span] if sentinel_position is None else sentinel_position
        position += [place] * (len(piece) + 1)
        block += range(1, len(piece) + 2) if block_position else [1] * (len(piece) + 1)
    loss = [0] * sep + [1] * (len(text) - sep)
    return BlockSample(text, target, position, block, sep, loss, kind)


def continue_text(
    tokens: Sequence[int],
    length: int,
    ids: SpecialIds,
    mask: Sequence[int],
    *,
    block_position: bool = True,
) -> BlockSample:
    """The last `length` tokens are to be generated after the others; their eos ends them, no eop.

    mask: 1 on tokens that count as targets.
    """
    source, rest = list(tokens[:-length]), list(tokens[-length:])
    sep = len(source) + 1
    blank = ids.mask_of("gpt")
    return BlockSample(
        text=[*source, blank, ids.sop, *rest[:-1]],
        target=[*source, blank, *rest],
        position=[*range(sep), *[sep - 1] * length],
        block_position=[0] * sep + (list(range(1, length + 1)) if block_position else [1] * length),
        sep=sep,
        loss=[0] * sep + list(mask[-length:]),
        kind="gpt",
    )


def mask_in_place(
    tokens: Sequence[int], spans: Sequence[Span], ids: SpecialIds, mask: Sequence[int]
) -> BlockSample:
    """BERT's masked language model: MASK for every token of a span, to be predicted there."""
    hidden = {i for start, end in spans for i in range(start, end)}
    text = [ids.MASK if i in hidden else token for i, token in enumerate(tokens)]
    loss = [int(i in hidden and counts) for i, counts in enumerate(mask)]
    return BlockSample(text, list(tokens), list(range(len(text))), None, len(text), loss)


def hide_inputs(
    sample: BlockSample, spans: Sequence[Span], ids: SpecialIds, prob: float, rng: Random
) -> None:
    """Replace input tokens of the spans by dBLOCK, each with probability `prob`."""
    assert ids.dBLOCK is not None, "the tokenizer has no dBLOCK"
    place = sample.sep
    for start, end in spans:
        for i in range(place + 1, place + 1 + end - start):
            if rng.random() < prob:
                sample.text[i] = ids.dBLOCK
        place += end - start + 1


def hide_context(
    sample: BlockSample, spans: Sequence[Span], ids: SpecialIds, count: int, rng: Random
) -> None:
    """Replace up to `count` tokens of the context within 3 of a span by dBLOCK."""
    assert ids.dBLOCK is not None, "the tokenizer has no dBLOCK"
    removed, masks = 0, []
    for start, end in sorted(spans):
        masks.append(start - removed)
        removed += end - start - 1
    near = {
        place + step * way
        for place in masks
        for way in (-1, 1)
        for step in range(1, CONTEXT_RANGE + 1)
        # not beyond another span
        if not any(place + k * way in masks for k in range(1, step + 1))
    }
    candidates = sorted(i for i in near if 0 <= i < sample.sep)
    for i in rng.sample(candidates, min(count, len(candidates))):
        sample.text[i] = ids.dBLOCK


def collate(samples: Sequence[BlockSample]) -> Batch:
    """Batch of corrupted samples, padded with 0 on the right to the longest."""
    rows, longest = len(samples), max(len(s.text) for s in samples)
    tokens, target = np.zeros((2, rows, longest), dtype=np.int64)
    positions = np.zeros((rows, 2, longest), dtype=np.int64)
    loss_mask = np.zeros((rows, longest), dtype=np.float32)
    blocks = [sample.block_position is not None for sample in samples]
    assert all(blocks) or not any(blocks), "samples with and without block positions"
    for row, sample in enumerate(samples):
        length = len(sample.text)
        tokens[row, :length] = sample.text
        target[row, :length] = sample.target
        positions[row, 0, :length] = sample.position
        if sample.block_position is not None:
            positions[row, 1, :length] = sample.block_position
        loss_mask[row, :length] = sample.loss
    return Batch(
        tokens=torch.from_numpy(tokens),
        position_ids=torch.from_numpy(positions if all(blocks) else positions[:, 0].copy()),
        attention_mask=torch.tensor([s.sep for s in samples]),
        labels=torch.from_numpy(target),
        weight=torch.tensor([s.weight for s in samples]),
        sample_ids=torch.tensor([s.index for s in samples]),
        loss_mask=torch.from_numpy(loss_mask),
        kinds=torch.tensor([KINDS.index(s.kind) for s in samples]),
    )
