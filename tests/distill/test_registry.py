"""Names of methods, and classes of the user's own."""

import json
import sys

import pytest

from config import ConfigError
from distill import registry
from distill.registry import METHODS, method_args, register, student_model_D
from distill.student import GLMStudent


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict:
    """An empty registry for one test."""
    known: dict = {}
    monkeypatch.setattr(registry, "METHODS", known)
    return known


def test_a_class_is_known_by_its_name_and_aliases(names):
    @register("one", "One")
    class One(GLMStudent):
        pass

    assert names == {"one": One, "One": One}


def test_a_name_taken_names_both_classes(names):
    @register("one")
    class One(GLMStudent):
        pass

    with pytest.raises(ValueError, match="One already.*Two"):

        @register("two", "one")
        class Two(GLMStudent):
            pass

    assert names == {"one": One}, "a refused class leaves nothing behind"


def test_a_class_may_be_defined_again(names):
    def define() -> type:
        @register("one")
        class One(GLMStudent):
            pass

        return One

    define()
    again = define()
    assert names == {"one": again}


def test_every_method_has_its_group_of_flags():
    groups = method_args()
    assert {"kd", "logitsdistil", "LogitsDistil", "glmd"} <= groups.keys()
    assert all(groups[name] is cls.Args for name, cls in METHODS.items())
    assert student_model_D is METHODS


# A class of the user's own ------------------------------------------------------------------------

METHOD = """
from dataclasses import dataclass
from config import ArgGroup, flag
from distill.student import GLMStudent

RUNS = []

@dataclass(frozen=True, kw_only=True)
class OwnArgs(ArgGroup):
    own_size: int = flag(3, "a number")

class Own(GLMStudent):
    Args = OwnArgs

class Other(GLMStudent):
    pass

class Bare(GLMStudent):
    class Args:
        pass

class Undecorated(GLMStudent):
    class Args(ArgGroup):
        own_other: int = flag(3, "a number")

class NoMethod:
    pass

number = 5
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    """my.py in the working folder; what is loaded goes again."""
    method_args()
    monkeypatch.setattr(registry, "METHODS", dict(METHODS))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my.py"
    path.write_text(METHOD)
    return path


@pytest.mark.parametrize(
    "words",
    [
        ["--student_model=my.py:Own"],
        ["--student_model", "my.py:Own"],
        ["--lr=1", "--student_model=./my.py:Own", "--fp16"],
        ["--student_model=mixbaseline", "--mixbaseline_inter_bl=TinyBERT, my.py:Own,PKD"],
        ["--mixbaseline_pre_bl_pt_soft=my.py:Own"],
        ["--mixbaseline_pre_bl_ft_soft", "my.py:Own"],
    ],
)
def test_a_class_in_a_file_is_a_method_by_its_path(file, words):
    groups = method_args(words)
    (name,) = [name for name in groups if name.endswith("my.py:Own")]
    assert registry.METHODS[name].__name__ == "Own"
    assert groups[name].__name__ == "OwnArgs"
    assert list(groups[name].flags()) == ["--own_size"]


def test_a_file_is_run_once_for_all_its_classes(file):
    method_args(["--mixbaseline_inter_bl=my.py:Own,my.py:Other", f"--student_model={file}:Own"])
    own, other, absolute = (
        registry.METHODS[name] for name in ("my.py:Own", "my.py:Other", f"{file}:Own")
    )
    assert own is absolute
    assert sys.modules[own.__module__].Other is other


def test_files_of_one_name_are_kept_apart(file, tmp_path):
    second = tmp_path / "below" / "my.py"
    second.parent.mkdir()
    second.write_text(METHOD)
    method_args(["--mixbaseline_inter_bl=my.py:Own,below/my.py:Own"])
    first, other = (registry.METHODS[f"{name}my.py:Own"] for name in ("", "below/"))
    assert first is not other
    assert sys.modules[first.__module__].Own is first
    assert sys.modules[other.__module__].Own is other


def test_only_flags_that_name_methods_load_files(file):
    file.write_text("raise RuntimeError")
    method_args(["--train-data=my.py:Own", "my.py:Own", "--experiment-name", "my.py:Own"])
    assert not [name for name in registry.METHODS if "my.py" in name]


@pytest.mark.parametrize("nested", [True, False])
def test_a_file_of_arguments_may_name_one(file, tmp_path, nested):
    flags = {"--student_model": "my.py:Own", "--own_size": 4, "--fp16": True}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"flags": flags} if nested else flags))
    assert "my.py:Own" in method_args(["--args_file=config.json"])
    assert "my.py:Own" in method_args(["--args_file", str(path)])
    path.write_text(json.dumps({"student_model": "my.py:Other"}))
    assert "my.py:Other" in method_args(["--args_file", str(path)])


def test_what_is_given_beside_the_file_wins(file, tmp_path):
    (tmp_path / "args.json").write_text(json.dumps({"--student_model": "gone.py:Own"}))
    assert "gone.py:Own" not in method_args(["--args_file=args.json", "--student_model=kd"])
    with pytest.raises(ConfigError, match="gone.py:Own: there is no file"):
        method_args(["--args_file=args.json"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone.py:Own", r"gone\.py:Own: there is no file .*gone\.py"),
        ("my.py:Owm", r"Owm is not in that file; there are Own, Other, Bare, Undecorated"),
        ("my.py:NoMethod", r"NoMethod is no subclass of GLMStudent; there are Own"),
        ("my.py:number", r"number is no subclass of GLMStudent"),
        ("my.py:GLMStudent", None),
        ("my.py:Bare", r"Bare.Args must be a subclass of config.ArgGroup with @dataclass"),
        ("my.py:Undecorated", r"Undecorated.Args must be a subclass of config.ArgGroup with"),
    ],
)
def test_what_cannot_be_a_method(file, name, words):
    if words is None:  # the base class itself: as kd
        assert name in method_args([f"--student_model={name}"])
        return
    with pytest.raises(ConfigError, match=words) as caught:
        method_args([f"--student_model={name}"])
    assert str(caught.value).startswith(f"--student_model={name}: ")


def test_all_mistakes_are_told_at_once(file):
    with pytest.raises(ConfigError) as caught:
        method_args(["--mixbaseline_inter_bl=gone.py:Own,my.py:Owm,my.py:Own"])
    assert len(caught.value.problems) == 2


def test_what_a_file_raises_is_its_authors_to_see(file):
    before = set(sys.modules)
    file.write_text("x = 1 / 0")
    with pytest.raises(ZeroDivisionError):
        method_args(["--student_model=my.py:Own"])
    assert set(sys.modules) == before


def test_a_file_that_registers_a_name_has_both(file):
    file.write_text(
        METHOD.replace("class Own(", "@register('mine', 'Mine')\nclass Own(").replace(
            "from distill.student", "from distill.registry import register\nfrom distill.student"
        )
    )
    groups = method_args(["--student_model=my.py:Own"])
    assert groups["mine"] is groups["Mine"] is groups["my.py:Own"]
