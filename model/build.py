"""Build a GLM with a head; parameter groups for weight decay."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from config.model import ModelArgs
from model.downstream import (
    GLMForMultiTokenCloze,
    GLMForMultiTokenClozeFast,
    GLMForSequenceClassification,
    GLMForSingleTokenCloze,
)
from model.glm import GLMModel
from model.prompt import PromptSpec

HeadKind = Literal["lm", "single_token", "multi_token", "multi_token_fast", "classification"]


@dataclass(frozen=True)
class HeadSpec:
    """What stands on top of a GLM. `lm` is nothing: the vocabulary logits, sharded."""

    kind: HeadKind
    num_classes: int = 0  # classification: classes; 1 with one row a choice
    pool_token: str = "cls"  # classification: cls, start or pad
    take_softmax: bool = False  # single_token: scores are log-probabilities
    length_penalty: float = 0.0  # multi_token: scores are divided by length ** this
    prompts: PromptSpec | None = None  # continuous prompts, which the GLM reads
    words: tuple[int, ...] = ()  # single_token: ids of the verbalizers, if they do not change


def build_model(args: ModelArgs, head: HeadSpec, *, seed: int = 1234) -> GLMModel:
    """The GLM a head needs: logits sharded (lm), gathered (cloze) or none (classification)."""
    return GLMModel(
        args,
        parallel_output=head.kind == "lm",
        output_predict=head.kind != "classification",
        prompts=head.prompts,
        seed=seed,
    )


def add_head(lm: nn.Module, head: HeadSpec, args: ModelArgs, *, seed: int = 1234) -> nn.Module:
    """`lm` (a GLM or a student around one) with its head on top."""
    if head.kind == "single_token":
        return GLMForSingleTokenCloze(lm, head.take_softmax)
    if head.kind == "multi_token":
        return GLMForMultiTokenCloze(lm, head.length_penalty)
    if head.kind == "multi_token_fast":
        return GLMForMultiTokenClozeFast(lm, head.length_penalty)
    if head.kind == "classification":
        return GLMForSequenceClassification(
            lm, args.hidden_size, args.output_dropout, head.pool_token, head.num_classes, seed
        )
    assert head.kind == "lm", head.kind
    return lm


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Optimizer groups: everything with `weight_decay` but biases and LayerNorms, which have 0.

    Only parameters that are trained; one that is used twice counts once. Empty groups are left out.
    """
    decayed: dict[nn.Parameter, None] = {}
    plain: dict[nn.Parameter, None] = {}
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in decayed and parameter not in plain:
                bare = isinstance(part, nn.LayerNorm) or name == "bias"
                (plain if bare else decayed)[parameter] = None
    groups = [
        {"params": list(decayed), "weight_decay": weight_decay},
        {"params": list(plain), "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
