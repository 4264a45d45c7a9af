"""Files written tensor by tensor are what torch.save and safetensors would have written."""

import zipfile

import pytest
import torch

from distill.engine.files import read_tensors
from distill.engine.tensor_files import Planned, SafetensorsFile, TorchFile

TENSORS = {
    "matrix": torch.randn(5, 7),
    "half": torch.arange(12.0).view(3, 4).half(),
    "bf16": torch.arange(6.0).to(torch.bfloat16),
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 4),
    "ids": torch.arange(4),
    "mask": torch.tensor([True, False, True]),
}


def plans() -> dict[str, Planned]:
    return {name: Planned(tuple(t.shape), t.dtype) for name, t in TENSORS.items()}


def parts(tensor):
    """In two pieces, where there are rows."""
    return lambda: iter(
        tensor.split([1, len(tensor) - 1]) if len(tensor.shape) and len(tensor) else [tensor]
    )


def write(kind, path, planned, entries):
    file = kind(path, planned, entries)
    for name in planned:
        file.write(name, parts(TENSORS[name]))
    file.close()


@pytest.mark.parametrize("mapped", [False, True])
def test_torch_reads_what_was_written(tmp_path, mapped):
    entries = {"iteration": 7, "state": {"rng": torch.arange(3), "words": [1, None, "x", (2.5,)]}}
    write(TorchFile, tmp_path / "a.pt", plans(), entries)
    content = torch.load(tmp_path / "a.pt", weights_only=True, mmap=mapped)
    assert list(content["module"]) == list(TENSORS)
    for name, expected in TENSORS.items():
        actual = content["module"][name]
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected), name
        assert actual.data_ptr() % 64 == 0
    assert content["iteration"] == 7
    assert torch.equal(content["state"]["rng"], torch.arange(3))
    assert content["state"]["words"] == [1, None, "x", (2.5,)]
    assert zipfile.ZipFile(tmp_path / "a.pt").testzip() is None


def test_two_names_of_one_tensor_are_one_in_the_file(tmp_path):
    plan = Planned((5, 7), torch.float32)
    file = TorchFile(tmp_path / "a.pt", {"one": plan, "two": plan}, {})
    for name in ("one", "two"):
        file.write(name, parts(TENSORS["matrix"]))
    file.close()
    module = read_tensors(tmp_path / "a.pt")["module"]
    assert module["one"].data_ptr() == module["two"].data_ptr()
    assert torch.equal(module["two"], TENSORS["matrix"])
    other = {"one": Planned((5, 7), torch.float32), "two": Planned((5, 7), torch.float32)}
    file = TorchFile(tmp_path / "b.pt", other, {})
    file.write("one", parts(TENSORS["matrix"]))
    file.write("two", parts(TENSORS["matrix"] + 1))
    file.close()
    assert torch.equal(read_tensors(tmp_path / "b.pt")["module"]["two"], TENSORS["matrix"] + 1)


def test_a_record_beyond_four_gigabytes_has_a_header_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)  # bytes; so that a small one takes that way
    write(TorchFile, tmp_path / "a.pt", plans(), {})
    module = torch.load(tmp_path / "a.pt", weights_only=True, mmap=True)["module"]
    assert torch.equal(module["matrix"], TENSORS["matrix"])
    assert module["matrix"].data_ptr() % 64 == 0


def test_safetensors_reads_what_was_written(tmp_path):
    from safetensors.torch import load_file

    write(SafetensorsFile, tmp_path / "a.safetensors", plans(), {"iteration": 7})
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        assert found[name].dtype == expected.dtype
        assert torch.equal(found[name], expected)


def test_a_tensor_of_another_length_is_our_mistake(tmp_path):
    for kind in (TorchFile, SafetensorsFile):
        file = kind(tmp_path / "a", {"x": Planned((3,), torch.float32)}, {})
        with pytest.raises(AssertionError):
            file.write("x", lambda: iter([torch.zeros(2)]))
        file.abandon()
