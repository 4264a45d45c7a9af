"""Self-attention with GLM's mask; the heads are cut over the model-parallel ranks.

    softmax(Q K^T / sqrt(d) where the mask is 1, -65504 elsewhere) V

Fused (`scaled_dot_product_attention`), unless the hook asks for scores or probabilities in this
layer: only then they exist as tensors, [b, n/p, s, mem + s].
"""

import contextlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mpu
from config.model import ModelArgs
from model.cache import KeyValueCache
from model.init import InitMethod
from model.relative import Relative, relative_scores
from mpu import Recorder

MASKED = -65504.0  # score of an invisible key: the lowest number of fp16
EXPLICIT = ("attention_scores", "attention_probs")
NO_RECORDER = Recorder()
LayerCache = tuple[KeyValueCache, int]  # and the number of the layer in it


def glm_mask(sep: Tensor | int, length: int, memory: int, device: torch.device) -> Tensor:
    """Which keys each query sees: bool [b or 1, 1, s, mem + s].

    `sep` is the length of the context that everyone sees, one number or one a sample [b]: query i
    sees key j if j <= i or j < sep, and all `memory` keys, which come first. Or it is a ready mask
    [b or 1, 1, s, at least mem + s] of 1 and 0, of which the last mem + s columns count.
    """
    if isinstance(sep, Tensor) and sep.dim() == 4:
        return sep[..., -(memory + length) :] != 0
    column = torch.arange(length, device=device)
    sep = torch.as_tensor(sep, device=device).reshape(-1, 1, 1, 1)
    mask = (column <= column[:, None]) | (column < sep)
    return F.pad(mask, (memory, 0), value=True) if memory else mask


class ParallelSelfAttention(nn.Module):
    """Fused projection to queries, keys and values, attention per head, output projection.

    The heads are u wide together; u is h, but in a bottleneck.
    """

    def __init__(self, args: ModelArgs, init_method: InitMethod, output_init_method: InitMethod):
        super().__init__()
        width = args.inner_size
        self.num_heads = mpu.divide(args.num_attention_heads, mpu.get_model_parallel_world_size())
        self.head_size = mpu.divide(width, args.num_attention_heads)
        self.attention_scale = max(args.attention_scale, 1.0)
        self.attention_dropout = args.attention_dropout
        self.query_key_value = mpu.ColumnParallelLinear(
            args.hidden_size, 3 * width, stride=3, init_method=init_method
        )
        if args.transformer_xl:
            self.relative = mpu.ColumnParallelLinear(
                args.hidden_size, width, init_method=init_method
            )
        self.dense = mpu.RowParallelLinear(width, width, init_method=output_init_method)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        memory: Tensor | None = None,
        recorder: Recorder = NO_RECORDER,
        cache: LayerCache | None = None,
        relative: Relative | None = None,
    ) -> Tensor:
        """[b, s, h], mask [b or 1, 1, s, mem + s], memory [b, mem, h] -> [b, s, u].

        Queries come from x, keys and values from the memory followed by x; or from a cache, which
        x is appended to, and the number of this layer in it.
        """
        inputs = x if memory is None else torch.cat((memory, x), dim=1)
        query, key, value = mpu.split_tensor_along_last_dim(self.query_key_value(inputs), 3)
        if memory is not None:
            query = query[:, -x.size(1) :]
        recorder.add("mixed_query_layer", query)
        recorder.add("mixed_key_layer", key)
        recorder.add("mixed_value_layer", value)
        query, key, value = self._heads(query), self._heads(key), self._heads(value)
        recorder.add("query_layer", query)
        recorder.add("key_layer", key)
        recorder.add("value_layer", value)
        if cache is not None:
            key, value = cache[0].update(key, value, cache[1])
        if relative is not None or recorder.wants_any(*EXPLICIT):
            context = self._explicit(query, key, value, mask, recorder, relative)
        else:
            context = self._fused(query, key, value, mask)
        context = context.transpose(1, 2).flatten(2)
        recorder.add("context_layer", context)
        return self.dense(context)

    def _heads(self, x: Tensor) -> Tensor:
        """[b, s, u/p] -> [b, n/p, s, d]"""
        return x.unflatten(-1, (self.num_heads, self.head_size)).transpose(1, 2)

    def _dropout(self) -> tuple[float, contextlib.AbstractContextManager]:
        """The rate, and the random stream: each rank drops entries of its own heads."""
        rate = self.attention_dropout if self.training else 0.0
        return rate, mpu.get_rng_tracker().fork() if rate else contextlib.nullcontext()

    def _fused(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        rate, stream = self._dropout()
        with stream:
            return F.scaled_dot_product_attention(query, key, value, mask, rate)

    def _explicit(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor,
        recorder: Recorder,
        relative: Relative | None,
    ) -> Tensor:
        scores = self._scores(query, key, mask, relative)
        recorder.add("attention_scores", scores)
        probs = scores.softmax(-1)
        recorder.add("attention_probs", probs)
        rate, stream = self._dropout()
        with stream:
            return F.dropout(probs, rate) @ value

    def _scores(
        self, query: Tensor, key: Tensor, mask: Tensor, relative: Relative | None = None
    ) -> Tensor:
        """Masked scores [b, n/p, s, mem + s]; with a scale above 1 shifted by each row's maximum.

        The scale keeps fp16 products small. The seed adds -65504 to the shifted score of an
        invisible key; here it is -65504 itself.
        """
        root = math.sqrt(self.attention_scale)
        scale = root * math.sqrt(self.head_size)
        if relative is None:
            scores = (query / root) @ (key / scale).transpose(-1, -2)
        else:
            content = (query + relative.r_w_bias[:, None]) / root
            place = (query + relative.r_r_bias[:, None]) / root
            sinusoids = relative.sinusoids.to(self.relative.weight.dtype)
            distances = self._heads(self.relative(sinusoids[None]))[0]
            scores = content @ (key / scale).transpose(-1, -2)
            scores = scores + relative_scores(place, distances / scale)
        if self.attention_scale == 1:
            return scores.masked_fill(~mask, MASKED)
        scores = scores * mask
        scores = (scores - scores.amax(-1, keepdim=True)) * self.attention_scale
        return scores.masked_fill(~mask, MASKED)
