"""Transformer-XL over a whole text at once: dense formulas, no memory, no masks of the model's."""

import torch
import torch.nn.functional as F


def dense_logits(args, weights, ids, first, *, start=0):
    """Ids [n] of one text and where each token's document begins [n] -> logits [n, v].

    `weights`: a GLM's state dict. A token sees its own document up to itself. `start`: states of
    the tokens before it get no gradient, as if they were remembered.
    """
    w, number = weights, len(ids)
    x = w["word_embeddings.weight"][ids]
    place = torch.arange(number)
    distance = place[:, None] - place
    seen = (distance >= 0) & (place >= first[:, None])
    frequency = 10000.0 ** -(torch.arange(0, args.hidden_size, 2) / args.hidden_size)
    angle = distance[..., None].to(x.dtype) * frequency
    relative = torch.cat((angle.sin(), angle.cos()), -1)  # [n, n, h]
    for i in range(args.num_layers):
        x = torch.cat((x[:start].detach(), x[start:]))
        layer = {k.split(f"layers.{i}.")[1]: v for k, v in w.items() if f"layers.{i}." in k}
        x = x + _attend(args, w, layer, _norm(x, layer, "input_layernorm"), relative, seen)
        h = _linear(_norm(x, layer, "post_attention_layernorm"), layer, "mlp.dense_h_to_4h")
        x = x + _linear(F.gelu(h, approximate="tanh"), layer, "mlp.dense_4h_to_h")
    return _norm(x, w, "transformer.final_layernorm") @ w["word_embeddings.weight"].T


def _attend(args, w, layer, x, relative, seen):
    heads = args.num_attention_heads
    q, k, v = (
        part.unflatten(-1, (heads, -1))
        for part in _linear(x, layer, "attention.query_key_value").chunk(3, -1)
    )
    far = _linear(relative, layer, "attention.relative").unflatten(-1, (heads, -1))
    content = torch.einsum("ind,jnd->nij", q + w["transformer.r_w_bias"], k)
    place = torch.einsum("ind,ijnd->nij", q + w["transformer.r_r_bias"], far)
    scores = ((content + place) / q.size(-1) ** 0.5).masked_fill(~seen, -torch.inf)
    context = torch.einsum("nij,jnd->ind", scores.softmax(-1), v).flatten(1)
    return _linear(context, layer, "attention.dense")


def _linear(x, weights, name):
    return F.linear(x, weights[name + ".weight"], weights[name + ".bias"])


def _norm(x, weights, name):
    return F.layer_norm(x, x.shape[-1:], weights[name + ".weight"], weights[name + ".bias"], 1e-5)
