"""--compat: the algebra of its items, and their table in docs/differences.md."""

import re

import pytest

from config.compat import ITEMS, Compat
from config.errors import ConfigError
from tests.house import ROOT


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", set()),
        ("glmkd", set(ITEMS)),
        ("D2,D3", {"D2", "D3"}),
        (" D2 , W14 ,", {"D2", "W14"}),
        ("glmkd,-D1", set(ITEMS) - {"D1"}),
        ("D1,-D1", set()),
        ("-D1,glmkd", set(ITEMS)),
        ("glmkd,-glmkd,D6", {"D6"}),
    ],
)
def test_parse(text, expected):
    actual = Compat.parse(text)
    assert {item for item in ITEMS if item in actual} == expected
    assert bool(actual) == bool(expected)


@pytest.mark.parametrize("text", ["", "glmkd", "D2,D3", "glmkd,-D1", "D1,D2,D3,D6,D13,D20,D27"])
def test_str_is_read_back(text):
    assert Compat.parse(str(Compat.parse(text))) == Compat.parse(text)


def test_str_is_short():
    assert str(Compat.parse("glmkd,-D1")) == "glmkd,-D1"
    assert str(Compat.parse("D3,D2")) == "D2,D3"
    assert str(Compat.parse("glmkd")) == "glmkd"


def test_unknown_items_are_named_and_the_known_ones_listed():
    with pytest.raises(ConfigError, match="unknown D4, -W99; known are glmkd, D1, D2") as caught:
        Compat.parse("D4,D1,-W99")
    assert all(item in str(caught.value) for item in ITEMS)


def test_asking_for_an_item_that_does_not_exist_is_our_mistake():
    with pytest.raises(AssertionError, match="D99"):
        assert "D99" in Compat.parse("glmkd")


def test_every_item_is_explained():
    text = (ROOT / "docs/differences.md").read_text(encoding="utf-8")
    table = text[text.index("## Under") : text.index("## In both modes")]
    assert re.findall(r"^\| ([DMW]\w+) \|", table, flags=re.M) == list(ITEMS)
