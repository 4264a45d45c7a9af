"""One block of GLM: pre-LN self-attention and MLP on a residual stream (arXiv 2103.10360)."""

import torch.nn.functional as F
from torch import Tensor, nn

import mpu
from config.model import ModelArgs
from model.attention import NO_RECORDER, LayerCache, ParallelSelfAttention
from model.init import InitMethod
from model.relative import Relative
from mpu import Recorder

LAYERNORM_EPS = 1e-5


class ParallelMLP(nn.Module):
    """h -> 4h, GELU in its tanh form, 4h -> h."""

    def __init__(self, width: int, init_method: InitMethod, output_init_method: InitMethod):
        super().__init__()
        self.dense_h_to_4h = mpu.ColumnParallelLinear(width, 4 * width, init_method=init_method)
        self.dense_4h_to_h = mpu.RowParallelLinear(4 * width, width, init_method=output_init_method)

    def forward(self, x: Tensor) -> Tensor:
        """[b, s, h] -> [b, s, h]"""
        return self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(x), approximate="tanh"))


class ParallelTransformerLayer(nn.Module):
    """x += dropout(attention(LN1(x))); x += dropout(MLP(LN2(x)))."""

    def __init__(self, args: ModelArgs, init_method: InitMethod, output_init_method: InitMethod):
        super().__init__()
        self.hidden_dropout = args.hidden_dropout
        self.input_layernorm = nn.LayerNorm(args.hidden_size, eps=LAYERNORM_EPS)
        self.attention = ParallelSelfAttention(args, init_method, output_init_method)
        self.post_attention_layernorm = nn.LayerNorm(args.inner_size, eps=LAYERNORM_EPS)
        self.mlp = ParallelMLP(args.inner_size, init_method, output_init_method)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        memory: Tensor | None = None,
        recorder: Recorder = NO_RECORDER,
        cache: LayerCache | None = None,
        relative: Relative | None = None,
    ) -> Tensor:
        """[b, s, h], mask [b or 1, 1, s, mem + s], memory [b, mem, h] -> [b, s, h].

        The memory holds inputs of this layer; it goes through the same LayerNorm as x.
        """
        x = x + self._attend(x, mask, memory, recorder, cache, relative)
        x = x + self._feed(x, recorder)
        x = recorder.edit("tf_output", tf_output=x)
        recorder.add("tf_output", x)
        return x

    def _attend(
        self,
        x: Tensor,
        mask: Tensor,
        memory: Tensor | None,
        recorder: Recorder,
        cache: LayerCache | None,
        relative: Relative | None,
    ) -> Tensor:
        """What attention adds: [b, s, h] -> [b, s, h], u instead of h in a bottleneck."""
        normed = self.input_layernorm(x)
        normed = recorder.edit("layernorm_output", layernorm_output=normed)
        recorder.add("layernorm_output", normed)
        if memory is not None:
            memory = self.input_layernorm(memory)
        return self._dropout(self.attention(normed, mask, memory, recorder, cache, relative))

    def _feed(self, x: Tensor, recorder: Recorder) -> Tensor:
        """What the MLP adds: [b, s, h], or u in a bottleneck, the same shape."""
        normed = self.post_attention_layernorm(x)
        recorder.add("post_attention_layernorm", normed)
        return self._dropout(self.mlp(normed))

    def _dropout(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.hidden_dropout, self.training)
