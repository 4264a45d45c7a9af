"""Names of methods."""

import pytest

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
