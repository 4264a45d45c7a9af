"""The architecture that a checkpoint's config.json names: its flags need not be repeated."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from config.errors import ConfigError
from config.parser import read_json

TRACKER = "latest_checkpointed_iteration.txt"
FILE = "config.json"

#: Fields of ModelArgs that decide into which model a checkpoint fits.
ARCHITECTURE = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "max_position_embeddings",
    "make_vocab_size_divisible_by",
    "block_position_encoding",
    "compress_word_emb",
    "cross_layer_parameter_sharing",
    "inverted_bottleneck_mode",
    "ib_hidden_size",
    "ib_ffn_num",
    "ib_word_emb",
)


def run_folder(path: str | Path) -> Path:
    """The folder of the run to which a checkpoint path belongs; the path may be a tag's folder."""
    path = Path(path)
    in_parent = not (path / TRACKER).is_file() and (path.parent / TRACKER).is_file()
    return path.parent if in_parent else path


def saved_config(path: str | Path) -> Path | None:
    """config.json of a checkpoint: in the tag's folder, else in the run's folder."""
    path = Path(path)
    folders = [path, path.parent] if run_folder(path) != path else [path]
    tracker = path / TRACKER
    if tracker.is_file():
        folders.insert(0, path / tracker.read_text(encoding="utf-8").strip())
    return next((f / FILE for f in folders if (f / FILE).is_file()), None)


def take_architecture(values: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Student and teachers, with the saved value of every architecture flag not given.

    ConfigError where a flag and the checkpoint differ in a number that no tensor's shape shows:
    that of heads, and of layers with the same weights.
    """
    problems: list[str] = []
    checkpoint = values["checkpoint"]
    changed: dict[str, Any] = {}
    source = "--load" if checkpoint.load else "--load-pretrained"
    path = checkpoint.load or checkpoint.load_pretrained
    if path is not None:
        changed["model"] = _merge(values["model"], source, path, flags, problems)
    changed["teachers"] = tuple(
        _merge(t, "--teacher_load_pretrained", t.load_pretrained, flags, problems)
        if t.load_pretrained is not None and not t.random_para
        else t
        for t in values["teachers"]
    )
    if problems:
        raise ConfigError(problems)
    return changed


def _merge(
    group: Any, source: str, path: str, flags: Mapping[str, Any], problems: list[str]
) -> Any:
    file = saved_config(path)
    if file is None:
        return group
    saved = read_json(file, source).get("model", {})
    spelling = {f.name: name for name, f in group.flags().items()}
    unseen = ["num_attention_heads"]
    unseen += ["num_layers"] if saved.get("cross_layer_parameter_sharing") else []
    new = {}
    for name in ARCHITECTURE:
        if name not in saved or not hasattr(group, name):
            continue
        flag = spelling.get(name)
        if flag not in flags:
            new[name] = saved[name]
        elif name in unseen and flags[flag] != saved[name]:
            problems.append(f"{flag}={flags[flag]}: the checkpoint {path} has {saved[name]}")
    return replace(group, **new)
