"""What a checkpoint's config.json names, architecture and vocabulary, need not be repeated."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from config.data import TokenizerArgs
from config.errors import ConfigError
from config.parser import read_json

TRACKER = "latest_checkpointed_iteration.txt"
FILE = "config.json"
NO_PATH = TokenizerArgs().tokenizer_path
VOCABULARY = "vocab.txt"  # a run's own copy of --tokenizer-path

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
    """Student, tokenizer and teachers, with the saved value of every such flag not given.

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
        changed["tokenizer"] = _merge_tokenizer(values["tokenizer"], source, path, flags)
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


def saved_tokenizer(path: str | Path, source: str) -> dict[str, Any]:
    """Fields of TokenizerArgs with which a checkpoint was trained; {} where it does not say.

    The path is that of the run's own copy of the vocabulary, if it has one.
    """
    file = saved_config(path)
    fields = TokenizerArgs.flags().values()
    saved = read_json(file, source).get("tokenizer", {}) if file is not None else {}
    found = {f.name: saved[f.name] for f in fields if f.name in saved}
    if found.get("tokenizer_path", NO_PATH) != NO_PATH:
        copy = run_folder(path) / VOCABULARY
        found["tokenizer_path"] = str(copy) if copy.is_file() else found["tokenizer_path"]
    return found


def _merge_tokenizer(
    group: TokenizerArgs, source: str, path: str, flags: Mapping[str, Any]
) -> TokenizerArgs:
    """The saved value of every flag not given; a vocabulary that is given wins as a whole."""
    saved = saved_tokenizer(path, source)
    given = {f.name for flag, f in TokenizerArgs.flags().items() if flag in flags}
    other_kind = "tokenizer_type" in given and group.tokenizer_type != saved.get("tokenizer_type")
    if other_kind or given & {"tokenizer_path", "tokenizer_model_type"}:
        given |= {"tokenizer_path", "tokenizer_model_type"}
    if _is_the_recorded_one(group.tokenizer_path, source, path):
        given.discard("tokenizer_path")
    return replace(group, **{name: v for name, v in saved.items() if name not in given})


def _is_the_recorded_one(given: str, source: str, path: str) -> bool:
    """Whether a given vocabulary is that of the run, of which its copy is to be read.

    So on resuming with --args_file, and where the original has been moved.
    """
    file = saved_config(path)
    if file is None or given == NO_PATH:
        return False
    saved = read_json(file, source)
    recorded = (
        saved.get("tokenizer", {}).get("tokenizer_path"),
        saved.get("flags", {}).get("--tokenizer-path"),
    )
    return given in recorded and (source == "--load" or not Path(given).expanduser().exists())


#: What may differ on resuming without a word: names, paths, what is told; and what others tell.
FREE = frozenset(
    ("experiment_name", "log_interval", "summary_dir", "custom_no_summary_writer")
    + ("resume_dataloader", "batch_size", "gradient_accumulation_steps", "max_bad_steps")
    + ("data_dir", "cache_dir", "num_workers", "shuffle", "no_lazy_loader", "vocab_size")
    + ("tokenizer_path", "tokenizer_model_type", "load_pretrained", "custom_tmp_result")
)
COMPARED = (
    *("model", "tokenizer", "data", "blocks", "train", "optim", "precision", "evaluation"),
    *("finetuning", "distill", "method"),
)
MAY_GROW = frozenset({"train_iters", "epochs"})


def changes(run: Any, saved: Mapping[str, Any]) -> list[str]:
    """`--lr: was 0.001, now 0.1` for every setting in which a resumed run (RunArgs) differs."""
    now = run.to_dict()
    pairs = [(getattr(run, key), saved.get(key, {}), now[key]) for key in COMPARED]
    pairs += zip(run.teachers, saved.get("teachers", ()), now["teachers"], strict=False)
    mixed = saved.get("mixed", {})
    pairs += [(run.mixed[k], mixed.get(k, {}), now["mixed"][k]) for k in run.mixed]
    found = []
    for group, before, after in pairs:
        for flag, f in group.flags().items():
            if f.name in FREE or f.name not in before or before[f.name] == after[f.name]:
                continue
            was, value = before[f.name], after[f.name]
            if f.name in MAY_GROW and None not in (was, value) and value > was:
                continue
            found.append(f"{flag}: was {was}, now {value}")
    return found
