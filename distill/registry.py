"""Methods by name: what --student_model and --mixbaseline_inter_bl choose from."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from config import ArgGroup

if TYPE_CHECKING:
    from distill.student import GLMStudent

Method = TypeVar("Method", bound="type[GLMStudent]")

#: Every name and alias -> class. Filled by `register` when `distill.methods` is imported.
METHODS: dict[str, "type[GLMStudent]"] = {}
student_model_D = METHODS  # noqa: N816 - the seed's name for it


def register(name: str, *aliases: str) -> Callable[[Method], Method]:
    """Class decorator: `@register("tinybert", "TinyBERT")`, the flag's value, then other names.

    ValueError for a name that is taken. (A class defined again, as by a reload, replaces itself.)
    """

    def add(cls: Method) -> Method:
        for each in (name, *aliases):
            other = METHODS.get(each)
            if other is not None and _spelling(other) != _spelling(cls):
                raise ValueError(
                    f"--student_model={each} is {_spelling(other)} already; "
                    f"{_spelling(cls)} needs another name"
                )
        METHODS.update(dict.fromkeys((name, *aliases), cls))
        return cls

    return add


def _spelling(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def method_args() -> dict[str, type[ArgGroup]]:
    """Name -> group of flags, for `config.parse_args`."""
    import distill.methods  # noqa: F401 - fills METHODS

    return {name: cls.Args for name, cls in METHODS.items()}
