"""What every test shares: one thread, no CUDA tests without CUDA, the unpacked test vectors."""

import hashlib
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

ARCHIVE = Path(__file__).with_name("vectors.tar.xz")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def vectors(request: pytest.FixtureRequest) -> Path:
    """Folder of the test vectors, one sub-folder a case.

    Unpacked from tests/vectors.tar.xz into pytest's cache, once for each version of the archive.
    GLM_TEST_VECTORS names another folder of the same format.
    """
    given = os.environ.get("GLM_TEST_VECTORS")
    if given:
        return Path(given)
    return unpack(ARCHIVE, Path(request.config.cache.mkdir("vectors")))


def unpack(archive: Path, cache: Path) -> Path:
    """Unpack into a folder of `cache` named by the archive's content; returns the cases' folder."""
    folder = cache / hashlib.sha256(archive.read_bytes()).hexdigest()[:16]
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=cache))
        with tarfile.open(archive, "r:xz") as tar:
            tar.extractall(temporary, filter="data")
        try:
            temporary.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(temporary)
    inside = list(folder.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder
