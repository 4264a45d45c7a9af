"""Checks of the model: forward, captures, heads, parameter groups."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config.model import ModelArgs
from model.build import HeadSpec, add_head, parameter_groups
from model.glm import GLMModel
from model.vocab_map import PREFIX
from mpu import hook_model
from tests.vector_checks.common import FAILED, NOT_IMPLEMENTED, OK, Result, read_json, read_tensors

# The seed's constructor arguments -> fields of ModelArgs. Others are of work not done yet.
FIELDS = {
    "vocab_size": "vocab_size",
    "embedding_dropout_prob": "hidden_dropout",
    "output_dropout_prob": "hidden_dropout",
    "attention_dropout_prob": "attention_dropout",
    "max_sequence_length": "max_position_embeddings",
    "max_memory_length": "mem_length",
    "checkpoint_activations": "checkpoint_activations",
    "checkpoint_num_layers": "checkpoint_num_layers",
    "block_position_encoding": "block_position_encoding",
    "num_layers": "num_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "attention_scale": "attention_scale",
    "compress_word_emb": "compress_word_emb",
    "cross_layer_parameter_sharing": "cross_layer_parameter_sharing",
    "ib_mode": "inverted_bottleneck_mode",
    "ib_hidden_size": "ib_hidden_size",
    "ib_ffn_num": "ib_ffn_num",
    "ib_word_emb": "ib_word_emb",
    "map_vocab_size": "map_vocab_size",
    "unmap_vocab_output": "unmap_vocab_output",
}
TABLES = "map_vocab."  # the seed's maps are no part of its weights
OURS = ("parallel_output", "output_predict")  # arguments of GLMModel
ANSWERS = ("text", "position", "mask", "target", "logit_mask")


class _LaterError(Exception):
    """The case needs an option of later work."""


def _model(case: Path, **changes: Any) -> GLMModel:
    """The GLM of a forward case with its weights, in eval mode."""
    given = read_json(case, "args.json")["model_kwargs"]
    unknown = {k: v for k, v in given.items() if k not in FIELDS and k not in OURS and v}
    if unknown:
        raise _LaterError(f"needs {', '.join(unknown)}")
    options = {k: v for k, v in given.items() if k in OURS} | changes
    args = ModelArgs(**{FIELDS[k]: v for k, v in given.items() if k in FIELDS})
    model = GLMModel(args, **options)
    weights = read_tensors(case, "student.safetensors")
    model.load_state_dict(weights | map_tables(case))
    return model.eval()


def map_tables(case: Path) -> dict[str, Tensor]:
    """The tables of a case's vocabulary map, by the names that we save them under."""
    inputs = (
        read_tensors(case, "inputs.safetensors") if (case / "inputs.safetensors").exists() else {}
    )
    tables = {k.removeprefix(TABLES): v for k, v in inputs.items() if k.startswith(TABLES)}
    return {PREFIX + name: t.bool() if "mask" in name else t for name, t in tables.items()}


def _check(case: Path, compare: Callable[[Path, Result], None]) -> list[Result]:
    result = Result(case.name)
    try:
        with torch.no_grad():
            compare(case, result)
    except _LaterError as reason:
        result = Result(case.name, NOT_IMPLEMENTED, message=str(reason))
    return [result]


def _compare_forward(case: Path, result: Result) -> None:
    inputs = read_tensors(case, "inputs.safetensors")
    ids = inputs["text"]
    positions = inputs["position_ids" if "position_ids" in inputs else "position_id"]
    model = _model(case)
    for name, expected in read_tensors(case, "expected.safetensors").items():
        if name == "map_input_to_ids_external":  # labels of what the model predicts
            labels = inputs["target"]
            labels = labels if model.label_map is None else model.label_map(labels)
            result.exact(name, labels, expected)
            continue
        if name == "word_embeddings_before_map":
            rows = model.vocab_map(torch.arange(len(expected)))
            result.values(name, model.word_embeddings(rows), expected)
            continue
        if name.startswith("mem") or name in ("logits_prefix", "logits_rest"):
            continue
        sep, rows = _separator(name, inputs, len(expected))
        chosen = _model(case, output_predict=False) if name.startswith("hidden") else model
        result.values(name, chosen(ids[:rows], positions[:rows], sep)[0], expected)


def _separator(name: str, inputs: dict[str, Tensor], rows: int) -> tuple[Tensor, int]:
    """What is given as attention mask for an expected tensor, and how many samples it has."""
    if "sep_scalar_" in name:
        return torch.tensor([int(name.rpartition("_")[2])]), rows
    key = (
        "mask_4d" if "mask_4d" in name else "sep_mixed" if "sep_mixed" in name else "attention_mask"
    )
    return inputs[key], rows


def _compare_memory(case: Path, result: Result) -> None:
    inputs = read_tensors(case, "inputs.safetensors")
    expected = read_tensors(case, "expected.safetensors")
    cut, model = read_json(case, "args.json")["cut"], _model(case)
    ids, positions = inputs["text"], inputs["position_id"]
    prefix, *mems = model(
        ids[:, :cut], positions[..., :cut], torch.tensor([cut]), return_memory=True
    )
    rest, *_ = model(ids[:, cut:], positions[..., cut:], torch.tensor([0]), *mems)
    result.values("logits_prefix", prefix, expected.pop("logits_prefix"))
    result.values("logits_rest", rest, expected.pop("logits_rest"))
    result.exact("memories", {f"mem.{i}" for i in range(len(mems))}, set(expected))
    for i, memory in enumerate(mems):
        result.values(f"mem.{i}", memory, expected[f"mem.{i}"])


def _compare_heads(case: Path, result: Result) -> None:
    given = read_tensors(case, "inputs.safetensors")
    for name, expected in read_tensors(case, "expected.safetensors").items():
        task, _, variant = name.partition(".")
        head, inputs = _head(case, given, task, variant)
        outputs = head.eval()(*inputs)
        result.values(name, outputs[1 if variant == "lm_logits" else 0], expected)


def _head(
    case: Path, given: dict[str, Tensor], task: str, variant: str
) -> tuple[Any, list[Tensor]]:
    """The head that an expected tensor (`copa.logits_lp1`, `cls.start.logits`) comes from."""
    if task.startswith("cls"):
        return _classifier(case, given, task, variant)
    inputs = [given[f"{task}.{name}"] for name in ANSWERS]
    if inputs[0].dim() == 2:
        spec = HeadSpec("single_token", take_softmax=variant.endswith("_softmax"))
        return add_head(_model(case), spec, ModelArgs()), inputs[:-1]
    penalty = float(variant.rpartition("lp")[2]) if "lp" in variant else 0.0
    head = add_head(_model(case), HeadSpec("multi_token", length_penalty=penalty), ModelArgs())
    head.take_softmax = not variant.endswith("nosoftmax")
    return head, inputs


def _classifier(
    case: Path, given: dict[str, Tensor], task: str, variant: str
) -> tuple[Any, list[Tensor]]:
    """Classes from one row a sample (rte's batch), or one class a choice (copa's)."""
    choice = task.endswith("choice")
    weights = read_tensors(case, f"classifier_head{'_choice' * choice}.safetensors")
    pool = variant.split(".")[0] if "." in variant else "cls"
    classes, width = weights["multichoice_head.weight"].shape
    spec = HeadSpec("classification", num_classes=classes, pool_token=pool)
    args = ModelArgs(hidden_size=width, num_attention_heads=1, output_dropout=0.0)
    head = add_head(_model(case, output_predict=False), spec, args)
    head.load_state_dict({**head.state_dict(), **weights})
    return head, [given[f"{'copa' if choice else 'rte'}.{name}"] for name in ANSWERS[:3]]


def _compare_hooks(case: Path, result: Result) -> None:
    expected = read_tensors(case, "expected.safetensors")
    inputs = read_tensors(case, "inputs.safetensors")
    model: Any = _model(case)
    if "logit_mask" in inputs:
        model = add_head(model, HeadSpec("multi_token"), ModelArgs()).eval()
        given = [inputs[name] for name in ANSWERS]
    else:
        given = [inputs[name] for name in ("text", "position_id", "attention_mask")]
    hook: dict = {}
    captures = [name for name in expected if name != "logits"]
    for path in map(_path, captures):
        _leaf(hook, path[:-1])[path[-1]] = None
    captured: list[Tensor] = []
    logits = hook_model(hook, captured, model, *given)[0]
    result.values("logits", logits, expected["logits"])
    for name in captures:
        path = _path(name)
        index = _leaf(hook, path[:-1])[path[-1]]
        if index is None:
            result.fail(f"{name}: not captured")
        else:
            result.values(name, captured[index], expected[name])


def _path(name: str) -> list[str | int]:
    """`transformer.layers.1.tf_output` -> its steps in the hook."""
    return [int(step) if step.isdigit() else step for step in name.split(".")]


def _leaf(hook: dict, path: Iterable[str | int]) -> dict:
    for step in path:
        hook = hook.setdefault(step, {})
    return hook


def check_parameter_groups(case: Path) -> list[Result]:
    """Names in the two groups and all shapes: the case, and a part for each kind of model."""
    whole, parts = Result(case.name), []
    for part, expected in read_json(case, "expected.json").items():
        result = Result(f"{case.name}/{part}")
        unknown = [k for k in expected["kwargs"] if k not in FIELDS]
        if unknown:
            result = Result(result.name, NOT_IMPLEMENTED, message=f"needs {', '.join(unknown)}")
        else:
            _compare_groups(expected, result)
        parts.append(result)
    worst = max(parts, key=lambda part: (OK, NOT_IMPLEMENTED, FAILED).index(part.status))
    if worst.status != OK:
        whole.status, whole.message = worst.status, f"{worst.name}: {worst.message}"
    return [whole, *parts]


def _compare_groups(expected: dict, result: Result) -> None:
    shapes = expected["shapes"]
    layers = {n.split(".")[2] for n in shapes if n.startswith("transformer.layers.")}
    rows, width = shapes["transformer.position_embeddings.weight"]
    model = GLMModel(
        ModelArgs(
            num_layers=len(layers),
            vocab_size=shapes["word_embeddings.weight"][0],
            hidden_size=width,
            num_attention_heads=1,
            max_position_embeddings=rows - 1,
            **{FIELDS[k]: v for k, v in expected["kwargs"].items()},
        )
    )
    result.exact("shapes", {n: list(t.shape) for n, t in model.state_dict().items()}, shapes)
    result.exact("order", list(model.state_dict()), list(shapes))
    names = {parameter: name for name, parameter in model.state_dict(keep_vars=True).items()}
    decayed, plain = ([names[p] for p in g["params"]] for g in parameter_groups(model, 0.1))
    result.exact("weight_decay", decayed, expected["weight_decay"])
    result.exact("no_weight_decay", plain, expected["no_weight_decay"])


def check_forward(case: Path) -> list[Result]:
    """Logits, or hidden states, for every kind of attention mask in the case."""
    return _check(case, _compare_forward)


def check_memory(case: Path) -> list[Result]:
    """A prefix remembered, then the rest."""
    return _check(case, _compare_memory)


def check_heads(case: Path) -> list[Result]:
    """Cloze and classification heads."""
    return _check(case, _compare_heads)


def check_hooks(case: Path) -> list[Result]:
    """Every capture the case names, with the outputs."""
    return _check(case, _compare_hooks)


CHECKS: dict[str, Callable[[Path], list[Result]]] = {
    "fwd_*": check_forward,
    "fwd_memory*": check_memory,
    "fwd_cloze_heads*": check_heads,
    "hooks_*": check_hooks,
    "param_groups*": check_parameter_groups,
}
