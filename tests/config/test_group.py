"""Dataclass fields as flags."""

import argparse
from dataclasses import FrozenInstanceError, dataclass

import pytest

from config.errors import ConfigError
from config.group import ArgGroup, flag


@dataclass(frozen=True, kw_only=True)
class Toy(ArgGroup):
    """All kinds of fields."""

    title, sep, prefix = "toy", "-", "my_"
    num_things: int = flag(3, "how many 100%")
    rate: float | None = flag(None, "how fast")
    loud: bool = flag(False, "how loud")
    names: tuple[str, ...] | None = flag(None, "which")
    kind: str = flag("a", "of two", choices=("a", "b"))
    misspelt: int = flag(0, name="--my_mispelt")
    derived: int = 7


@dataclass(frozen=True, kw_only=True)
class More(Toy):
    """One flag more than its base."""

    extra: int = flag(1, "more")


def read(*words: str, kind: type[ArgGroup] = Toy) -> ArgGroup:
    parser = argparse.ArgumentParser(exit_on_error=False)
    kind.add_to(parser)
    return kind.take(parser.parse_args(words))


def test_spellings():
    expected = ["--my_num-things", "--my_rate", "--my_loud", "--my_names", "--my_kind"]
    assert list(Toy.flags()) == [*expected, "--my_mispelt"]


def test_defaults():
    assert read() == Toy()


def test_values():
    words = "--my_num-things=4 --my_rate 0.5 --my_loud --my_names x y --my_kind=b --my_mispelt=2"
    expected = Toy(num_things=4, rate=0.5, loud=True, names=("x", "y"), kind="b", misspelt=2)
    assert read(*words.split()) == expected


def test_a_base_class_and_its_child_share_flags():
    parser = argparse.ArgumentParser()
    Toy.add_to(parser)
    More.add_to(parser)
    given = parser.parse_args(["--my_num-things=4", "--my_extra=5"])
    assert More.take(given) == More(num_things=4, extra=5)
    assert Toy.take(given) == Toy(num_things=4)


def test_help_names_the_default_and_keeps_percent_signs():
    parser = argparse.ArgumentParser()
    Toy.add_to(parser)
    assert "how many 100% [3]" in " ".join(parser.format_help().split())


def test_groups_are_frozen():
    with pytest.raises(FrozenInstanceError):
        Toy().num_things = 4


def test_config_error_keeps_its_lines():
    error = ConfigError(f"--x={i}: wrong" for i in range(2))
    assert error.problems == ("--x=0: wrong", "--x=1: wrong")
    assert str(error) == "--x=0: wrong\n--x=1: wrong"
    assert ConfigError("one").problems == ("one",)
