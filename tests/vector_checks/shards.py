"""Checkpoints turned into ones of other model-parallel sizes: every shard, bit for bit."""

import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from distill.engine.checkpoint import TRACKER
from distill.engine.files import read_tensors as read_file
from distill.engine.files import write_tensors
from distill.engine.resharding import Target, change_model_parallel
from tests.vector_checks.common import Result, read_json, read_tensors

# Where the seed cuts wrongly: weight and bias of these are cut by rows (notes of the vectors, 10).
ROWS = re.compile(
    r"(transformer\.layers\.\d+\.)?(ib_linear_in|ib_linear_out|ib_emb_mlp|compress_emb_mlp|"
    r"decompress_emb_mlp)\.(weight|bias)"
)


def steps_of(tag: str) -> list[int] | None:
    """Sizes a checkpoint goes through: `mp4`, `mp2_to_4`, `merge_MP4_to_2`."""
    found = re.fullmatch(r"(?:merge_MP|mp)(\d+)(?:_to_(\d+))?", tag)
    return [int(size) for size in found.groups() if size] if found else None


def check_change_mp(case: Path) -> list[Result]:
    """ckpt/ -> every tag of the expected shards, other entries and files."""
    result, told = Result(case.name), read_json(case, "expected.json")
    expected = read_tensors(case, "expected.safetensors")
    tags = dict.fromkeys(key.split(".", 1)[0] for key in (*expected, *told))
    with tempfile.TemporaryDirectory() as folder:
        for tag in tags:
            path = Path(folder) / tag / "ckpt"
            shutil.copytree(case / "ckpt", path)
            for size in steps_of(tag):
                path = change_model_parallel(path, Target(size=size))
            _compare(result, tag, path, expected, told)
    return [result]


def _compare(result: Result, tag: str, path: Path, expected: dict[str, Tensor], told: dict) -> None:
    tracker = (path / TRACKER).read_text()
    if f"{tag}.latest_txt" in told:
        result.exact(f"{tag} tracker", tracker, told[f"{tag}.latest_txt"])
    files = sorted((path / tracker.strip()).glob("mp_rank_*"))
    if f"{tag}.files" in told:
        result.exact(f"{tag} files", [f.name for f in files], told[f"{tag}.files"])
    for rank, file in enumerate(files):
        content, prefix = read_file(file), f"{tag}.rank{rank}."
        names = [key.removeprefix(prefix) for key in expected if key.startswith(prefix)]
        module = content.pop("module")
        if names:
            result.exact(f"{prefix}names", sorted(module), sorted(names))
        for name in names:
            result.exact(prefix + name, module.get(name), expected[prefix + name])
        if prefix[:-1] in told:
            result.exact(f"{prefix}entries", content, told[prefix[:-1]])


def check_change_mp_ib(case: Path) -> list[Result]:
    """student -> shards, where the seed is wrong the right ones; and back, bit for bit."""
    result, student = Result(case.name), read_tensors(case, "student.safetensors")
    expected = read_tensors(case, "expected.safetensors")
    sizes = sorted({int(re.match(r"mp(\d+)\.", key)[1]) for key in expected})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ckpt"
        write_tensors(path / "1" / "mp_rank_00_model_states.pt", {"module": student})
        (path / TRACKER).write_text("1")
        for size in sizes:
            out = change_model_parallel(path, Target(size=size))
            for rank in range(size):
                module = read_file(out / "1" / f"mp_rank_{rank:02d}_model_states.pt")["module"]
                for name, whole in student.items():
                    right = expected[f"mp{size}.rank{rank}.{name}"]
                    if ROWS.fullmatch(name):
                        right = whole.chunk(size)[rank]
                    elif name.startswith("student."):
                        right = whole
                    result.exact(f"mp{size}.rank{rank}.{name}", module.get(name), right)
            back = change_model_parallel(out, Target(size=1))
            again = read_file(back / "1" / "mp_rank_00_model_states.pt")["module"]
            result.exact("names", sorted(again), sorted(student))
            for name, whole in student.items():
                result.exact(f"mp{size} and back {name}", again.get(name), whole)
    return [result]


CHECKS: dict[str, Callable[[Path], list[Result]]] = {
    "change_mp*": check_change_mp,
    "change_mp_ib*": check_change_mp_ib,
}
