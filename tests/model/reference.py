"""An independent GLM in plain PyTorch: dense, one process, no captures. What tests compare with."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config.model import ModelArgs


class PlainGLM(nn.Module):
    """The formulas of GLM on the tensors of a checkpoint (official keys, dots as in the file)."""

    def __init__(self, args: ModelArgs, state: dict[str, Tensor]):
        super().__init__()
        self.args = args
        self.rows = state.get("vocab_map.origin_id_to_target_pos")  # of the word table, by id
        weights = {name: t for name, t in state.items() if not is_table(name)}
        self.names = list(weights)
        self.weights = nn.ParameterList(nn.Parameter(t.detach().clone()) for t in weights.values())

    def grads(self) -> dict[str, Tensor]:
        """Checkpoint name -> gradient."""
        return {name: p.grad for name, p in zip(self.names, self.weights, strict=True)}

    def forward(self, ids: Tensor, positions: Tensor, sep: Tensor, dropout: float = 0.0) -> Tensor:
        """[b, s], [b, 2, s], [b] -> logits [b, s, v]. `dropout` is that of every place."""
        w = dict(zip(self.names, self.weights, strict=True))
        length = ids.size(1)
        x = self._words(w, ids, sep)
        if self.args.block_position_encoding:
            x = x + F.embedding(positions[:, 0], w["transformer.position_embeddings.weight"])
            x = x + F.embedding(positions[:, 1], w["transformer.block_position_embeddings.weight"])
        else:
            x = x + F.embedding(positions, w["transformer.position_embeddings.weight"])
        x = F.dropout(x, dropout)
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        visible = causal | (torch.arange(length) < sep[:, None, None, None])
        for i in range(self.args.num_layers):
            number = 0 if self.args.cross_layer_parameter_sharing else i
            x = self._layer(w, f"transformer.layers.{number}.", x, visible, dropout)
        x = self._norm(w, "transformer.final_layernorm.", x)
        if self.args.compress_word_emb:
            x = self._linear(w, "decompress_emb_mlp.", x)
        table = w["word_embeddings.weight"]
        return x @ (table if self.rows is None else table[self.rows]).T

    def _words(self, w: dict, ids: Tensor, sep: Tensor) -> Tensor:
        ids = ids if self.rows is None else self.rows[ids]
        x = F.embedding(ids, w["word_embeddings.weight"])
        if self.args.compress_word_emb:
            x = self._linear(w, "compress_emb_mlp.", x)
        if not self.args.ib_word_emb:
            return x
        zero, samples = torch.zeros(self.args.ib_word_emb), []
        for row, visible in zip(x[..., : self.args.ib_word_emb], sep.tolist(), strict=True):
            mixed = []
            for i, own in enumerate(row):
                ahead = i + 1 if i + 1 < visible else i - 2
                first = row[ahead] if 0 <= ahead < len(row) else zero
                mixed.append(torch.cat((first, own, row[i - 1] if i else zero)))
            samples.append(torch.stack(mixed))
        return self._linear(w, "ib_emb_mlp.", torch.stack(samples))

    def _layer(self, w: dict, name: str, x: Tensor, visible: Tensor, dropout: float) -> Tensor:
        batch, length, width = x.shape
        bottleneck = self.args.inverted_bottleneck_mode
        width = self.args.ib_hidden_size if bottleneck else width
        heads = self.args.num_attention_heads
        normed = self._norm(w, name + "input_layernorm.", x)
        mixed = self._linear(w, name + "attention.query_key_value.", normed)
        q, k, v = (
            part.view(batch, length, heads, width // heads).transpose(1, 2)
            for part in mixed.chunk(3, dim=-1)
        )
        context = F.scaled_dot_product_attention(q, k, v, visible, dropout)
        context = context.transpose(1, 2).reshape(batch, length, width)
        base = self._linear(w, name + "ib_linear_in.", x) if bottleneck else x
        y = base + F.dropout(self._linear(w, name + "attention.dense.", context), dropout)
        y = y + self._mlp(w, name, "post_attention_layernorm.", "mlp.", y, dropout)
        if not bottleneck:
            return y
        for k in range(self.args.ib_ffn_num - 1):
            y = y + self._mlp(w, name, f"ib_mlp_layernorm.{k}.", f"ib_mlp.{k}.", y, dropout)
        y = self._norm(w, name + "ib_linear_out_layernorm.", y)
        return x + self._linear(w, name + "ib_linear_out.", y)

    def _mlp(self, w: dict, name: str, norm: str, mlp: str, x: Tensor, dropout: float) -> Tensor:
        inner = self._linear(w, name + mlp + "dense_h_to_4h.", self._norm(w, name + norm, x))
        inner = F.gelu(inner, approximate="tanh")
        return F.dropout(self._linear(w, name + mlp + "dense_4h_to_h.", inner), dropout)

    @staticmethod
    def _linear(w: dict, name: str, x: Tensor) -> Tensor:
        return F.linear(x, w[name + "weight"], w[name + "bias"])

    @staticmethod
    def _norm(w: dict, name: str, x: Tensor) -> Tensor:
        weight = w[name + "weight"]
        return F.layer_norm(x, weight.shape, weight, w[name + "bias"], 1e-5)


def is_table(name: str) -> bool:
    """Whether this entry of a state dict is no parameter."""
    return name.startswith("vocab_map.") or name.endswith("inv_freq")


def dense_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> tuple[Tensor, ...]:
    """(masked scores, probabilities, context) of attention written out, [b, n, s, d] each."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.size(-1))
    scores = torch.where(visible, scores, torch.tensor(-65504.0))
    probs = torch.exp(scores - scores.logsumexp(-1, keepdim=True))
    return scores, probs, probs @ v


def assert_grads_close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Each within 1e-4 relative or 1e-5 of its largest entry; none may be missing."""
    assert list(actual) == list(expected)
    for name, grad in expected.items():
        atol = 1e-5 * float(grad.abs().max()) + 1e-9
        torch.testing.assert_close(
            actual[name], grad, rtol=1e-4, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )
