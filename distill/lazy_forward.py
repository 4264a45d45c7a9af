"""A forward that stops before the vocabulary: a language model's logits come as `Logits`.

The model is asked for the states before the product with the table (`vocabulary_input`), which
leave it as captures do, and for logits of no position. Where a method captures the logits it finds
the same `Logits`. Behind a cloze head, which asks for the few rows that it scores, only captured
logits are lazy.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import mpu
from distill.lazy_logits import FEW, Logits
from model.glm import GLMModel
from model.vocab_map import VocabOutput
from mpu import hook_model

STATES, LOGITS = "vocabulary_input", "logits_parallel"  # names in the hook tree


def find_lazy(module: nn.Module) -> GLMModel | None:
    """The GLM in a module, if it has logits, so that they may come lazily."""
    glm = next((m for m in module.modules() if isinstance(m, GLMModel)), None)
    return glm if glm is not None and glm.output_predict else None


def is_large(glm: GLMModel, rows: int) -> bool:
    """Whether the rank's logits of so many rows are more than a product should make whole."""
    return rows * _width(glm) > FEW


def is_partitioned(module: nn.Module) -> bool:
    """Whether ZeRO-3 has cut the weights.

    They are then gathered from data-parallel ranks when they are used, so in the same order on all
    of them: whether logits are lazy must not depend on a rank's batch.
    """
    return any(hasattr(weight, "ds_id") for weight in module.parameters())


def forward_lazily(
    call: Callable[..., Any],
    glm: GLMModel,
    inputs: Sequence[Tensor],
    hook: dict[Any, Any] | None,
    captured: list[Any],
    hook_op: dict[Any, Any] | None = None,
    *,
    keep_table: bool = False,
) -> Tensor | Logits:
    """As `hook_model`, of a model `call` around `glm`: returns its logits, or what its head gives.

    To be called in the autocast that the forward runs in. `keep_table`: copy the table, where the
    model's own will not be there when losses are computed.
    """
    hook = {} if hook is None else hook
    asked = {name: below for name, below in hook.items() if name != LOGITS} | {STATES: None}
    options: dict[str, Any] = {"hook_op": hook_op} if hook_op else {}
    has_head = not glm.parallel_output
    if not has_head:
        nothing = torch.empty(0, dtype=torch.long, device=inputs[0].device)
        options["output_rows"] = nothing
    scores, *_ = hook_model(asked, captured, call, *inputs, **options)
    place = asked.pop(STATES)
    states, device = captured[place], inputs[0].device.type
    half = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if half else states.dtype
    output = _Copied(glm.vocabulary.output()) if keep_table else glm.vocabulary
    logits = captured[place] = Logits(states, output, _width(glm), dtype)
    asked |= {LOGITS: place} if LOGITS in hook else {}
    hook.update(asked)
    return scores if has_head else logits


def _width(glm: GLMModel) -> int:
    """Entries v/p of the rank's logits."""
    over_ids = glm.vocab_map is not None and not glm.unmapped_output
    ids = glm.vocab_map.origin_id_to_target_pos if over_ids else None
    width = glm.word_embeddings.num_embeddings if ids is None else len(ids)
    return mpu.divide(width, mpu.get_model_parallel_world_size())


class _Copied:
    """An output layer of a table's copy, without gradient; called as `VocabularyOutput`."""

    def __init__(self, output: VocabOutput):
        self.output = VocabOutput(output.weight.detach().clone(), output.rows)

    def __call__(
        self,
        states: Tensor,
        columns: Tensor | None = None,
        use: Callable[[Tensor, Tensor], Any] = torch.nn.functional.linear,
    ) -> Any:
        return (self.output if columns is None else self.output.of(columns)).used(states, use)
