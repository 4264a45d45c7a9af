"""The output folder of a run: nobody's earlier run is lost by mistake."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from config import ConfigError, RunArgs
from config.saved import FILE as CONFIG_FILE
from config.saved import NO_PATH, TRACKER, VOCABULARY, VOCABULARY_FOLDER, run_folder
from distill.engine import files
from distill.engine.checkpoint import BEST_TRACKER, sources
from distill.engine.launch import Runtime

METRICS, RESULTS, TEST_RESULTS, SUMMARY = (
    "metrics.jsonl",
    "results.json",
    "test_results.json",
    "summary.json",
)
TENSORBOARD = "tensorboard"
SUBMISSION = "submission"  # its folders val and test hold what a task's server takes
VOCABULARY_SUFFIXES = (".json", ".txt", ".model")
MARKS = (CONFIG_FILE, TRACKER, BEST_TRACKER, METRICS, RESULTS, TEST_RESULTS, SUMMARY)


def predictions_file(split: str) -> str:
    """Name of the file with the predictions for a split."""
    return f"predictions-{split}.jsonl"


def check_run_dir(run: RunArgs) -> None:
    """ConfigError if the output folder cannot be written, or holds another run that stays.

    It leaves nothing behind; every process may call it, before any of them writes.
    """
    folder = run.run_dir
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--save={run.checkpoint.save}: {folder} is a file, not a folder")
    _check_writable(folder, run.checkpoint.save)
    held = [name for name in MARKS if (folder / name).exists()]
    if not held or _resumes(run, folder):
        return
    if not run.checkpoint.overwrite:
        raise ConfigError(
            f"--save={run.checkpoint.save}: {folder} holds another run ({held[0]}); choose another "
            f"--experiment-name, go on with it by --load={folder}, or give --overwrite"
        )
    for flag, path in sources(run):
        if folder.resolve() in (Path(path).resolve(), *Path(path).resolve().parents):
            raise ConfigError(f"--overwrite: would remove {path}, which {flag} reads")


def open_run_dir(run: RunArgs, runtime: Runtime) -> None:
    """Make the folder, empty of an earlier run. Call after `check_run_dir` and `launch`."""
    folder = runtime.run_dir
    if runtime.is_main and folder is not None:
        if not _resumes(run, folder):
            _remove_run(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for left_over in folder.glob(".*.tmp"):
            shutil.rmtree(left_over, ignore_errors=True)
    runtime.barrier()


def _check_writable(folder: Path, save: str | None) -> None:
    """ConfigError if no file can be made in the folder; one that is not there is not made yet."""
    try:
        above = next(f for f in (folder, *folder.absolute().parents) if os.path.lexists(f))
        if not above.is_dir():
            raise ConfigError(f"--save={save}: {above} is not a folder; choose another one")
        os.rmdir(tempfile.mkdtemp(prefix=".write-", suffix=".tmp", dir=above))
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(
            f"--save={save}: {folder} cannot be written ({reason}); choose another folder"
        ) from error


def keep_vocabulary(run: RunArgs, runtime: Runtime) -> None:
    """A copy of --tokenizer-path in the run's folder: the run needs no file that others change."""
    if runtime.run_dir is None or not runtime.is_main or run.tokenizer.tokenizer_path == NO_PATH:
        return
    copy, name = runtime.run_dir / VOCABULARY, VOCABULARY
    if run.tokenizer.tokenizer_type != "BertWordPieceTokenizer":
        copy, name = runtime.run_dir / VOCABULARY_FOLDER, ""
    source = Path(run.tokenizer.tokenizer_path).expanduser()
    source = source / name if source.is_dir() else source
    with contextlib.suppress(FileNotFoundError):
        if copy.samefile(source):
            return
    if name:
        files.write_bytes(copy, source.read_bytes())
        return
    parts = source.iterdir() if source.is_dir() else [source]
    for part in parts:
        if part.suffix in VOCABULARY_SUFFIXES:
            files.write_bytes(copy / part.name, part.read_bytes())


def _resumes(run: RunArgs, folder: Path) -> bool:
    load = run.checkpoint.load
    return load is not None and run_folder(load).resolve() == folder.resolve()


def _remove_run(folder: Path) -> None:
    """Remove what a run writes, and nothing else that may lie there."""
    for name in (*MARKS, *(p.name for p in folder.glob(predictions_file("*")))):
        (folder / name).unlink(missing_ok=True)
    for checkpoint in {p.parent for p in folder.glob("*/mp_rank_*_model_states.pt")}:
        shutil.rmtree(checkpoint)
    for script in ("zero_to_fp32.py", "zero_to_torch.py"):  # DeepSpeed adds them
        (folder / script).unlink(missing_ok=True)
    for name in (TENSORBOARD, SUBMISSION, VOCABULARY_FOLDER):
        shutil.rmtree(folder / name, ignore_errors=True)
