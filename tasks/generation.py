"""Writing texts into blanks: greedy, beams or drawn, by transformers' generation, with a cache.

A blank's piece is `[sop] w1 w2 ... [eop]`. Its tokens have the position of the blank's mask, their
own order is the block position, 1 for [sop]. What is written sees its context and itself.

All ranks of a model-parallel group call these functions alike and get the same tokens: logits are
gathered to the whole vocabulary, and draws come from one seed. Under ZeRO-3, where a forward is a
collective of all replicas, those that are done go on idly until all are.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import mpu
from config.text import TextArgs
from data_utils.tokenization import Tokenizer
from model.cache import KeyValueCache
from model.embedding import NeighbourWords
from model.transformer import ParallelTransformer
from model.vocab_map import VocabMap


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How a piece is chosen. score of a beam = log-probability / (tokens, [eop] included) ** p."""

    max_length: int  # longest piece, [eop] included (tokens)
    min_length: int = 0  # shortest one, without [eop] (tokens)
    num_beams: int = 1
    length_penalty: float = 0.0  # p
    no_repeat_ngram_size: int = 0  # no run of so many tokens comes twice in a piece; 0: no rule
    draw: bool = False  # tokens (candidates of a beam) are drawn from the distribution
    temperature: float = 1.0
    top_k: int = 0  # draw from so many likeliest tokens; 0: all
    top_p: float = 0.0  # draw from the likeliest tokens of this probability together; 0: all
    seed: int = 0

    @classmethod
    def of(cls, text: TextArgs, *, length_penalty: float, seed: int) -> "Decoding":
        """What the flags of scripts/generate.py ask for: beams, or drawn tokens.

        With one beam a token is drawn; from the likeliest one alone if --top_k=1.
        """
        return cls(
            max_length=text.out_seq_length,
            min_length=text.min_tgt_length,
            num_beams=text.num_beams,
            length_penalty=length_penalty,
            no_repeat_ngram_size=text.no_repeat_ngram_size,
            draw=text.num_beams == 1 and text.top_k != 1,
            temperature=text.temperature,
            top_k=text.top_k,
            top_p=text.top_p,
            seed=seed,
        )


@dataclass(frozen=True)
class Symbols:
    """Command ids that writing needs, and the number of real words."""

    sop: int
    eop: int
    pad: int
    num_tokens: int  # ids from here on only pad the model's vocabulary and are never written

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Symbols":
        """Those of a tokenizer."""
        ids = (tokenizer.get_command(name).Id for name in ("sop", "eop", "pad"))
        return cls(*ids, tokenizer.num_tokens)


class Writer:
    """A batch of contexts, encoded once, and the pieces written into their blanks so far.

    The model is a GLM with sharded vocabulary logits, or a student around one.
    """

    def __init__(
        self,
        model: nn.Module,
        symbols: Symbols,
        tokens: Tensor,
        position_ids: Tensor,
        sep: Tensor,
        *,
        block_position: bool = True,
        use_cache: bool = True,
    ):
        """tokens [b, s], position_ids [b, 2, s], sep [b]: what lies behind sep is padding.

        `use_cache=False` encodes everything anew for each token: slow, to check the other way. It
        is the only one for models that need to know which tokens are neighbours (--ib_word_emb,
        --transformer-xl): padding would stand between a shorter context and its piece.
        """
        self.lockstep = dist.is_initialized() and any(
            hasattr(p, "ds_id") for p in model.parameters()
        )
        use_cache = use_cache and not any(map(_wants_neighbours, model.modules()))
        self.model, self.symbols, self.block_position = model, symbols, block_position
        self._device = tokens.device
        self._vocab_map = next((m for m in model.modules() if isinstance(m, VocabMap)), None)
        self._state: _Cached | _Whole = (_Cached if use_cache else _Whole)(
            model, tokens, position_ids, sep
        )

    def fill(self, blanks: Sequence[Sequence[int]], decoding: Decoding) -> list[list[list[int]]]:
        """Pieces for several blanks a sample, positions [b][k], from left to right."""
        number = max(map(len, blanks))
        if self.lockstep:
            most = torch.tensor(number, device=self._device)
            dist.all_reduce(most, dist.ReduceOp.MAX)
            number = int(most)
        found: list[list[list[int]]] = [[] for _ in blanks]
        for k in range(number):
            # A sample with fewer blanks writes its last one again, which nobody reads.
            positions = [row[min(k, len(row) - 1)] if row else 0 for row in blanks]
            pieces = self.write(torch.tensor(positions, device=self._device), decoding)
            for row, own, piece in zip(blanks, found, pieces, strict=True):
                if k < len(row):
                    own.append(piece)
        return found

    def write(self, positions: Tensor, decoding: Decoding) -> list[list[int]]:
        """A piece for every sample at the position [b] of its blank: ids without [sop], [eop].

        Later pieces see it. [] where the model writes [eop] at once.
        """
        rows, beams = len(positions), decoding.num_beams
        self._state.begin(beams, decoding.max_length)
        engine = _engine_class()(self._next_logits, positions.repeat_interleave(beams), self._state)
        start = positions.new_full((rows, 1), self.symbols.sop)
        with _seeded(decoding.seed if decoding.draw else None, positions.device):
            written = engine.generate(
                input_ids=start,
                generation_config=_config(decoding, self.symbols),
                **({} if self._state.cache is None else {"past_key_values": self._state.cache}),
                synced_gpus=self.lockstep,
            )
        pieces = [self._cut(row) for row in written[:, 1:].tolist()]
        self._append(pieces, positions)
        return pieces

    def _cut(self, ids: list[int]) -> list[int]:
        ends = (self.symbols.eop, self.symbols.pad)
        stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
        return ids[:stop]

    def _append(self, pieces: Sequence[list[int]], positions: Tensor) -> None:
        width = 1 + max(map(len, pieces))
        tokens = positions.new_full((len(pieces), width), self.symbols.pad)
        tokens[:, 0] = self.symbols.sop
        for row, piece in zip(tokens, pieces, strict=True):
            row[1 : 1 + len(piece)] = torch.tensor(piece, dtype=row.dtype)
        lengths = torch.tensor([1 + len(piece) for piece in pieces], device=positions.device)
        self._state.append(tokens, self._position_ids(positions, 1, width), lengths)

    def _position_ids(self, positions: Tensor, first: int, length: int) -> Tensor:
        """[r] -> [r, 2, length]: the blank's position, and block positions from `first` on."""
        blocks = torch.arange(first, first + length, device=positions.device)
        blocks = blocks if self.block_position else torch.ones_like(blocks)
        rows = len(positions), length
        return torch.stack((positions[:, None].expand(rows), blocks.expand(rows)), dim=1)

    def _next_logits(self, ids: Tensor, total: int, positions: Tensor) -> Tensor:
        """The last ids [r, t] of pieces with `total` tokens so far -> logits [r, v] of the next."""
        position_ids = self._position_ids(positions, total - ids.size(1) + 1, ids.size(1))
        shard = self._state.logits(ids, position_ids)
        logits = mpu.gather_from_model_parallel_region(shard).float()
        logits = _over_ids(logits, self._vocab_map)
        logits[:, self.symbols.num_tokens :] = float("-inf")
        return logits


def _wants_neighbours(module: nn.Module) -> bool:
    relative = isinstance(module, ParallelTransformer) and module.relative
    return relative or isinstance(module, NeighbourWords)


def _over_ids(logits: Tensor, vocab_map: VocabMap | None) -> Tensor:
    """[r, v] or, of a compressed vocabulary, [r, rows] -> [r, v], in which only kept ids count."""
    if vocab_map is None:
        return logits
    kept = vocab_map.origin_id_mask_map
    if logits.size(-1) == len(kept):
        return logits.masked_fill(~kept, float("-inf"))
    spread = logits.new_full((len(logits), len(kept)), float("-inf"))
    spread[:, vocab_map.kept_ids] = logits
    return spread


class _Cached:
    """Keys and values of context and pieces; `visible` [b, columns] leaves out padding."""

    def __init__(self, model: nn.Module, tokens: Tensor, position_ids: Tensor, sep: Tensor):
        self.model, self.context = model, KeyValueCache()
        nothing = tokens.new_empty(0)
        with torch.no_grad():
            model(tokens, position_ids, sep, cache=self.context, output_rows=nothing)
        columns = torch.arange(tokens.size(1), device=tokens.device)
        self.visible = columns < sep[:, None]
        self._before = self.visible
        self.cache: KeyValueCache | None = None

    def begin(self, beams: int, room: int) -> None:
        """A piece begins."""
        self.cache = self.context.beams(beams, room)
        self._before = self.visible.repeat_interleave(beams, 0)

    def logits(self, ids: Tensor, position_ids: Tensor) -> Tensor:
        """[r, t] -> [r, v/p] behind the last of them."""
        written = len(self.cache) - self._before.size(1)
        mask = _mask(self._before, written, ids.size(1))
        last = torch.arange(1, len(ids) + 1, device=ids.device) * ids.size(1) - 1
        out = self.model(ids, position_ids, mask, cache=self.cache, output_rows=last)
        return out[0]

    def append(self, tokens: Tensor, position_ids: Tensor, lengths: Tensor) -> None:
        """Make pieces [b, t] a part of the context."""
        mask = _mask(self.visible, 0, tokens.size(1))
        nothing = tokens.new_empty(0)
        with torch.no_grad():
            self.model(tokens, position_ids, mask, cache=self.context, output_rows=nothing)
        columns = torch.arange(tokens.size(1), device=tokens.device)
        self.visible = torch.cat((self.visible, columns < lengths[:, None]), dim=1)


def _mask(before: Tensor, written: int, length: int) -> Tensor:
    """[r, n] -> bool [r, 1, length, n + written + length]: new tokens see what is before them."""
    rows = torch.arange(written, written + length, device=before.device)
    columns = torch.arange(written + length, device=before.device)
    own = (columns <= rows[:, None]).expand(len(before), length, written + length)
    return torch.cat((before[:, None].expand(-1, length, -1), own), dim=2)[:, None]


class _Whole:
    """Ids and positions of every row, without padding; each token costs a whole forward."""

    cache = None

    def __init__(self, model: nn.Module, tokens: Tensor, position_ids: Tensor, sep: Tensor):
        self.model, self.sep = model, sep
        self.rows = [
            (row[:n], places[:, :n])
            for row, places, n in zip(tokens, position_ids, sep.tolist(), strict=True)
        ]
        self.beams = 1

    def begin(self, beams: int, room: int) -> None:
        """A piece begins."""
        self.beams = beams

    def logits(self, ids: Tensor, position_ids: Tensor) -> Tensor:
        """[r, t], whole pieces -> [r, v/p] behind the last of them."""
        rows = [self.rows[r // self.beams] for r in range(len(ids))]
        lengths = [len(tokens) + ids.size(1) for tokens, _ in rows]
        tokens = ids.new_zeros(len(ids), max(lengths))
        places = ids.new_zeros(len(ids), 2, max(lengths))
        for r, (before, before_places) in enumerate(rows):
            tokens[r, : lengths[r]] = torch.cat((before, ids[r]))
            places[r, :, : lengths[r]] = torch.cat((before_places, position_ids[r]), dim=1)
        sep = self.sep.repeat_interleave(self.beams)
        last = torch.arange(len(ids), device=ids.device) * max(lengths) - 1
        last = last + torch.tensor(lengths, device=ids.device)
        return self.model(tokens, places, sep, output_rows=last)[0]

    def append(self, tokens: Tensor, position_ids: Tensor, lengths: Tensor) -> None:
        """Make pieces [b, t] a part of the context."""
        self.rows = [
            (torch.cat((old, new[:n])), torch.cat((places, more[:, :n]), dim=1))
            for (old, places), new, more, n in zip(
                self.rows, tokens, position_ids, lengths.tolist(), strict=True
            )
        ]


def _config(decoding: Decoding, symbols: Symbols) -> Any:
    """transformers' GenerationConfig."""
    from transformers import GenerationConfig

    options: dict[str, Any] = {"do_sample": decoding.draw}
    if decoding.num_beams > 1:
        options |= {
            "num_beams": decoding.num_beams,
            "length_penalty": decoding.length_penalty,
            "early_stopping": False,
        }
    if decoding.draw:
        options |= {
            "temperature": decoding.temperature,
            "top_k": decoding.top_k,
            "top_p": decoding.top_p or 1.0,
        }
    ends = (symbols.eop, symbols.pad)
    return GenerationConfig(
        max_new_tokens=decoding.max_length,
        min_new_tokens=decoding.min_length or None,
        no_repeat_ngram_size=decoding.no_repeat_ngram_size,
        eos_token_id=list(ends),
        # What stands behind a piece that ended before others. Not `pad`: it would end pieces, too.
        pad_token_id=next(i for i in range(4) if i not in (*ends, symbols.sop)),
        bos_token_id=symbols.sop,
        disable_compile=True,
        **options,
    )


@contextlib.contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """The default generators start from the seed inside, and go on as before behind."""
    if seed is None:
        yield
        return
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@cache
def _engine_class() -> type:
    """transformers' generation loop around `Writer`; a class of its own for the late import."""
    from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig
    from transformers.modeling_outputs import CausalLMOutputWithPast

    class Engine(GenerationMixin):
        """What `GenerationMixin` wants of a model: the logits behind the last token."""

        main_input_name = "input_ids"
        _is_stateful = False

        def __init__(self, next_logits: Any, positions: Tensor, state: _Cached | _Whole):
            self.config = PreTrainedConfig()
            self.generation_config = GenerationConfig(use_cache=state.cache is not None)
            self.device = positions.device
            self._next_logits, self._positions = next_logits, positions

        def prepare_inputs_for_generation(
            self,
            input_ids: Tensor,
            next_sequence_length: int | None = None,
            past_key_values: KeyValueCache | None = None,
            is_first_iteration: bool = False,
            use_cache: bool = True,
        ) -> dict[str, Any]:
            """The tokens that are not in the cache, and how many there are in all."""
            new = input_ids if past_key_values is None else input_ids[:, -1:]
            return {
                "input_ids": new,
                "total": input_ids.size(1),
                "past_key_values": past_key_values,
            }

        def forward(
            self,
            input_ids: Tensor,
            total: int,
            past_key_values: KeyValueCache | None = None,
            return_dict: bool = True,
        ) -> Any:
            """ids [r, t] -> logits [r, 1, v]."""
            logits = self._next_logits(input_ids, total, self._positions)
            return CausalLMOutputWithPast(logits=logits[:, None], past_key_values=past_key_values)

        __call__ = forward

        def _optimize_model_for_decode(self) -> contextlib.AbstractContextManager:
            return contextlib.nullcontext()  # transformers' own models only

    return Engine
