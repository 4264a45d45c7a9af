"""Checkpoints in the official layout, read from anyone, written so that a crash harms none.

    <run>/latest_checkpointed_iteration.txt      tag: a number of iterations, `best` or `release`
    <run>/best_checkpointed_iteration.txt        tag of the best weights of fine-tuning
    <run>/<tag>/mp_rank_XX_model_states.pt       {"module": state dict, "iteration": ...}
    <run>/<tag>/*optim_states.pt                 of the engine; what only resuming needs
    <run>/<tag>/text_memory_rank_XX.pt           of models that remember the text (--mem-length)
    <run>/<tag>/config.json, <run>/config.json   the architecture and every argument

`module` has GLM's bare keys, a method's own parameters under `student.`. Only `module` is needed of
a file, so that official downloads load. A tag's folder is prepared under another name and renamed;
the tracker is written last.
"""

import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

import mpu
from config import ConfigError, RunArgs
from config.data import TokenizerArgs
from config.saved import FILE as CONFIG_FILE
from config.saved import NO_PATH, TRACKER, saved_tokenizer
from distill.engine import files
from distill.engine.launch import Runtime
from distill.engine.matching import matching
from distill.engine.resuming import check_resumable
from distill.engine.shards import Shards, shard_files
from distill.engine.weights import MODEL_FILE, read_into, write_weights
from distill.engine.wrap import Engine
from model.partition import spell

log = logging.getLogger(__name__)

BEST_TRACKER = "best_checkpointed_iteration.txt"
SUFFIXES = (".pt", ".safetensors")
BEST, FINAL = "best", "final"
TEACHERS = ("--teacher_", "--mt_load_")  # flags of checkpoints that may have any number of shards


# Reading ------------------------------------------------------------------------------------------


def resolve(
    path: str | Path, *, what: str = "checkpoint", prefer_best: bool = False
) -> tuple[Path, str]:
    """(folder of the run, tag) that a path means: a run with its tracker, or a tag's own folder.

    `prefer_best`: of a fine-tuned run, the weights that were best on validation.
    """
    path = Path(path)
    for name in (BEST_TRACKER, TRACKER) if prefer_best else (TRACKER,):
        tracker = path / name
        if tracker.is_file():
            tag = tracker.read_text(encoding="utf-8").strip()
            if not tag or files.existing_folder(path / tag) is None:
                raise FileNotFoundError(f"{what}={path}: {name} names {tag!r}: no such folder")
            return path, tag
    if any((path / Path(MODEL_FILE.format(0)).with_suffix(s)).is_file() for s in SUFFIXES):
        return path.parent, path.name
    if not path.is_dir():
        raise FileNotFoundError(f"{what}={path}: no such folder")
    raise FileNotFoundError(
        f"{what}={path}: no checkpoint there, neither {TRACKER} nor {MODEL_FILE.format(0)}"
    )


def tag_folder(path: str | Path, *, what: str = "checkpoint", prefer_best: bool = False) -> Path:
    """The folder with the files of a checkpoint."""
    folder, tag = resolve(path, what=what, prefer_best=prefer_best)
    found = files.existing_folder(folder / tag)
    assert found is not None, (folder, tag)
    return found


def read_config(path: str | Path) -> dict[str, Any] | None:
    """The config.json of a checkpoint (its tag's, else its run's); None without one."""
    folder = tag_folder(path, prefer_best=True)
    file = next(
        (f for f in (folder / CONFIG_FILE, folder.parent / CONFIG_FILE) if f.is_file()), None
    )
    if file is None:
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: is not json ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: must hold one json object")
    return content


def saved_state(path: str | Path) -> dict[str, Any] | None:
    """The values of the TrainState that a checkpoint to be resumed holds; None without."""
    return files.read_tensors(tag_folder(path) / MODEL_FILE.format(0)).get("train_state")


def load_weights(
    path: str | Path, module: nn.Module, *, what: str, part: str = "", any_shards: bool = False
) -> dict[str, Any] | None:
    """Put the weights of a checkpoint into a module; returns its config.json, None without one.

    `what` names the flag in messages. Any floating type goes into the module's. Position tables
    may be shorter in the file. `part`: the module is what the file has under this prefix.
    `any_shards`: of a checkpoint of another model-parallel size every rank reads what is its own.
    ValueError: other shards than processes, a GLM parameter that is missing, unknown or of another
    shape; it names every key with both shapes.
    """
    folder = tag_folder(path, what=what, prefer_best=True)
    if not any_shards:
        _check_shards(folder, what, path)
    shards = Shards(folder, what=what)
    read_into(module, shards, matching(shards, module, what=what, part=part))
    log.info("%s: weights of %s%s", what, folder, f" ({part}*)" if part else "")
    return read_config(path)


def check_tokenizer(path: str | Path, fingerprint: str, *, what: str) -> None:
    """ConfigError if a checkpoint was trained with another vocabulary, as far as it says."""
    saved = (read_config(path) or {}).get("tokenizer_fingerprint")
    if saved is None or saved == fingerprint:
        return
    its = saved_tokenizer(path, what)
    spelling = TokenizerArgs.flags().items()
    words = [(flag, its.get(f.name)) for flag, f in spelling]
    its_flags = " ".join(
        flag if value is True else f"{flag}={value}"
        for flag, value in words
        if value not in (None, False, NO_PATH)
    )
    remedy = f"give {its_flags}" if its_flags else "give the vocabulary of the checkpoint"
    if what.startswith(("--teacher", "--mt_")):
        remedy = f"student and teachers must share one: {remedy} for both"
    elif its_flags:
        remedy += ", or leave these flags out: the checkpoint knows them"
    raise ConfigError(
        f"{what}={path}: was trained with another vocabulary (fingerprint {saved}) than this run "
        f"has ({fingerprint}); {remedy}"
    )


def check_sources(run: RunArgs, fingerprint: str) -> None:
    """Before anything is built: every checkpoint that the run names exists and has our vocabulary.

    The error names the flag; several are one ConfigError.
    """
    problems: list[Exception] = []
    for what, path in sources(run):
        try:
            folder = tag_folder(path, what=what, prefer_best=what != "--load")
            if what.startswith(TEACHERS):
                shard_files(folder, what=what)  # any number
            else:
                _check_shards(folder, what, path)
            check_tokenizer(path, fingerprint, what=what)
        except (FileNotFoundError, ValueError) as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise ConfigError(dict.fromkeys(map(str, problems)))


def sources(run: RunArgs) -> list[tuple[str, str]]:
    """(flag, path) of every checkpoint that the run reads."""
    found = [
        ("--load", run.checkpoint.load),
        ("--load-pretrained", run.checkpoint.load_pretrained),
    ]
    group = run.multi_teacher
    if run.teachers:
        found += [
            ("--mt_load_from_s", group.mt_load_from_s),
            ("--mt_model_load", group.mt_model_load),
        ]
    for t_no, teacher in enumerate(run.teachers):
        if not teacher.random_para and group.mt_load_from_s is None:
            found.append((group.flag_of(t_no, "load_pretrained"), teacher.load_pretrained))
    return [(flag, path) for flag, path in found if path is not None]


def _check_shards(folder: Path, what: str, path: str | Path) -> None:
    """ValueError if a checkpoint has another number of shards than this run; it says the remedy."""
    shards, size = len(shard_files(folder, what=what)), _model_parallel_size()
    if shards != size:
        weights = "--load-pretrained" if what == "--load" else what
        only = " (weights only)" if what == "--load" else ""
        raise ValueError(
            f"{what}={path}: has {shards} model-parallel shards, this run has "
            f"--model-parallel-size={size}; convert it by 'python change_mp.py {path} {size}' and "
            f"give {weights}={str(path).rstrip('/')}_MP{size}{only}, or use "
            f"--model-parallel-size={shards} and as many processes"
        )


def _model_parallel_size() -> int:
    return mpu.get_model_parallel_world_size()


# Writing and resuming -----------------------------------------------------------------------------


class Checkpoints:
    """The checkpoints of one run. Every process calls every method; files are written once."""

    def __init__(self, run: RunArgs, runtime: Runtime, fingerprint: str):
        self.run, self.runtime = run, runtime
        self.folder = runtime.run_dir
        self.parts: list[Callable[[Path], None]] = []  # all ranks write what else resuming needs
        self._config = run.to_dict() | {
            "tokenizer_fingerprint": fingerprint,
            "model_parallel_size": _model_parallel_size(),
            "data_parallel_size": mpu.get_data_parallel_world_size(),
        }

    @property
    def writes(self) -> bool:
        """Whether this run keeps checkpoints at all."""
        return self.folder is not None and not self.run.checkpoint.custom_no_save_checkpoint

    def write_config(self) -> None:
        """The run's config.json, at its start."""
        if self.folder is not None and self.runtime.is_main:
            files.write_json(self.folder / CONFIG_FILE, self._config)

    def save(self, engine: Engine, state: dict[str, Any]) -> None:
        """All that resuming needs, under the number of iterations."""
        if not self.writes:
            return
        tag = str(state["iteration"])
        self._write(tag, engine, state, resumable=not self.run.checkpoint.no_save_optim)
        self._track(TRACKER, tag)

    def save_weights(self, engine: Engine, tag: str, state: dict[str, Any]) -> None:
        """Weights alone, as `best` or `final`."""
        if not self.writes:
            return
        self._write(tag, engine, state, resumable=False)
        if tag == BEST:
            self._track(BEST_TRACKER, tag)
        self._track(TRACKER, tag, only_if_missing=True)  # so that any tool finds the weights

    def has_best(self) -> bool:
        """Whether `load_best` would find something."""
        return self.writes and files.existing_folder(self.folder / BEST) is not None

    def load_best(self, engine: Engine) -> None:
        """The best weights back into the module, for the last evaluation."""
        assert self.folder is not None, "nothing was saved"
        load_weights(self.folder / BEST, engine.module, what="best weights")

    def resume(self, engine: Engine, path: str | Path) -> dict[str, Any]:
        """Engine and train state exactly as they were saved; returns the state's values."""
        folder = tag_folder(path, what="--load")
        _check_shards(folder, "--load", path)
        saved = read_config(folder) or {}
        check_resumable(folder, saved, engine.kind)
        self._tell_global_batch(saved)
        client = engine.load(folder)
        state = client.get("train_state")
        if state is None:
            raise ValueError(f"--load={folder}: has weights only; use --load-pretrained={folder}")
        log.info("--load: goes on at iteration %d of %s", state["iteration"], folder)
        return state

    def _tell_global_batch(self, saved: dict[str, Any]) -> None:
        """Where an iteration has other samples than before, the order of the data is another."""

        def size(config: dict[str, Any]) -> int | None:
            train, ranks = config.get("train", {}), config.get("data_parallel_size")
            parts = (train.get("batch_size"), train.get("gradient_accumulation_steps"), ranks)
            return None if None in parts else math.prod(parts)

        before, now = size(saved), size(self._config)
        if before not in (None, now):
            log.warning(
                "--load: a global batch had %d samples, now it has %d; the data goes on as if "
                "it had always been so",
                *(before, now),
            )

    def _write(self, tag: str, engine: Engine, state: dict[str, Any], *, resumable: bool) -> None:
        """The folder of a tag: prepared by all processes, put in place by the first."""
        assert self.folder is not None
        folder = self.folder / tag
        temporary = files.temporary_folder(folder)
        client = {"iteration": state["iteration"], "train_state": state}
        if self.runtime.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.runtime.barrier()
        engine.settle()
        if resumable:
            engine.save(temporary, client)
            for write in self.parts:
                write(temporary)
        else:
            write_weights(temporary, engine.module, client)
        if self.runtime.is_main:
            described = self._config | {"engine": engine.kind, "resumable": resumable}
            described["partition"] = _partitions(engine.module)
            files.write_json(temporary / CONFIG_FILE, described)
        self.runtime.barrier()
        if self.runtime.is_main:
            files.install_folder(folder)
            log.info("checkpoint %s", folder)
        self.runtime.barrier()

    def _track(self, tracker: str, tag: str, *, only_if_missing: bool = False) -> None:
        """Only the first process looks at the file: it changes while the others come along."""
        assert self.folder is not None
        if self.runtime.is_main and not (only_if_missing and (self.folder / tracker).is_file()):
            files.write_text(self.folder / tracker, tag)
        self.runtime.barrier()


def _partitions(module: nn.Module) -> dict[str, str]:
    """How each tensor of a checkpoint is cut, so that any tool can cut it otherwise."""
    tensors = module.state_dict(keep_vars=True)
    return {name: spell(mpu.partition_of(tensor)) for name, tensor in tensors.items()}
