"""--prompt-init and --freeze-transformer: what changes and what stays."""

import pytest
import torch

from config import ConfigError
from distill.engine.build import build_module
from distill.prompts import find_glm, freeze_glm, start_prompts
from model.build import HeadSpec
from model.prompt import PromptSpec
from tasks.choice import ChoiceTask
from tests.distill.runs import toy_run

HEAD = HeadSpec("single_token", prompts=PromptSpec(6, "none"), words=(40, 41))


def run_of(*flags):
    return toy_run("--cloze-eval", "--epochs=1", "--continuous-prompt", *flags, program="finetune")


def module_of(head, *flags):
    return build_module(run_of(*flags), ChoiceTask("toy", head))


def trained(module):
    return {name for name, p in module.named_parameters() if p.requires_grad}


def residual(x, a, b):
    """How far x is from the line through a and b."""
    along, away = a - b, x - b
    return float((away - along * (away @ along) / (along @ along)).norm())


def test_prompts_start_between_a_word_and_a_verbalizer():
    module = module_of(HEAD)
    glm = find_glm(module)
    words = glm.word_embeddings.weight.detach()
    before = glm.prompt_spell.vectors().detach().clone()
    start_prompts(module, HEAD, seed=3)
    after = glm.prompt_spell.vectors().detach().clone()
    assert not torch.equal(before, after)
    for row in after:
        missed = [
            residual(row, words[k], words[v]) for v in HEAD.words for k in range(64) if k != v
        ]
        assert min(missed) < 1e-6 < sorted(missed)[2]
    start_prompts(module, HEAD, seed=3)
    assert torch.equal(after, glm.prompt_spell.vectors())


def test_the_flag_starts_them_and_other_weights_stay():
    plain, started = module_of(HEAD), module_of(HEAD, "--prompt-init")
    differing = {
        key
        for key, value in plain.state_dict().items()
        if not torch.equal(value, started.state_dict()[key])
    }
    assert differing == {"prompt_spell.spell_embeddings.weight"}


def test_frozen_but_for_prompts_and_first_layers():
    module = module_of(HEAD, "--freeze-transformer")
    assert trained(module) == {"model.prompt_spell.spell_embeddings.weight"}
    module = module_of(HEAD, "--freeze-transformer", "--tune-prefix-layers=1")
    layers = {name.split(".")[3] for name in trained(module) if ".layers." in name}
    assert layers == {"0"}
    head = HeadSpec("classification", num_classes=2)
    names = trained(build_module(run_of("--freeze-transformer"), ChoiceTask("toy", head)))
    assert {name.split(".")[0] for name in names} == {"pool_layer", "multichoice_head"}


def test_a_method_s_own_parameters_are_trained_beside_a_frozen_glm():
    flags = ("--student_model=tinybert", "--distill_ft_soft", "--freeze-transformer")
    names = trained(module_of(HEAD, *flags))
    assert any("fit_dense" in name for name in names)
    assert not any("transformer" in name or "word_embeddings" in name for name in names)


def test_nothing_left_to_train_is_an_error():
    module = module_of(HeadSpec("single_token"))
    with pytest.raises(ConfigError, match="--freeze-transformer: nothing is left to train"):
        freeze_glm(module, run_of("--freeze-transformer"))
    with pytest.raises(ConfigError, match="--tune-prefix-layers=9: the model has 2 layers"):
        freeze_glm(module, run_of("--freeze-transformer", "--tune-prefix-layers=9"))
