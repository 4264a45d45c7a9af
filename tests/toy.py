"""Small models and batches for every test: a GLM of 2 layers, a teacher of 4, random batches.

Weights are drawn at a healthy scale (biases and LayerNorms included), so that a wrong term shows.
They do not depend on p. Nothing here touches torch's global generators.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

import mpu
from config.model import ModelArgs
from data_utils.batch import Batch
from model.glm import GLMModel
from model.vocab_map import TABLES

VOCAB = 64  # ids: 0 pad, 1 ENC, 2 MASK, 3 start of piece, 4 end of piece, text from 10
PAD, ENC, MASK, SOP, EOP, TEXT = 0, 1, 2, 3, 4, 10


def toy_model_args(**changes: Any) -> ModelArgs:
    """2 layers, h 16, 4 heads, v 64, positions to 40, no dropout."""
    args = ModelArgs(
        num_layers=2,
        hidden_size=16,
        num_attention_heads=4,
        vocab_size=VOCAB,
        max_position_embeddings=40,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        output_dropout=0.0,
    )
    return dataclasses.replace(args, **changes)


#: Name of a model shape -> changes to `toy_model_args`.
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "compressed": {"compress_word_emb": 12},
    "shared": {"cross_layer_parameter_sharing": True, "num_layers": 3},
    "albert": {"cross_layer_parameter_sharing": True, "compress_word_emb": 8},
    "neighbours": {"ib_word_emb": 5},
    "bottleneck": {"inverted_bottleneck_mode": True, "ib_hidden_size": 8, "ib_ffn_num": 3},
    "wide": {"inverted_bottleneck_mode": True, "ib_hidden_size": 24, "ib_ffn_num": 1},
    "mapped": {"map_vocab_size": 24},
    "relative": {"transformer_xl": True},
    "everything": {
        "compress_word_emb": 4,
        "cross_layer_parameter_sharing": True,
        "inverted_bottleneck_mode": True,
        "ib_hidden_size": 8,
        "ib_ffn_num": 2,
        "ib_word_emb": 6,
    },
}


def toy_teacher_args(**changes: Any) -> ModelArgs:
    """The 4-layer teacher, h 24."""
    return toy_model_args(**({"num_layers": 4, "hidden_size": 24} | changes))


def toy_glm(
    args: ModelArgs | None = None,
    *,
    seed: int = 0,
    parallel_output: bool = True,
    output_predict: bool = True,
    **changes: Any,
) -> GLMModel:
    """A GLM of `toy_model_args(**changes)` (or of `args`) with lively random weights."""
    args = args or toy_model_args(**changes)
    model = GLMModel(args, parallel_output=parallel_output, output_predict=output_predict)
    if model.vocab_map is not None and not model.word_embeddings.weight.is_meta:
        model.vocab_map.set_tables(toy_tables(seed, args.vocab_size, args.table_rows))
    return randomize(model, seed)


def toy_tables(seed: int = 0, vocab: int = VOCAB, rows: int = 24) -> dict[str, Tensor]:
    """A vocabulary map whose kept ids and substitutes are drawn."""
    generator = torch.Generator().manual_seed(seed)
    ranked = torch.randperm(vocab, generator=generator)
    position = torch.randint(0, rows, (vocab,), generator=generator)
    position[ranked[:rows]] = torch.arange(rows)
    kept = torch.zeros(vocab, dtype=torch.bool).index_fill(0, ranked[:rows], True)
    ids = torch.cat((ranked[:rows], ranked[position[ranked[rows:]]]))
    return dict(zip(TABLES, (position, kept, ids), strict=True))


def toy_teacher(*, seed: int = 1, parallel_output: bool = True, **changes: Any) -> GLMModel:
    """The 4-layer teacher, frozen and in eval mode."""
    model = toy_glm(toy_teacher_args(**changes), seed=seed, parallel_output=parallel_output)
    return model.eval().requires_grad_(False)


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every parameter, biases included; as full tensors the same for every p."""
    generator = torch.Generator().manual_seed(seed)
    rank, size = mpu.get_model_parallel_rank(), mpu.get_model_parallel_world_size()
    for name, parameter in module.named_parameters():
        partition = mpu.partition_of(parameter)
        shape = list(parameter.shape)
        if partition is not None:
            shape[partition.dim] *= size
        fan_in = shape[-1] if len(shape) > 1 and "embeddings" not in name else 4
        full = torch.randn(shape, generator=generator) / fan_in**0.5
        if "layernorm" in name and name.endswith("weight"):
            full = 1 + full / 2
        with torch.no_grad():
            parameter.copy_(mpu.split(full, partition, rank, size))
    return module


def rank_grads(module: nn.Module) -> dict[str, Tensor]:
    """Checkpoint name -> this rank's gradient; zeros for parameters without one."""
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in module.state_dict(keep_vars=True).items()
    }


def merged(ranks: list[dict[str, Tensor]], like: nn.Module) -> dict[str, Tensor]:
    """Per-rank dicts of shards -> full tensors, by the partitions of `like`'s parameters.

    Replicated tensors must agree up to rounding.
    """
    full = {}
    for name, parameter in like.state_dict(keep_vars=True).items():
        shards, partition = [tensors[name] for tensors in ranks], mpu.partition_of(parameter)
        if partition is None:
            for shard in shards[1:]:
                torch.testing.assert_close(shard, shards[0], rtol=1e-4, atol=1e-4)
            shards = shards[:1]
        full[name] = mpu.merge(shards, partition)
    return full


def toy_lm_batch(
    batch: int = 4, *, seed: int = 0, longest: int = 24, vocab: int = VOCAB, pad_to: int = 0
) -> Batch:
    """Block-LM samples of unequal length, padded to the longest (or to `pad_to`).

    Labels of the context are its tokens, of the spans their tokens and the end of piece.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = [_lm_row(generator, longest, vocab) for _ in range(batch)]
    return Batch(
        tokens=_stack([r["tokens"] for r in rows], pad_to),
        labels=_stack([r["labels"] for r in rows], pad_to),
        loss_mask=_stack([r["loss_mask"] for r in rows], pad_to).float(),
        position_ids=torch.stack(
            [_stack([r[k] for r in rows], pad_to) for k in ("positions", "blocks")], dim=1
        ),
        attention_mask=torch.tensor([r["sep"] for r in rows]),
    )


def _lm_row(generator: torch.Generator, longest: int, vocab: int) -> dict[str, Any]:
    """One sample: context with two masks, then the two spans in shuffled order."""
    spans = [_random(generator, 1, 4), _random(generator, 1, 4)]
    room = longest - sum(spans) - 2
    sep = _random(generator, max(6, room // 2), room + 1)
    context = _text(generator, sep, vocab)
    context[0] = ENC
    at = [2, sep - 2]
    context[at] = MASK
    tokens, labels = [context], [context]
    positions, blocks = [torch.arange(sep)], [torch.zeros(sep, dtype=torch.long)]
    for k in torch.randperm(2, generator=generator).tolist():
        span = _text(generator, spans[k], vocab)
        tokens.append(torch.cat((torch.tensor([SOP]), span)))
        labels.append(torch.cat((span, torch.tensor([EOP]))))
        positions.append(torch.full((spans[k] + 1,), at[k]))
        blocks.append(torch.arange(1, spans[k] + 2))
    joined = {
        "tokens": torch.cat(tokens),
        "labels": torch.cat(labels),
        "positions": torch.cat(positions),
        "blocks": torch.cat(blocks),
    }
    loss_mask = (torch.arange(len(joined["tokens"])) >= sep).long()
    return {**joined, "loss_mask": loss_mask, "sep": sep}


def toy_cloze_batch(
    batch: int = 3,
    *,
    choices: int = 2,
    multi_token: bool = True,
    seed: int = 0,
    longest: int = 20,
    vocab: int = VOCAB,
    pad_to: int = 0,
    variable: bool = False,
) -> Batch:
    """Cloze samples. Multi-token: one row a choice, answers of 1 to 3 tokens, `dec_*` set too.

    Single token: one row a sample, `choices` verbalizer ids. `variable`: the last sample has one
    real choice less; the missing one repeats choice 0 and `choice_mask` says so.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([_random(generator, 0, choices - 1) for _ in range(batch)])
    samples = [_cloze_sample(generator, choices, multi_token, longest, vocab) for _ in range(batch)]
    choice_mask = None
    if variable:
        choice_mask = torch.ones(batch, choices)
        choice_mask[-1, -1] = 0.0
        for key in ("tokens", "positions", "blocks", "targets", "scored", "answers"):
            samples[-1][key][-1] = samples[-1][key][0]
    if multi_token:
        return _multi_token_batch(samples, labels, choice_mask, pad_to)
    return Batch(
        tokens=_stack([s["tokens"][0] for s in samples], pad_to),
        position_ids=torch.stack(
            [_stack([s[k][0] for s in samples], pad_to) for k in ("positions", "blocks")], dim=1
        ),
        attention_mask=torch.tensor([s["sep"] for s in samples]),
        labels=labels,
        target_ids=torch.stack([s["verbalizers"] for s in samples]),
        logit_mask=_stack([s["scored"][0] for s in samples], pad_to),
        choice_mask=choice_mask,
    )


def _multi_token_batch(
    samples: list[dict[str, Any]], labels: Tensor, choice_mask: Tensor | None, pad_to: int
) -> Batch:
    shape = (len(samples), len(samples[0]["tokens"]))

    def rows(key: str, pad: int = pad_to) -> Tensor:
        return _stack([row for s in samples for row in s[key]], pad).unflatten(0, shape)

    def answers(key: str) -> Tensor:
        cut = [row[s["sep"] :] for s in samples for row in s[key]]
        return _stack(cut, 0).unflatten(0, shape)

    return Batch(
        tokens=rows("tokens"),
        position_ids=torch.stack((rows("positions"), rows("blocks")), dim=2),
        attention_mask=torch.tensor([[s["sep"]] * shape[1] for s in samples]),
        labels=labels,
        target_ids=rows("targets"),
        logit_mask=rows("scored"),
        choice_mask=choice_mask,
        dec_tokens=answers("tokens"),
        dec_position_ids=torch.stack((answers("positions"), answers("blocks")), dim=2),
        dec_attention_mask=torch.tensor([[s["sep"]] * shape[1] for s in samples]),
        dec_target_ids=answers("targets"),
        dec_logit_mask=answers("scored"),
    )


def _cloze_sample(
    generator: torch.Generator, choices: int, multi_token: bool, longest: int, vocab: int
) -> dict[str, Any]:
    sep = _random(generator, longest // 2, longest - 4)
    context = _text(generator, sep, vocab)
    mask_at = _random(generator, 2, sep - 1)
    context[0], context[mask_at] = ENC, MASK
    sample: dict[str, Any] = {"sep": sep, "verbalizers": _text(generator, choices, vocab)}
    for key in ("tokens", "positions", "blocks", "targets", "scored", "answers"):
        sample[key] = []
    for _ in range(choices):
        answer = _text(generator, _random(generator, 1, 3) if multi_token else 0, vocab)
        length = sep + len(answer) + 1
        after = torch.arange(length) >= sep
        sample["answers"].append(answer)
        sample["tokens"].append(torch.cat((context, torch.tensor([SOP]), answer)))
        sample["targets"].append(
            torch.cat((torch.zeros(sep, dtype=torch.long), answer, torch.tensor([EOP])))
        )
        sample["positions"].append(torch.arange(length).masked_fill(after, mask_at))
        sample["blocks"].append((torch.arange(length) - sep + 1) * after)
        sample["scored"].append(after.long())
    return sample


def _random(generator: torch.Generator, low: int, high: int) -> int:
    """An integer of [low, high]."""
    return int(torch.randint(low, high + 1, (1,), generator=generator))


def _text(generator: torch.Generator, length: int, vocab: int) -> Tensor:
    return torch.randint(TEXT, vocab, (length,), generator=generator)


def _stack(rows: list[Tensor], pad_to: int) -> Tensor:
    """Rows padded with 0 to the longest, or to `pad_to`."""
    width = max(pad_to, *(len(row) for row in rows))
    return torch.stack([nn.functional.pad(row, (0, width - len(row))) for row in rows])
