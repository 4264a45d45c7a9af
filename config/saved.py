"""What a checkpoint's config.json names, architecture and vocabulary, need not be repeated."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from config.data import TokenizerArgs
from config.distill import TeacherArgs
from config.errors import ConfigError
from config.parser import read_json
from config.teachers import MultiTeacherArgs

TRACKER = "latest_checkpointed_iteration.txt"
FILE = "config.json"
NO_PATH = TokenizerArgs().tokenizer_path
VOCABULARY = "vocab.txt"  # a run's own copy of --tokenizer-path
VOCABULARY_FOLDER = "vocabulary"  # likewise, of tokenizers of other kinds

#: Fields of ModelArgs that decide into which model a checkpoint fits.
ARCHITECTURE = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "max_position_embeddings",
    "make_vocab_size_divisible_by",
    "block_position_encoding",
    "transformer_xl",
    "compress_word_emb",
    "cross_layer_parameter_sharing",
    "inverted_bottleneck_mode",
    "ib_hidden_size",
    "ib_ffn_num",
    "ib_word_emb",
    "map_vocab_size",
    "unmap_vocab_output",
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
        saved = _content(path, source).get("model", {})
        spelling = {f.name: name for name, f in values["model"].flags().items()}
        flag_of = {name: spelling.get(name) for name in ARCHITECTURE}
        changed["model"] = _merge(values["model"], saved, flag_of, path, flags, problems)
        changed["tokenizer"] = _merge_tokenizer(values["tokenizer"], source, path, flags)
    changed["teachers"] = _merge_teachers(values, flags, problems)
    if problems:
        raise ConfigError(problems)
    return changed


def _content(path: str, source: str) -> dict[str, Any]:
    """config.json of a checkpoint; {} without one."""
    file = saved_config(path)
    return {} if file is None else read_json(file, source)


def _merge_teachers(
    values: Mapping[str, Any], flags: Mapping[str, Any], problems: list[str]
) -> tuple[TeacherArgs, ...]:
    """Each teacher as its checkpoint has it, or as the student's that was saved with them.

    Where no list says how many they are, the latter does.
    """
    group: MultiTeacherArgs = values["multi_teacher"]
    teachers, joint = values["teachers"], group.mt_load_from_s
    theirs = _content(joint, "--mt_load_from_s").get("teachers", []) if joint else []
    if len(teachers) == 1 and len(theirs) > 1:
        teachers *= len(theirs)
    merged = []
    for t_no, teacher in enumerate(teachers):
        path, saved = joint or teacher.load_pretrained, {}
        if joint:
            saved = theirs[t_no] if t_no < len(theirs) else {}
        elif path is not None and not teacher.random_para:
            saved = _content(path, group.flag_of(t_no, "load_pretrained")).get("model", {})
        flag_of = {name: group.flag_of(t_no, name) for name in ARCHITECTURE}
        merged.append(_merge(teacher, saved, flag_of, path, flags, problems))
    return tuple(merged)


def _merge(
    group: Any,
    saved: Mapping[str, Any],
    flag_of: Mapping[str, str | None],
    path: str | None,
    flags: Mapping[str, Any],
    problems: list[str],
) -> Any:
    """The group with the saved value of every field whose flag was not given."""
    unseen = ["num_attention_heads"]
    unseen += ["num_layers"] if saved.get("cross_layer_parameter_sharing") else []
    new = {}
    for name, flag in flag_of.items():
        if name not in saved or not hasattr(group, name):
            continue
        listed = flag is not None and flag.startswith("--mt_")
        if flag not in flags and not listed:
            new[name] = saved[name]
        elif name in unseen and getattr(group, name) != saved[name]:
            problems.append(
                f"{flag}={getattr(group, name)}: the checkpoint {path} has {saved[name]}"
            )
    return replace(group, **new)


def saved_tokenizer(path: str | Path, source: str) -> dict[str, Any]:
    """Fields of TokenizerArgs with which a checkpoint was trained; {} where it does not say.

    The path is that of the run's own copy of the vocabulary, if it has one.
    """
    file = saved_config(path)
    saved = read_json(file, source).get("tokenizer", {}) if file is not None else {}
    found = {f.name: saved[f.name] for f in fields(TokenizerArgs) if f.name in saved}
    if found.get("tokenizer_path", NO_PATH) != NO_PATH:
        copies = (run_folder(path) / name for name in (VOCABULARY, VOCABULARY_FOLDER))
        copy = next((c for c in copies if c.exists()), found["tokenizer_path"])
        found["tokenizer_path"] = str(copy)
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
    + ("mt_model_load", "mt_load_from_s", "teacher_offload")
    + ("map_vocab_size",)  # the word table's shape tells; how a map was built, the map
    + tuple("student_" + name for name in ("build_map_vocab", "map_vocab_tn"))
    + tuple("student_map_vocab_" + name for name in ("method", "ranking"))
    + ("teacher_zero_stage",)
    + tuple("mt_" + f.name for f in fields(TeacherArgs))  # compared teacher by teacher
)
COMPARED = (
    *("model", "tokenizer", "data", "blocks", "train", "optim", "precision", "evaluation"),
    *("finetuning", "text", "distill", "method", "multi_teacher", "combiner"),
)
MAY_GROW = frozenset({"train_iters", "epochs"})


def changes(run: Any, saved: Mapping[str, Any]) -> list[str]:
    """`--lr: was 0.001, now 0.1` for every setting in which a resumed run (RunArgs) differs."""
    now = run.to_dict()
    found = []
    for key in COMPARED:
        found += _changes(getattr(run, key), saved.get(key, {}), now[key])
    for key in ("mixed", "combined"):
        before = saved.get(key, {})
        for name, group in getattr(run, key).items():
            found += _changes(group, before.get(name, {}), now[key][name])
    teachers = saved.get("teachers", ())
    for t_no, pair in enumerate(zip(teachers, now["teachers"], strict=False)):
        for line in _changes(run.teachers[t_no], *pair):
            found.append(run.multi_teacher.in_its_flags(t_no, line))
    if teachers and run.teachers and len(teachers) != len(run.teachers):
        found.append(f"--mt_ lists: were {len(teachers)} teachers, now {len(run.teachers)}")
    return found


def _changes(group: Any, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for flag, f in group.flags().items():
        if f.name in FREE or f.name not in before or before[f.name] == after[f.name]:
            continue
        was, value = before[f.name], after[f.name]
        if f.name in MAY_GROW and None not in (was, value) and value > was:
            continue
        yield f"{flag}: was {was}, now {value}"
