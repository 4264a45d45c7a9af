"""Methods by name: what --student_model and --mixbaseline_inter_bl choose from."""

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from config import ArgGroup, ConfigError

if TYPE_CHECKING:
    from distill.student import GLMStudent

OWN_CLASS = re.compile(r".+\.py:\w+")  # a user's own method, as a value of --student_model
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


def method_args(argv: Sequence[str] = ()) -> dict[str, type[ArgGroup]]:
    """Name -> group of flags, for `config.parse_args`.

    A class of the user's own that a flag names as path/to/file.py:ClassName is loaded and
    registered under that name. ConfigError if it cannot be.
    """
    import distill.methods  # noqa: F401 - fills METHODS

    for name in dict.fromkeys(_own_classes(argv)):
        METHODS[name] = _load_class(name)
    return {name: cls.Args for name, cls in METHODS.items()}


def _own_classes(argv: Sequence[str]) -> Iterator[str]:
    """Every path/to/file.py:ClassName among the values of flags."""
    for word in argv:
        value = word.partition("=")[2] if word.startswith("--") else word
        yield from (part for part in value.split(",") if OWN_CLASS.fullmatch(part))


def _load_class(name: str) -> "type[GLMStudent]":
    from distill.student import GLMStudent

    path, _, class_name = name.rpartition(":")
    if not Path(path).is_file():
        raise ConfigError(f"{name}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"own_method_{Path(path).stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    cls = getattr(module, class_name, None)
    if not (isinstance(cls, type) and issubclass(cls, GLMStudent)):
        what = "is no subclass of GLMStudent" if cls is not None else "does not exist"
        raise ConfigError(f"{name}: class {class_name} {what}")
    return cls
