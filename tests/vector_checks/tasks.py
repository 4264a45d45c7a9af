"""Vector checks of the tasks: encodings of SuperGLUE examples, scores, tokenizers."""

import dataclasses
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config.compat import ALL, Compat
from config.data import BlockLMArgs, TokenizerArgs
from config.errors import ConfigError
from data_utils import build_tokenizer
from tasks import TASKS, task_name
from tasks.superglue import metrics
from tasks.superglue.dataset import EncodedDataset
from tasks.superglue.options import Options
from tasks.superglue.task import SuperGlueTask, make_task
from tests.vector_checks.common import NOT_IMPLEMENTED, Result, read_json

SPLITS = {"train": "train", "dev": "val", "test": "test"}
# Golden name -> field of the batch. Targets and masks are padded with 0, text with eos.
FIELDS = {
    "text": "tokens",
    "position": "position_ids",
    "mask": "attention_mask",
    "target": "target_ids",
    "logit_mask": "logit_mask",
    "dec_text": "dec_tokens",
    "dec_position": "dec_position_ids",
    "dec_mask": "dec_attention_mask",
    "dec_target": "dec_target_ids",
    "dec_logit_mask": "dec_logit_mask",
}
# Of a language model's samples: WSC without other candidates.
LM_FIELDS = {
    "text": "tokens",
    "position_id": "position_ids",
    "attention_mask": "attention_mask",
    "target": "labels",
    "loss_mask": "loss_mask",
}
# Flag of an encoding -> (option, its value from the flag's text).
FLAGS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "--multi-token": ("multi_token", lambda _: True),
    "--no-cloze": ("cloze", lambda _: False),
    "--no-block-position": ("block_position", lambda _: False),
    "--fast-decode": ("fast_decode", lambda _: True),
    "--length-penalty": ("length_penalty", float),
    "--segment-length": ("segment_length", int),
    "--loss-func": ("loss", str),
    "--adapet": ("loss", lambda _: "adapet"),
    "--wsc-negative": ("few", lambda _: False),  # the loss says it all
    "--continuous-prompt": ("prompts", lambda _: True),
    "--num-prompt-tokens": ("prompt_tokens", int),
    "--prefix-prompt": ("prefix_tokens", int),
    "--few-superglue": ("few", lambda _: True),
}
UNPADDED = {"mask", "dec_mask", "attention_mask"}


def check_encodings(case: Path) -> list[Result]:
    """One result a file of the case."""
    results = []
    for path in sorted(case.glob("*.json")):
        part = f"{case.name}/{path.stem}"
        if path.stem == "args":
            continue
        if path.stem == "tokenizers":
            from tests.vector_checks.data import check_tokenizers

            results += check_tokenizers(case)
        elif path.stem == "other_glue_patterns":
            results += _check_patterns(part, read_json(case, path.name))
        elif path.stem == "record_collate":
            results.append(_check_collate(part, read_json(case, path.name)))
        elif not _known(path.stem):
            results.append(Result(part, NOT_IMPLEMENTED, message="a task of a later issue"))
        else:
            results.append(_check_task(part, read_json(case, path.name)))
    return results


def check_metrics(case: Path) -> list[Result]:
    """Scores of CB, MultiRC and ReCoRD on made-up predictions."""
    expected, result = read_json(case, "expected.json"), Result(case.name)
    for k, x in enumerate(expected.get("cb", [])):
        actual = metrics.accuracy(x["predictions"], x["labels"])
        result.values(f"cb {k} accuracy", actual, x["accuracy"])
        actual = metrics.f1_macro(x["predictions"], x["labels"])
        result.values(f"cb {k} f1", actual, x["f1_macro"])
    for k, x in enumerate(expected.get("multirc", [])):
        actual = metrics.multirc(x["predictions"], x["labels"], x["question_idx"])
        for name in ("em", "f1a", "acc"):
            result.values(f"multirc {k} {name}", actual[name], x[name])
    queries = expected.get("record_examples", [])
    candidates, answers = [q["candidates"] for q in queries], [q["answers"] for q in queries]
    for k, x in enumerate(expected.get("record", [])):
        actual = metrics.record(x["predictions"], candidates, answers)
        for name in ("em", "f1"):
            result.values(f"record {k} {name}", actual[name], x[name])
    known = {"cb", "multirc", "record", "record_examples"}
    if set(expected) - known:
        result.fail(f"no check for {sorted(set(expected) - known)}")
    return [result]


def _check_task(part: str, golden: dict[str, Any]) -> Result:
    result = Result(part)
    for encoding in golden["encodings"]:
        if "crash" in encoding:
            _check_crash(result, golden, encoding)
            continue
        label = " ".join(
            str(encoding[k])
            for k in ("tokenizer", "pattern_id", "seq_length", "split", "extra_flags")
        )
        with tempfile.TemporaryDirectory() as folder:
            task = _task(golden, encoding, folder)
            if task is None:
                result.fail(f"{label}: flags not supported")
                continue
            _compare(result, label, task, encoding)
    return result


def _check_crash(result: Result, golden: dict[str, Any], encoding: dict[str, Any]) -> None:
    """Where the seed raises, we raise too, with a message for people."""
    name, tokenizer, pattern, length, split = encoding["args"]
    asked = {
        "task": name,
        "tokenizer": tokenizer,
        "pattern_id": int(pattern),
        "seq_length": int(length),
        "split": split,
        "extra_flags": encoding["extra"],
    }
    with tempfile.TemporaryDirectory() as folder:
        try:
            _task(golden, asked, folder)
        except ConfigError:
            return
    result.fail(f"{encoding['args']}: no error, the seed has {encoding['crash']}")


def _task(golden: dict[str, Any], encoding: dict[str, Any], folder: str) -> SuperGlueTask | None:
    """The task that the encoding asks for, its files in `folder`; None for unknown flags."""
    options: dict[str, Any] = {
        "seq_length": encoding["seq_length"],
        "data_dir": folder,
        "w14": "W14" in Compat.parse(ALL),
    }
    for flag in encoding["extra_flags"]:
        spelling, _, value = flag.partition("=")
        if spelling not in FLAGS:
            return None
        option, kind = FLAGS[spelling]
        options[option] = kind(value)
    name = task_name(encoding["task"])
    tokenizer = tokenizer_of(encoding["tokenizer"])
    task = make_task(TASKS[name], name, encoding["pattern_id"], tokenizer, Options(**options))
    text = "\n".join(golden["file_lines"]) + "\n"
    file = task.pvp.files_of(SPLITS[encoding["split"]])[0]
    (Path(folder) / file).write_text(text, encoding="utf-8")
    return task


def _compare(result: Result, label: str, task: SuperGlueTask, encoding: dict[str, Any]) -> None:
    dataset = task.dataset(SPLITS[encoding["split"]])
    result.exact(f"{label} labels", list(task.pvp.labels), [str(x) for x in encoding["labels"]])
    multi = encoding.get("is_multi_token")
    if multi is not None:
        result.exact(f"{label} is_multi_token", task.multi_token, multi)
    result.exact(f"{label} num_truncated", dataset.num_truncated, encoding["num_truncated"])
    result.exact(f"{label} examples", len(dataset), len(encoding["examples"]))
    for i, example in enumerate(encoding["examples"][: len(dataset)]):
        actual = golden_sample(task, dataset, i, example["sample"])
        for key, expected in example["sample"].items():
            result.exact(f"{label} {example['guid']} {key}", actual.get(key), expected)
        extra = set(actual) - set(example["sample"])
        if extra:
            result.fail(f"{label} {example['guid']}: fields {sorted(extra)} more than expected")


def _check_collate(part: str, golden: dict[str, Any]) -> Result:
    """All examples in one batch: choices are filled up, or brought to a fixed number."""
    result = Result(part)
    options = {"task": "record", "tokenizer": "bert", "pattern_id": 0, "split": "train"}
    asked = options | {"seq_length": golden["seq_length"], "extra_flags": []}
    with tempfile.TemporaryDirectory() as folder:
        task = _task(golden, asked, folder)
        dataset = task.dataset("train")
    samples = [dataset[i] for i in range(len(dataset))]
    for name, expected in golden["batches"].items():
        batch = task.collate(samples)
        if fixed := re.fullmatch(r"fixed_(\d+)_with_last_label", name):
            number = int(fixed[1])
            last = [dataclasses.replace(x, label=min(x.num_choices - 1, 4)) for x in samples]
            batch = task.collator(last, number, number)
        elif name != "default":
            result.fail(f"{name}: no such batch is known")
            continue
        actual = {
            "label": batch.labels.tolist(),
            "loss_mask": batch.choice_mask.long().tolist(),
            "uid": dataset.guids,
            "prompt_pos": [[[] for _ in row] for row in batch.tokens],
        }
        for key, field in FIELDS.items():
            if key in expected:
                tensor = getattr(batch, field)
                if key not in UNPADDED:
                    tensor = _padded(tensor, _width(expected[key]), 0)
                actual[key] = tensor.tolist()
        for key, value in expected.items():
            result.exact(f"{name} {key}", actual.get(key), value)
    return result


def golden_sample(
    task: SuperGlueTask, dataset: EncodedDataset, i: int, like: dict[str, Any]
) -> dict[str, Any]:
    """Sample i as the seed makes it, padded to the lengths of `like`."""
    batch = task.collate([dataset[i]])
    eos = task.tokenizer.get_command("eos").Id
    lm = task.head.kind == "lm"
    sample: dict[str, Any] = {"label": int(dataset[i].label), "uid": dataset.guids[i]}
    if batch.segments is not None:
        sample["segment_id"] = batch.segments[0].argmax(0).tolist()
    for key, name in (LM_FIELDS if lm else FIELDS).items():
        tensor = getattr(batch, name)
        if tensor is None:
            continue
        tensor = tensor[0].long()
        if key not in UNPADDED and key in like:
            width = len(torch.tensor(like[key]).reshape(-1, _last(like[key]))[0])
            tensor = _padded(tensor, width, eos if key.endswith("text") else 0)
        sample[key] = tensor.clamp(min=0).tolist()
    if "prompt_pos" in like:
        rows = batch.tokens[0].reshape(-1, batch.tokens.size(-1)) < 0
        places = [row.nonzero().squeeze(1).tolist() for row in rows]
        several = task.multi_token and not lm and batch.tokens.dim() == 3
        sample["prompt_pos"] = places if several else places[0]
    return sample


def _width(nested: list) -> int:
    """Length of the innermost lists."""
    return torch.tensor(nested).shape[-1]


def _last(nested: list) -> int:
    while isinstance(nested[0], list):
        nested = nested[0]
    return len(nested)


def _padded(tensor: Tensor, width: int, value: int) -> Tensor:
    return torch.nn.functional.pad(tensor, (0, max(0, width - tensor.shape[-1])), value=value)


def _check_patterns(part: str, golden: list[dict[str, Any]]) -> list[Result]:
    """Patterns of further tasks, each on one pair of texts; a result a task, one for the others."""
    results: dict[str, Result] = {}
    missing = set()
    for x in golden:
        if not _known(x["task"]):
            missing.add(x["task"])
            continue
        result = results.setdefault(x["task"], Result(f"{part}/{x['task']}"))
        name = task_name(x["task"])
        pvp = TASKS[name](name, x["pattern_id"])
        texts = (x["text_a"], x["text_b"])[: len(pvp.fields)]
        line = {names[0]: text for names, text in zip(pvp.fields, texts, strict=True)}
        line |= {pvp.label_fields[0]: x["label"], "idx": 0}
        file = {"file_lines": [json.dumps(line)]}
        asked = x | {"split": "train", "extra_flags": []}
        with tempfile.TemporaryDirectory() as folder:
            task = _task(file, asked, folder)
            dataset = task.dataset("train")
            actual = golden_sample(task, dataset, 0, x["sample"])
        actual["uid"] = x["sample"]["uid"]  # made up by the recorder
        result.exact(f"{x['task']} {x['pattern_id']}", actual, x["sample"])
        result.exact(f"{x['task']} labels", list(task.pvp.labels), [str(y) for y in x["labels"]])
    if missing:
        message = f"tasks of a later issue: {', '.join(sorted(missing))}"
        return [*results.values(), Result(part, NOT_IMPLEMENTED, message=message)]
    return list(results.values())


def _known(name: str) -> bool:
    try:
        return bool(task_name(name))
    except ConfigError:
        return False


_TOKENIZERS: dict[str, Any] = {}


def tokenizer_of(name: str) -> Any:
    """The recorder's `bert` or `gpt2`."""
    if name not in _TOKENIZERS:
        kinds = {
            "bert": ("BertWordPieceTokenizer", "bert-base-uncased"),
            "gpt2": ("GPT2BPETokenizer", None),
        }
        kind, model = kinds[name]
        args = TokenizerArgs(tokenizer_type=kind, tokenizer_model_type=model)
        _TOKENIZERS[name] = build_tokenizer(args, BlockLMArgs(block_lm=True))
    return _TOKENIZERS[name]


CHECKS: dict[str, Callable[[Path], list[Result]]] = {
    "superglue_encodings*": check_encodings,
    "metrics*": check_metrics,
}
