"""Methods by name: what --student_model and --mixbaseline_inter_bl choose from."""

import dataclasses
import importlib.util
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from config import ArgGroup, ConfigError
from config.parser import ARGS_FILE, read_json

if TYPE_CHECKING:
    from distill.student import GLMStudent

OWN_CLASS = re.compile(r".+\.py:\w+")  # a user's own method, as a value of these flags:
METHOD_FLAGS = ("--student_model", "--mixbaseline_inter_bl")
METHOD_FLAGS += ("--mixbaseline_pre_bl_pt_soft", "--mixbaseline_pre_bl_ft_soft")
Method = TypeVar("Method", bound="type[GLMStudent]")

#: Every name and alias -> class. Filled by `register` when `distill.methods` is imported.
METHODS: dict[str, "type[GLMStudent]"] = {}
student_model_D = METHODS  # noqa: N816 - the seed's name for it


def register(name: str, *aliases: str) -> Callable[[Method], Method]:
    """Class decorator: `@register("tinybert", "TinyBERT")`, the flag's value, then other names.

    ValueError for a name that is taken. (A class defined again, as by a reload, replaces itself.)
    """

    def add(cls: Method) -> Method:
        """Put the class under all its names."""
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
    registered under that name. ConfigError if it is not there, or is no method.
    """
    import distill.methods  # noqa: F401 - fills METHODS

    problems: list[str] = []
    files: dict[Path, ModuleType] = {}  # one is run once, whatever it is asked for
    for name in dict.fromkeys(_own_classes(argv)):
        try:
            METHODS[name] = _load_class(name, files)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return {name: cls.Args for name, cls in METHODS.items()}


def _own_classes(argv: Sequence[str]) -> Iterator[str]:
    """Every path/to/file.py:ClassName among the methods that flags name, those of a file too."""
    given = list(_pairs(argv))
    values = dict(pair for flag, value in given if flag == ARGS_FILE for pair in _of_file(value))
    for flag, value in (values | dict(given)).items():  # a flag beside the file wins
        if flag in METHOD_FLAGS:
            words = (word.strip() for word in value.split(","))
            yield from (word for word in words if OWN_CLASS.fullmatch(word))


def _of_file(name: str) -> Iterator[tuple[str, str]]:
    """(flag, value) of the texts in a file of arguments."""
    content = read_json(Path(name), ARGS_FILE)
    flags = content.get("flags", content)
    for flag, value in flags.items() if isinstance(flags, Mapping) else ():
        if isinstance(value, str):
            yield "--" + flag.removeprefix("--"), value


def _pairs(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(flag, value) of `--flag=value` and of `--flag value`."""
    for number, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        if equals:
            yield flag, value
        elif number + 1 < len(argv):
            yield flag, argv[number + 1]


def _load_class(name: str, files: dict[Path, ModuleType]) -> "type[GLMStudent]":
    """The class; ConfigError if there is none. What its file raises goes on, for its author."""
    from distill.student import GLMStudent

    path, _, class_name = name.rpartition(":")
    place = Path(path).expanduser().resolve()
    if not place.is_file():
        raise ConfigError(f"--student_model={name}: there is no file {place}")
    if place not in files:
        files[place] = _run_file(place)
    cls = getattr(files[place], class_name, None)
    if not (isinstance(cls, type) and issubclass(cls, GLMStudent)):
        found = [n for n, c in vars(files[place]).items() if _is_own(c, files[place], GLMStudent)]
        what = "is no subclass of GLMStudent" if cls is not None else "is not in that file"
        known = f"; there are {', '.join(found)}" if found else ""
        raise ConfigError(f"--student_model={name}: {class_name} {what}{known}")
    if not (issubclass(cls.Args, ArgGroup) and dataclasses.is_dataclass(cls.Args)):
        raise ConfigError(
            f"--student_model={name}: {class_name}.Args must be a subclass of config.ArgGroup with "
            "@dataclass(frozen=True, kw_only=True) above it"
        )
    return cls


def _is_own(value: object, module: ModuleType, base: type) -> bool:
    own = isinstance(value, type) and issubclass(value, base)
    return own and value.__module__ == module.__name__


def _run_file(path: Path) -> ModuleType:
    """Import a file as a module of its own, named after its path."""
    name = f"own_method_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    with ExitStack() as undo:
        undo.callback(sys.modules.pop, name)
        spec.loader.exec_module(module)
        undo.pop_all()  # it ran to its end: nothing to undo
    return module
