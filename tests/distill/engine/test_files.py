"""Files that a crash cannot tear, and checkpoints that cannot run code."""

import json
import os
import pickle
import sys
import types

import pytest
import torch

from distill.engine import files


def test_a_file_is_replaced_at_once(tmp_path):
    path = tmp_path / "folder" / "a.txt"
    files.write_text(path, "first")
    files.write_text(path, "second")
    assert path.read_text() == "second"
    assert os.listdir(path.parent) == ["a.txt"]


def test_a_crash_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.pt"
    files.write_tensors(path, {"x": torch.ones(2)})

    class Fails:
        def __reduce__(self):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.write_tensors(path, {"x": torch.zeros(2), "y": Fails()})
    assert torch.equal(files.read_tensors(path)["x"], torch.ones(2))
    assert os.listdir(tmp_path) == ["a.pt"]


def test_json_and_lines(tmp_path):
    files.write_json(tmp_path / "a.json", {"b": 1, "a": [2]})
    files.write_lines(tmp_path / "a.jsonl", [{"x": 1}, {"x": "\u00e9"}])
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": 1, "a": [2]}
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"x": 1}, {"x": "\u00e9"}]


def prepare(folder, text):
    temporary = files.temporary_folder(folder)
    temporary.mkdir(parents=True)
    (temporary / "file").write_text(text)


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "best"
    for text in ("one", "two"):
        prepare(folder, text)
        files.install_folder(folder)
    assert (folder / "file").read_text() == "two"
    assert os.listdir(tmp_path) == ["best"]


def test_a_crash_between_the_two_renames_loses_nothing(tmp_path):
    folder = tmp_path / "best"
    prepare(folder, "one")
    files.install_folder(folder)
    folder.rename(tmp_path / ".best.old")  # where install_folder is after its first rename
    assert (files.existing_folder(folder) / "file").read_text() == "one"
    prepare(folder, "two")
    files.install_folder(folder)
    assert (files.existing_folder(folder) / "file").read_text() == "two"


@pytest.fixture
def foreign(monkeypatch):
    """A class of a module that the reader does not have."""
    module = types.ModuleType("fp16_of_another_project")

    class DynamicLossScaler:
        def __init__(self, scale):
            self.scale = scale

    DynamicLossScaler.__module__ = module.__name__
    DynamicLossScaler.__qualname__ = "DynamicLossScaler"
    module.DynamicLossScaler = DynamicLossScaler
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return DynamicLossScaler(4.0)


def test_foreign_objects_become_placeholders(tmp_path, foreign, monkeypatch):
    path = tmp_path / "official.pt"
    numpy = pytest.importorskip("numpy")
    content = {
        "module": {"w": torch.ones(2).half()},
        "loss_scaler": foreign,
        "np_rng_state": numpy.random.RandomState(1).get_state(),
    }
    torch.save(content, path)
    monkeypatch.delitem(sys.modules, "fp16_of_another_project")
    read = files.read_tensors(path)
    assert torch.equal(read["module"]["w"], torch.ones(2).half())
    assert not hasattr(read["loss_scaler"], "scale")


class Evil:
    """Pickled as a call."""

    def __init__(self, function, argument):
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    mark = tmp_path / "ran"
    torch.save({"module": {}, "x": Evil(eval, f"open({str(mark)!r}, 'w').close()")}, tmp_path / "a")
    torch.save({"module": {}, "x": Evil(os.system, f"touch {mark}")}, tmp_path / "b")
    with (tmp_path / "c").open("wb") as file:
        pickle.dump({"module": {}, "x": Evil(os.system, f"touch {mark}")}, file, protocol=2)
    assert files.read_tensors(tmp_path / "a")["module"] == {}
    for name in ("b", "c"):
        with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
            files.read_tensors(tmp_path / name)
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 torn"])
def test_damaged_files_are_named(tmp_path, content):
    path = tmp_path / "mp_rank_00_model_states.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="mp_rank_00_model_states.pt: cannot be read"):
        files.read_tensors(path)


def test_a_torn_zip_is_damaged(tmp_path):
    path = tmp_path / "a.pt"
    files.write_tensors(path, {"x": torch.ones(1000)})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="cannot be read"):
        files.read_tensors(path)


def test_a_list_is_no_checkpoint(tmp_path):
    torch.save([1, 2], tmp_path / "a.pt")
    with pytest.raises(ValueError, match="holds a list"):
        files.read_tensors(tmp_path / "a.pt")
