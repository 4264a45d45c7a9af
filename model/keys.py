"""Checkpoint keys of wrappers: what a wrapper holds is saved under the official, bare names."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

Rename = Callable[[str], str]


def rename_keys(module: nn.Module, to_file: Rename, to_module: Rename) -> None:
    """Make `module.state_dict()` and `load_state_dict()` use other names, in the same order.

    `to_file` takes a name relative to the module (`model.word_embeddings.weight`) to the one in
    checkpoints (`word_embeddings.weight`), `to_module` back. Both hold for every name below the
    module; nesting works, wrappers around the module need not know.
    """
    module.register_state_dict_post_hook(partial(_rename_hook, to_file))
    module.register_load_state_dict_pre_hook(partial(_rename_hook, to_module))


def _rename_hook(rename: Rename, _: nn.Module, state_dict: dict, prefix: str, *__: Any) -> None:
    _rename(state_dict, prefix, rename)


def _rename(state_dict: dict, prefix: str, rename: Rename) -> None:
    """In place. Renamed entries go to the end together, so their order stays."""
    below = OrderedDict((k, v) for k, v in state_dict.items() if k.startswith(prefix))
    for key in below:
        del state_dict[key]
    for key, value in below.items():
        state_dict[prefix + rename(key.removeprefix(prefix))] = value
