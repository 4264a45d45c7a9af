"""Tasks by name: `--task=SST-2`, `--task=sst2` and `--task=sst_2` are the same."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

from config.compat import Compat
from config.data import DataArgs
from config.errors import ConfigError
from config.tasks import FinetuneArgs, plain_name
from config.text import TextArgs
from data_utils.tokenization import Tokenizer

if TYPE_CHECKING:
    from tasks.base import FinetuneTask


@dataclass(frozen=True)
class Setting:
    """All that a run says to its task."""

    finetuning: FinetuneArgs
    data: DataArgs
    tokenizer: Tokenizer
    compat: Compat
    block_position: bool = True  # False: every token of an answer has block position 1
    text: TextArgs = TextArgs()  # noqa: RUF009 - frozen; of tasks whose answers are texts


class Buildable(Protocol):
    """What the registry holds: a description that `build` turns into a task."""

    metric_names: ClassVar[Sequence[str]]

    @classmethod
    def build(cls, name: str, setting: Setting) -> "FinetuneTask":
        """The task with its files and tokenizer."""


Registered = TypeVar("Registered", bound=type)
TASKS: dict[str, type[Buildable]] = {}


def register_task(name: str) -> Callable[[Registered], Registered]:
    """Class decorator: make a task known by this name. ValueError for a name already taken."""

    def register(cls: Registered) -> Registered:
        """The class, registered."""
        taken = next((TASKS[x] for x in TASKS if plain_name(x) == plain_name(name)), None)
        if taken is not None:
            raise ValueError(f"task {name}: both {taken.__name__} and {cls.__name__}")
        TASKS[name] = cls
        return cls

    return register


def task_name(given: str | None) -> str:
    """The registered name of a task, in whatever spelling. ConfigError lists the known ones."""
    for known in TASKS:
        if given is not None and plain_name(known) == plain_name(given):
            return known
    wrong = "unknown task" if given else "a task is needed"
    raise ConfigError(f"--task={given or ''}: {wrong}; known are {', '.join(sorted(TASKS))}")


def build_task(
    finetuning: FinetuneArgs,
    data: DataArgs,
    tokenizer: Tokenizer,
    compat: Compat,
    *,
    block_position: bool = True,
    text: TextArgs = TextArgs(),  # noqa: B008 - frozen
) -> "FinetuneTask":
    """The task of the command line. Its files are read when a split is first asked for.

    block_position: False with --no-block-position, where every answer token has block position 1.
    text: lengths and decoding of tasks whose answers are texts.
    ConfigError: unknown task, pattern or metric, a verbalizer that is not one token.
    """
    name = task_name(finetuning.task)
    found, wanted = TASKS[name], finetuning.validation_metric
    if wanted is not None and wanted.lower() not in found.metric_names:
        raise ConfigError(
            f"--validation-metric={wanted}: {name} has {', '.join(found.metric_names)}"
        )
    return found.build(name, Setting(finetuning, data, tokenizer, compat, block_position, text))
