"""What fine-tuning does to a GLM before it is trained: --prompt-init and --freeze-transformer."""

import torch
from torch import nn

import mpu
from config import ConfigError, RunArgs
from model.build import HeadSpec
from model.glm import GLMModel
from model.prompt import draw_words


def find_glm(module: nn.Module) -> GLMModel | None:
    """The GLM in a stack of heads and students; None in a student without one."""
    return next((part for part in module.modules() if isinstance(part, GLMModel)), None)


@torch.no_grad()
def start_prompts(module: nn.Module, head: HeadSpec, seed: int) -> None:
    """--prompt-init: each prompt starts as a word, mixed with a verbalizer of the task.

    Of the weights that the module has now. The same for every model-parallel size.
    """
    glm = find_glm(module)
    if glm is None or glm.prompt_spell is None:
        return
    draw = torch.Generator().manual_seed(mpu.derive_seed(seed, "prompt-init"))
    number, rows = glm.prompt_spell.spec.length, glm.word_embeddings.num_embeddings
    first, second, share = draw_words(number, rows, head.words, draw)
    mixed = share[:, None] * glm.words(first[None])[0]
    glm.prompt_spell.start_from(mixed + (1 - share[:, None]) * glm.words(second[None])[0])


def freeze_glm(module: nn.Module, run: RunArgs) -> None:
    """--freeze-transformer: the GLM keeps its weights, but for its prompts and its first layers.

    ConfigError if nothing is left that a run could train.
    """
    glm, first = find_glm(module), run.finetuning.tune_prefix_layers or 0
    if glm is None:
        return
    if first > len(glm.transformer.layers):
        raise ConfigError(
            f"--tune-prefix-layers={first}: the model has {len(glm.transformer.layers)} layers "
            "with weights of their own"
        )
    glm.requires_grad_(False)
    trained: list[nn.Module] = [*glm.transformer.layers[:first]]
    if glm.prompt_spell is not None:
        trained.append(glm.prompt_spell)
    for part in trained:
        part.requires_grad_(True)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ConfigError(
            "--freeze-transformer: nothing is left to train; add --continuous-prompt with "
            "--num-prompt-tokens, or --tune-prefix-layers, or leave out --cloze-eval for a head"
        )
