"""Which tensor of a checkpoint goes where in a module; everything that does not fit, at once."""

import logging
import re
from collections.abc import Sequence

import torch
from torch import nn

import mpu
from distill.engine.saved_maps import misfits
from distill.engine.shards import Shards
from distill.engine.weights import whole_shape

log = logging.getLogger(__name__)

#: Parameters beside the GLM. Missing in a file they stay as they are, unknown ones are left out.
OWN_PARTS = ("student.", "pool_layer.", "multichoice_head.", "prompt_spell.")
LIVE = re.compile(r"(student\.teacher_model_\d+\.).*")  # a whole model: named once
#: Tables that may have fewer rows in the file: the model's last rows stay as they are.
WIDENED = re.compile(r"(.*\.)?transformer\.(block_)?position_embeddings\.weight")


def matching(
    shards: Shards, module: nn.Module, *, what: str, part: str = ""
) -> dict[str, tuple[str, int | None]]:
    """Key of a module -> its name in the checkpoint, and the rows of a table that has fewer there.

    Keys that are not in the checkpoint are left out. ValueError with every problem.
    """
    file = shards.paths[min(mpu.get_model_parallel_rank(), shards.size - 1)]
    where = f"{what}: {file}" + (f" ({part}*)" if part else "")
    names = _below(part, shards.names, where)
    own = module.state_dict(keep_vars=True)
    problems, found, fresh = list(misfits(names, shards, own)), {}, []
    for key, value in own.items():
        mine = whole_shape(value)
        if key not in names:
            fresh.append(key)
            if not key.startswith(OWN_PARTS):
                problems.append(f"{key}: missing; the model has {list(mine)}")
            continue
        shape = shards.shape(names[key], mpu.get_model_parallel_world_size())
        if shape == mine:
            found[key] = names[key], None
        elif _shorter_table(key, shape, mine):
            log.warning(
                "%s: %s: %d rows in the file, %d in the model; the last ones are untrained",
                *(where, key, shape[0], mine[0]),
            )
            found[key] = names[key], shape[0]
        else:
            problems.append(f"{key}: {list(shape)}, the model has {list(mine)}")
    left = [key for key in names if key not in own]
    problems += [
        f"{key}: {list(shards.shapes(names[key]).shape)}, the model has none"
        for key in left
        if not key.startswith(OWN_PARTS)
    ]
    if problems:
        more = [f"... and {len(problems) - 12} more"] if len(problems) > 12 else []
        raise ValueError("\n  ".join([f"{where} does not fit:", *problems[:12], *more]))
    for word, keys in (("not in the file, so new", fresh), ("left out", left)):
        own_keys = [LIVE.sub(r"\1*", key) for key in keys if key.startswith(OWN_PARTS)]
        if own_keys:
            log.info("%s: %s: %s", where, word, ", ".join(dict.fromkeys(own_keys)))
    return found


def _below(part: str, names: Sequence[str], where: str) -> dict[str, str]:
    """Names under a prefix, without it -> with it. ValueError if there are none."""
    found = {name.removeprefix(part): name for name in names if name.startswith(part)}
    if not found:
        own = sorted({".".join(key.split(".")[:2]) for key in names if key.startswith("student.")})
        raise ValueError(f"{where} has no {part}*; beside the GLM it has {own or 'nothing'}")
    return found


def _shorter_table(key: str, saved: tuple[int, ...], own: torch.Size) -> bool:
    same_width = len(saved) == len(own) == 2 and saved[1] == own[1]
    return bool(WIDENED.fullmatch(key)) and same_width and saved[0] < own[0]
