"""A block that is h wide outside, u wide inside (after MobileBERT, Sun et al., arXiv 2004.02984).

    y = W_in x + b_in + attention(LN1(x))          queries, keys, values from h to u
    y = y + MLP_0(LN2(y))                          u -> 4u -> u
    y = y + MLP_k(LN_k(y))                         k = 1 .. F - 1
    out = x + W_out LN_out(y) + b_out              u -> h

A narrow u with several MLPs is the paper's student, u > h with one its teacher.

Not as in the paper: LayerNorms stand before the sublayers, queries and keys come from the h-wide
state, GELU.
"""

from torch import Tensor, nn

from config.model import ModelArgs
from model.attention import NO_RECORDER, LayerCache
from model.init import InitMethod, gathered_linear
from model.layer import LAYERNORM_EPS, ParallelMLP, ParallelTransformerLayer
from model.relative import Relative
from mpu import Recorder


class BottleneckLayer(ParallelTransformerLayer):
    """A block with inner width `ib_hidden_size` and `ib_ffn_num` MLPs."""

    def __init__(self, args: ModelArgs, init_method: InitMethod, output_init_method: InitMethod):
        super().__init__(args, init_method, output_init_method)
        width, inner, more = args.hidden_size, args.inner_size, args.ib_ffn_num - 1
        self.ib_linear_in = gathered_linear(width, inner, init_method)
        self.ib_linear_out = gathered_linear(inner, width, init_method)
        self.ib_mlp = nn.ModuleList(
            ParallelMLP(inner, init_method, output_init_method) for _ in range(more)
        )
        self.ib_mlp_layernorm = nn.ModuleList(
            nn.LayerNorm(inner, eps=LAYERNORM_EPS) for _ in range(more)
        )
        self.ib_linear_out_layernorm = nn.LayerNorm(inner, eps=LAYERNORM_EPS)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        memory: Tensor | None = None,
        recorder: Recorder = NO_RECORDER,
        cache: LayerCache | None = None,
        relative: Relative | None = None,
    ) -> Tensor:
        """As a plain block: [b, s, h] -> [b, s, h]; `post_attention_layernorm` is [b, s, u]."""
        inner = self.ib_linear_in(x) + self._attend(x, mask, memory, recorder, cache, relative)
        inner = inner + self._feed(inner, recorder)
        for layernorm, mlp in zip(self.ib_mlp_layernorm, self.ib_mlp, strict=True):
            inner = inner + self._dropout(mlp(layernorm(inner)))
        x = x + self.ib_linear_out(self.ib_linear_out_layernorm(inner))
        x = recorder.edit("tf_output", tf_output=x)
        recorder.add("tf_output", x)
        return x
