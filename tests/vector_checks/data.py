"""Vectors of the data path: block-LM samples and tokenizers."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from config.data import BlockLMArgs, TokenizerArgs
from data_utils.block import BlockSample, SpecialIds, assemble, collate, continue_text
from data_utils.build_tokenizer import build_tokenizer
from data_utils.tokenization import Tokenizer
from tests.vector_checks.common import NOT_IMPLEMENTED, Result, read_json

SENTINEL = re.compile(r"(MASK|sop)\d+")
KIND_OF_TASK = {"bert": "bert", "generation": "gpt", "gap_sentence": "sentence"}
KIND_OF_MODE = {"bert": "bert", "sentence": "sentence", "gpt": "gpt"}
EXAMPLE = {"tokens", "spans", "out", "task", "task_mask", "block_position_encoding"}
COLLATED = {"mode", "sample_lengths", "batch", "task_mask", "block_position_encoding"}
SWITCHES = ("--task-mask", "--fix-command-token", "--sentinel-token", "--block-lm")
VALUES = ("--block-mask-prob", "--context-mask-ratio", "--max-position-embeddings")
TOKENIZERS = {
    "bert": "BertWordPieceTokenizer",
    "gpt2": "GPT2BPETokenizer",
    "chinese": "ChineseSPTokenizer",
}


def check_block_data(case: Path) -> list[Result]:
    """`block_lm_data`: given spans exactly; drawn batches by putting their spans back."""
    args, expected = read_json(case, "args.json"), read_json(case, "expected.json")
    given = args["special_ids"]
    result = Result(case.name)
    examples, batches = expected.get("make_block_data", []), expected.get("collated", [])
    unknown = [sorted(set(e) - EXAMPLE) for e in examples] + [
        sorted(set(e) - COLLATED) for e in batches
    ]
    if any(unknown):
        result.status, result.message = NOT_IMPLEMENTED, f"examples with {max(unknown)}"
        return [result]
    for number, example in enumerate(examples):
        sample = assemble(
            example["tokens"],
            sorted((first, end) for first, end in example["spans"]),
            _ids(given, bool(example.get("task_mask"))),
            kind=KIND_OF_TASK[example.get("task", "bert")],
            block_position=example.get("block_position_encoding", True),
        )
        _compare(result, f"make_block_data {number}", _sample(sample), example["out"])
    for number, example in enumerate(batches):
        _check_batch(result, f"collated {number} ({example['mode']})", example, given)
    return [result]


def _ids(given: dict[str, int], task_mask: bool) -> SpecialIds:
    names = ("eos", "ENC", "MASK", "sop", "eop", *(("gMASK", "sMASK") if task_mask else ()))
    return SpecialIds(*(given[name] for name in names))


def _check_batch(result: Result, what: str, example: dict[str, Any], given: dict[str, int]) -> None:
    """A drawn batch: its samples and spans are read off, and lead to the same batch."""
    rows, samples = _rows(example["batch"]), []
    own_masks = {given["gMASK"], given["sMASK"]}
    task_mask = any(own_masks & set(row["text"]) for row in rows)
    ids, kind = _ids(given, task_mask), KIND_OF_MODE[example["mode"]]
    with_blocks = example.get("block_position_encoding", True)
    for length, row in zip(example["sample_lengths"], rows, strict=True):
        if kind == "gpt" and row["target"][-1] != ids.eop:  # the rest of the sample
            tokens = [*row["text"][: row["sep"] - 1], *row["target"][row["sep"] :]]
            loss = row["loss_mask"][row["sep"] :]
            mask = [0] * (len(tokens) - len(loss)) + [int(x) for x in loss]
            sample = continue_text(tokens, len(loss), ids, mask, block_position=with_blocks)
        else:
            tokens, spans = restore(row, ids)
            sample = assemble(tokens, spans, ids, kind=kind, block_position=with_blocks)
        result.exact(f"{what}: tokens of a sample", len(tokens), length)
        samples.append(sample)
    _compare(result, what, _batch(samples), example["batch"])


def restore(row: dict[str, Any], ids: SpecialIds) -> tuple[list[int], list[tuple[int, int]]]:
    """The sample before corruption, and its spans in the order of the target part."""
    sep, end = row["sep"], len(row["text"])
    starts = [i for i in range(sep, end) if row["text"][i] == ids.sop] + [end]
    pieces = [
        (row["position"][a], row["text"][a + 1 : b])
        for a, b in zip(starts, starts[1:], strict=False)
    ]
    tokens, places = [], {}
    by_mask = dict(pieces)
    for position, token in enumerate(row["text"][:sep]):
        piece = by_mask.get(position, [token])
        places[position] = (len(tokens), len(tokens) + len(piece))
        tokens += piece
    return tokens, [places[position] for position, _ in pieces]


def _rows(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of a padded batch, without their padding."""
    rows = []
    for i, sep in enumerate(batch["attention_mask"]):
        # The blank's tokens have its position, which is not that of padding.
        after = (j + 1 for j, p in enumerate(batch["position_id"][i][0]) if p)
        end = max([sep, *after])
        row = {name: batch[name][i][:end] for name in ("text", "target", "loss_mask")}
        rows.append(row | {"position": batch["position_id"][i][0][:end], "sep": sep})
    return rows


def _sample(sample: BlockSample) -> dict[str, Any]:
    return {
        "text": sample.text,
        "target": sample.target,
        "loss_mask": sample.loss,
        "position_id": [sample.position, sample.block_position],
        "sep": sample.sep,
    }


def _batch(samples: Sequence[BlockSample]) -> dict[str, Any]:
    batch = collate(samples)
    assert batch.loss_mask is not None
    return {
        "text": batch.tokens.tolist(),
        "target": batch.labels.tolist(),
        "loss_mask": batch.loss_mask.int().tolist(),
        "position_id": batch.position_ids.tolist(),
        "attention_mask": batch.attention_mask.tolist(),
    }


def _compare(result: Result, what: str, actual: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        if name not in actual:
            result.fail(f"{what}: {name} is not compared")
        else:
            result.exact(f"{what}: {name}", actual[name], value)


def check_tokenizers(case: Path) -> list[Result]:
    """`superglue_encodings/tokenizers/<configuration>`: ids, texts, verbalizers, sizes."""
    path = case / "tokenizers.json"
    configurations = json.loads(path.read_text(encoding="utf-8"))
    return [
        _check_tokenizer(f"{case.name}/tokenizers/{name.replace(' ', '_')}", name, expected)
        for name, expected in configurations.items()
    ]


def _check_tokenizer(part: str, configuration: str, expected: dict[str, Any]) -> Result:
    result = Result(part)
    tokenizer = _tokenizer(configuration.split())
    if tokenizer is None:
        result.status, result.message = NOT_IMPLEMENTED, "an option that is not built"
        return result
    for name, number in expected["commands"].items():
        result.exact(f"id of {name}", tokenizer.get_command(name).Id, number)
    # Of sentinels only the first ones are recorded; the number of tokens counts them all.
    others = [name for name in tokenizer.commands if name not in expected["commands"]]
    result.exact("further commands", [n for n in others if not SENTINEL.fullmatch(n)], [])
    result.exact("number of tokens", tokenizer.num_tokens, expected["num_tokens"])
    result.exact("padded size", tokenizer.padded_size(), expected["padded_vocab_size"])
    if "eod_token" in expected:
        result.exact("eos", tokenizer.get_command("eos").Id, expected["eod_token"])
    encodings = expected.get("encodings", [])
    batch = tokenizer.encode_batch([e["text"] for e in encodings])
    flat, lengths = tokenizer.encode_arrays([e["text"] for e in encodings])
    result.exact("encode_arrays", flat.tolist(), [i for e in encodings for i in e["ids"]])
    result.exact("encode_arrays: lengths", lengths.tolist(), [len(e["ids"]) for e in encodings])
    for encoding, ids in zip(encodings, batch, strict=True):
        what = repr(encoding["text"][:40])
        result.exact(what, tokenizer.encode(encoding["text"]), encoding["ids"])
        result.exact(f"{what} in a batch", ids, encoding["ids"])
        result.exact(f"{what} decoded", tokenizer.decode(ids), encoding["decoded"])
    for word, number in expected.get("token_to_id", {}).items():
        result.exact(f"verbalizer {word!r}", _verbalizer(tokenizer, word), _crash(number))
    return result


def _tokenizer(words: list[str]) -> Tokenizer | None:
    """The tokenizer of `bert --task-mask ...`; None for one that is not built."""
    switches = {word for word in words[1:] if "=" not in word}
    values = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    if (
        words[0] not in TOKENIZERS
        or not switches <= set(SWITCHES)
        or not set(values) <= set(VALUES)
    ):
        return None
    args = TokenizerArgs(
        tokenizer_type=TOKENIZERS[words[0]],
        task_mask="--task-mask" in switches,
        fix_command_token="--fix-command-token" in switches,
    )
    blocks = BlockLMArgs(
        sentinel_token="--sentinel-token" in switches,
        block_mask_prob=float(values.get("--block-mask-prob", 0)),
        context_mask_ratio=float(values.get("--context-mask-ratio", 0)),
    )
    return build_tokenizer(args, blocks, int(values.get("--max-position-embeddings", 512)))


def _verbalizer(tokenizer: Tokenizer, word: str) -> int | str:
    """As the seed looks it up (W14); "crash" where it has no such token."""
    try:
        return tokenizer.token_id(word, stripped=True)
    except ValueError:
        return "crash"


def _crash(number: int | str) -> int | str:
    return "crash" if isinstance(number, str) else number


CHECKS: dict[str, Callable[[Path], list[Result]]] = {"block_lm_data*": check_block_data}
