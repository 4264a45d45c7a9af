"""A GLM in plain PyTorch, one process, no framework: the yardstick of scripts/bench_step.py.

Same architecture, same attention kernel and the same parameter names as model/glm.py, so weights
load from one into the other. Shapes: b batch, s sequence, h hidden, n heads, v vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Fused projection to queries, keys and values, SDPA, output projection."""

    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query_key_value = nn.Linear(hidden, 3 * hidden)
        self.dense = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[b, s, h], additive mask [b, 1, s, s] -> [b, s, h]."""
        b, s, h = x.shape
        q, k, v = (
            part.view(b, s, self.heads, h // self.heads).transpose(1, 2)
            for part in self.query_key_value(x).chunk(3, dim=-1)
        )
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.dense(out.transpose(1, 2).reshape(b, s, h))


class MLP(nn.Module):
    """h -> 4h -> h with the tanh form of GELU."""

    def __init__(self, hidden: int):
        super().__init__()
        self.dense_h_to_4h = nn.Linear(hidden, 4 * hidden)
        self.dense_4h_to_h = nn.Linear(4 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[b, s, h] -> [b, s, h]."""
        return self.dense_4h_to_h(F.gelu(self.dense_h_to_4h(x), approximate="tanh"))


class Layer(nn.Module):
    """Pre-LN block."""

    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(hidden)
        self.attention = Attention(hidden, heads, dropout)
        self.post_attention_layernorm = nn.LayerNorm(hidden)
        self.mlp = MLP(hidden)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[b, s, h], additive mask [b, 1, s, s] -> [b, s, h]."""
        x = x + self.drop(self.attention(self.input_layernorm(x), mask))
        return x + self.drop(self.mlp(self.post_attention_layernorm(x)))


class Transformer(nn.Module):
    """Position tables, layers, final norm."""

    def __init__(self, layers: int, hidden: int, heads: int, positions: int, dropout: float):
        super().__init__()
        self.position_embeddings = nn.Embedding(positions + 1, hidden)
        self.block_position_embeddings = nn.Embedding(positions + 1, hidden)
        self.layers = nn.ModuleList(Layer(hidden, heads, dropout) for _ in range(layers))
        self.final_layernorm = nn.LayerNorm(hidden)
        self.drop = nn.Dropout(dropout)

    def forward(self, words: Tensor, position_ids: Tensor, sep: Tensor) -> Tensor:
        """[b, s, h], [b, 2, s], [b] -> [b, s, h]."""
        x = words + self.position_embeddings(position_ids[:, 0])
        x = self.drop(x + self.block_position_embeddings(position_ids[:, 1]))
        mask = additive_mask(x.shape[1], sep, x.dtype)
        for layer in self.layers:
            x = layer(x, mask)
        return self.final_layernorm(x)


class PlainGLM(nn.Module):
    """Embeddings, transformer, tied output."""

    def __init__(
        self, layers: int, hidden: int, heads: int, positions: int, vocab: int, dropout: float = 0.0
    ):
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab, hidden)
        self.transformer = Transformer(layers, hidden, heads, positions, dropout)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for layer in self.transformer.layers:
            for weight in (layer.attention.dense.weight, layer.mlp.dense_4h_to_h.weight):
                nn.init.normal_(weight, std=0.02 / (2 * layers) ** 0.5)

    def forward(self, tokens: Tensor, position_ids: Tensor, sep: Tensor) -> Tensor:
        """Tokens [b, s], positions [b, 2, s], visible lengths [b] -> logits [b, s, v]."""
        out = self.transformer(self.word_embeddings(tokens), position_ids, sep)
        return F.linear(out, self.word_embeddings.weight)


def additive_mask(length: int, sep: Tensor, dtype: torch.dtype) -> Tensor:
    """[b] -> [b, 1, s, s]: 0 where row i sees column j (j < sep or j <= i), else -65504."""
    place = torch.arange(length, device=sep.device)
    visible = (place[None, None] < sep[:, None, None]) | (place[None, None] <= place[None, :, None])
    mask = torch.zeros(visible.shape, dtype=dtype, device=sep.device)
    return mask.masked_fill_(~visible, -65504.0)[:, None]
