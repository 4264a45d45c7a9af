"""The stack of GLM: position embeddings, layers, final LayerNorm, memory, recomputed chunks.

Activation checkpointing and captures: a recorder is opened *inside* each recomputed chunk and its
tensors leave the chunk as outputs; outside they are filed under their paths. A capture kept by
side effect would lose its gradient or be recorded twice.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mpu
from config.model import ModelArgs
from model.attention import NO_RECORDER, glm_mask
from model.bottleneck import BottleneckLayer
from model.cache import KeyValueCache
from model.init import InitMethod, embedding
from model.layer import LAYERNORM_EPS, ParallelTransformerLayer
from model.relative import Relative, Sinusoids, head_biases
from mpu import Recorder
from mpu.layers import ShardedModule

Numbered = Sequence[tuple[int, nn.Module]]  # layers with their number, which names their captures


class ParallelTransformer(ShardedModule):
    """Positions, layers and the final LayerNorm; everything of GLM but the vocabulary.

    `layers` holds those with weights of their own: with shared weights one, which is applied
    `rounds` times (ALBERT, arXiv 1909.11942). Captures have the number of the application.
    """

    def __init__(self, args: ModelArgs, init_method: InitMethod, output_init_method: InitMethod):
        super().__init__({"r_w_bias": mpu.Partition(dim=0), "r_r_bias": mpu.Partition(dim=0)})
        width = args.hidden_size
        self.hidden_dropout = args.hidden_dropout
        self.max_memory_length = args.mem_length
        self.block_position_encoding = args.block_position_encoding
        self.chunk_size = args.checkpoint_num_layers if args.checkpoint_activations else 0
        self.keep = mpu.Keep()  # where the inputs of recomputed chunks stay; the engine says
        self.relative = args.transformer_xl
        if self.relative:
            heads = args.num_attention_heads, mpu.divide(args.inner_size, args.num_attention_heads)
            self.position_embeddings: nn.Module = Sinusoids(width)
            self.r_w_bias, self.r_r_bias = head_biases(*heads), head_biases(*heads)
        else:
            rows = args.max_position_embeddings + self.block_position_encoding
            self.position_embeddings = embedding(rows, width, init_method)
            if self.block_position_encoding:
                self.block_position_embeddings = embedding(rows, width, init_method)
        layer = BottleneckLayer if args.inverted_bottleneck_mode else ParallelTransformerLayer
        self.rounds = args.num_layers if args.cross_layer_parameter_sharing else 1
        self.layers = nn.ModuleList(
            layer(args, init_method, output_init_method)
            for _ in range(args.num_layers // self.rounds)
        )
        self.final_layernorm = nn.LayerNorm(width, eps=LAYERNORM_EPS)

    def forward(
        self,
        words: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | int,
        mems: Sequence[Tensor] = (),
        *,
        return_memory: bool = False,
        detach_memory: bool = True,
        recorder: Recorder = NO_RECORDER,
        cache: KeyValueCache | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """[b, s, h], positions [b, 2, s] (or [b, s]), sep -> [b, s, h] after the final LayerNorm.

        `mems`: one tensor [b, mem, h] a layer and one more, as returned by an earlier call: the
        embeddings and each layer's output, appended to the old memory. All of it is returned with
        `return_memory`, else the last `mem_length` states, else nothing.
        `cache`: of earlier positions, instead of a memory; these ones are appended to it.
        """
        assert cache is None or not (mems or torch.is_grad_enabled()), "a cache is for decoding"
        memory_length = mems[0].size(1) if mems else 0 if cache is None else len(cache)
        mask = glm_mask(attention_mask, words.size(1), memory_length, words.device)
        relative = self._relative(words.size(1), memory_length)
        x = words if relative is not None else words + self._positions(position_ids)
        x = recorder.edit("embeddings", hidden_states=x, this=self)
        recorder.add("embeddings", x)
        x = F.dropout(x, self.hidden_dropout, self.training)

        remember = return_memory or self.max_memory_length > 0
        states = [x] if remember else []
        stack = list(self.layers) * self.rounds
        layers = list(enumerate(recorder.edit("self_layers", self_layers=stack)))
        below = recorder.child("layers")
        recompute = self.chunk_size > 0 and torch.is_grad_enabled()
        size = self.chunk_size if recompute else len(layers)
        run = self._recomputed if recompute else self._run
        for first in range(0, len(layers), size):
            part = layers[first : first + size]
            outputs = run(part, x, mask, mems, below, remember, cache, relative)
            x = outputs[-1]
            states += outputs if remember else ()

        output = self.final_layernorm(x)
        output = recorder.edit("output", output=output)
        recorder.add("output", output)
        kept = None if return_memory else self.max_memory_length
        return output, _extended(states, mems, kept, detach_memory)

    def _relative(self, length: int, memory: int) -> Relative | None:
        """What layers need of relative positions; None with tables of positions."""
        if not self.relative:
            return None
        return Relative(self.position_embeddings(length, memory), self.r_w_bias, self.r_r_bias)

    def _positions(self, position_ids: Tensor) -> Tensor:
        """[b, 2, s] or, without block positions, [b, s] -> [b, s, h]"""
        if not self.block_position_encoding:
            return self.position_embeddings(position_ids)
        position, block = position_ids.unbind(1)
        return self.position_embeddings(position) + self.block_position_embeddings(block)

    def _run(
        self,
        layers: Numbered,
        x: Tensor,
        mask: Tensor,
        mems: Sequence[Tensor],
        recorder: Recorder,
        keep: bool,
        cache: KeyValueCache | None = None,
        relative: Relative | None = None,
    ) -> list[Tensor]:
        """Outputs of these layers: of every one with `keep`, else of the last."""
        outputs = []
        for number, layer in layers:
            inputs = x, mask, mems[number] if mems else None, recorder.child(number)
            place = None if cache is None else (cache, number)
            extra = (place,) if relative is None else (place, relative)
            x = layer(*inputs) if extra == (None,) else layer(*inputs, *extra)
            outputs.append(x)
            if not keep:
                del outputs[:-1]
        return outputs

    def _recomputed(
        self,
        layers: Numbered,
        x: Tensor,
        mask: Tensor,
        mems: Sequence[Tensor],
        recorder: Recorder,
        keep: bool,
        cache: None = None,
        relative: Relative | None = None,
    ) -> list[Tensor]:
        """The same; activations are recomputed in the backward pass, captures leave as outputs.

        ValueError for captures with partitioned inputs: they would keep the inputs whole.
        """
        paths: list[tuple] = []
        if self.keep.partition and recorder.hook:
            raise ValueError(
                "partition_activations: these layers are captured in: "
                f"{', '.join(map(str, recorder.hook))}; set it to false"
            )

        def chunk(x: Tensor, mask: Tensor, *mems: Tensor) -> tuple[Tensor, ...]:
            inside = Recorder(recorder.hook, recorder.hook_op)
            outputs = self._run(layers, x, mask, mems, inside, keep, None, relative)
            paths[:] = inside.captured
            return *outputs, *inside.captured.values()

        results = mpu.checkpoint(chunk, x, mask, *mems, keep=self.keep)
        count = len(results) - len(paths)
        recorder.absorb(dict(zip(paths, results[count:], strict=True)))
        return list(results[:count])


def _extended(
    states: list[Tensor], mems: Sequence[Tensor], kept: int | None, detach: bool
) -> list[Tensor]:
    """Each state appended to its memory, [b, mem + s, h]; the last `kept` columns, if given."""
    if detach:
        states = [state.detach() for state in states]
    if mems and states:
        states = [torch.cat(pair, dim=1) for pair in zip(mems, states, strict=True)]
    return states if kept is None else [state[:, -kept:] for state in states]
