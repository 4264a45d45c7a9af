"""Unpacking the archive of test vectors."""

import io
import tarfile

import pytest

from tests.conftest import unpack


def _archive(path, files):
    with tarfile.open(path, "w:xz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return path


@pytest.mark.parametrize("top", ["", "vectors/"])
def test_cases_lie_directly_in_the_folder(tmp_path, top):
    files = {f"{top}one/args.json": "{}", f"{top}two/args.json": "{}"}
    archive = _archive(tmp_path / "a.tar.xz", files)
    folder = unpack(archive, tmp_path / "cache")
    assert sorted(p.name for p in folder.iterdir()) == ["one", "two"]
    stamp = (folder / "one").stat().st_mtime_ns
    assert unpack(archive, tmp_path / "cache") == folder  # once
    assert (folder / "one").stat().st_mtime_ns == stamp


def test_another_archive_gets_another_folder(tmp_path):
    first = unpack(_archive(tmp_path / "a.tar.xz", {"a/x": "1", "b/x": "1"}), tmp_path / "cache")
    second = unpack(_archive(tmp_path / "a.tar.xz", {"a/x": "2", "b/x": "1"}), tmp_path / "cache")
    assert first != second
    assert (second / "a" / "x").read_text() == "2"


def test_a_path_out_of_the_folder_is_refused(tmp_path):
    archive = _archive(tmp_path / "a.tar.xz", {"../escaped": "x"})
    with pytest.raises(tarfile.OutsideDestinationError):
        unpack(archive, tmp_path / "cache")
    assert not (tmp_path / "escaped").exists()
