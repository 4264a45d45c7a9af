"""Restore a checkpoint with all ids of the vocabulary from one with a compressed vocabulary.

    python scripts/expand_vocab.py runs/student --out runs/student-full

Every id gets the word vector that it used: its own, or that of its substitute. What the model
predicts does not change, but that logits of --unmap_vocab_output are of all ids then. The method's
own parameters (student.*) and the optimizer are left out: they belong to the compressed model.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config.saved import TRACKER, VOCABULARY
from distill.engine import files
from distill.engine.checkpoint import MODEL_FILE, read_config, tag_folder
from distill.engine.saved_maps import WORDS, with_tables
from model.vocab_map import PREFIX, TABLES, table_problem
from mpu import Partition, merge, split

ROWS = Partition(dim=0)
OWN = "student."


def expand(path: Path, out: Path) -> str:
    """Write the restored checkpoint into the folder `out`; returns what was done, in a line.

    ValueError or FileNotFoundError, before anything is written: no checkpoint, shards missing, no
    map, a map that does not fit, a vocabulary that the shards do not divide.
    """
    if out.exists():
        raise ValueError(f"--out={out}: exists; give the name of a new folder")
    folder = tag_folder(path, what="PATH", prefer_best=True)
    config = read_config(folder) if (folder / MODEL_FILE.format(0)).is_file() else None
    shards = _shards(folder, config)
    maps = [_map(shard, folder) for shard in shards]
    for rank, tables in enumerate(maps):
        if any(not torch.equal(tables[name], maps[0][name]) for name in TABLES):
            raise ValueError(f"{folder}: shard {rank} has another vocabulary map than shard 0")
    words = merge([shard["module"][WORDS] for shard in shards], ROWS)
    problem = table_problem(maps[0], len(words))
    if problem is not None:
        raise ValueError(f"{folder}: {problem}; it is no map of this model")
    table = words[maps[0][TABLES[0]]]
    if len(table) % len(shards):
        raise ValueError(
            f"{folder}: {len(shards)} shards do not divide a vocabulary of {len(table)}; merge "
            "them first (change_mp.py)"
        )
    prepared = files.temporary_folder(out)
    shutil.rmtree(prepared, ignore_errors=True)
    for rank, shard in enumerate(shards):
        content = _restored(shard, split(table, ROWS, rank, len(shards)).clone())
        files.write_tensors(prepared / folder.name / MODEL_FILE.format(rank), content)
    if config is not None:
        config = _whole_vocabulary(config)
        for place in (prepared, prepared / folder.name):
            files.write_json(place / "config.json", config)
    vocabulary = folder.parent / VOCABULARY
    if vocabulary.is_file():
        files.write_bytes(prepared / VOCABULARY, vocabulary.read_bytes())
    files.write_text(prepared / TRACKER, folder.name)
    files.install_folder(out)
    return f"{out}: {len(words)} rows of the word table became {len(table)}"


def _shards(folder: Path, config: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The content of every model-parallel rank's file."""
    found = len(list(folder.glob("mp_rank_*_model_states.pt")))
    wanted = (config or {}).get("model_parallel_size", found)
    names = [folder / MODEL_FILE.format(rank) for rank in range(max(1, found, wanted))]
    missing = [name.name for name in names if not name.is_file()]
    if missing:
        raise FileNotFoundError(f"{folder}: {', '.join(missing)} missing; it has {found} shards")
    shards = [files.read_tensors(name) for name in names]
    for name, shard in zip(names, shards, strict=True):
        if not isinstance(shard.get("module"), dict) or WORDS not in shard["module"]:
            raise ValueError(f"{name}: has no entry 'module' with {WORDS}")
    return shards


def _map(shard: dict[str, Any], folder: Path) -> dict[str, Tensor]:
    module = with_tables(shard)["module"]
    if any(PREFIX + name not in module for name in TABLES):
        raise ValueError(f"{folder}: has no vocabulary map; its vocabulary is not compressed")
    return {name: module[PREFIX + name] for name in TABLES}


def _restored(shard: dict[str, Any], words: Tensor) -> dict[str, Any]:
    """A file's content with these words, without map, method and what only resuming needs."""
    left_out = (PREFIX, OWN)
    module = {k: v for k, v in shard["module"].items() if not k.startswith(left_out)}
    return {"module": module | {WORDS: words}, "iteration": shard.get("iteration", 0)}


def _whole_vocabulary(config: dict[str, Any]) -> dict[str, Any]:
    """A run's config.json, of a model with all ids."""
    flags = {k: v for k, v in config.get("flags", {}).items() if "map_vocab" not in k}
    whole = {"map_vocab_size": 0.0, "unmap_vocab_output": False}
    model = config.get("model", {}) | whole
    return config | {"model": model, "flags": flags, "resumable": False}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("path", metavar="PATH", help="checkpoint: a run's folder, or a tag's")
    parser.add_argument("--out", help="folder to write; default: PATH-full")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, restore; a user's mistake is one line on stderr and exit code 2."""
    args = build_parser().parse_args(argv)
    path = Path(args.path)
    out = Path(args.out) if args.out else path.with_name(path.name + "-full")
    try:
        print(expand(path, out))
    except (ValueError, OSError) as e:
        print(e, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
