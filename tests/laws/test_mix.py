"""Laws of mixtures: a mix of one method is that method; a mix of several is their weighted sum."""

import itertools

import pytest
import torch

from distill.mix import label_of
from distill.step import DistillStep
from tests.distill.runs import all_methods, grads_of, take
from tests.laws.test_methods import BASE, batch_of, runs, step_of

MIX = "mixbaseline"
ONE = [case for case in runs() if case[1] != MIX]
#: Methods that change no forward pass of the others, each with the next one.
TOGETHER = [name for name in all_methods() if name not in (MIX, "kd", "diito", "theseus")]


def mixed(program: str, names: list[str], *flags: str, soft: bool) -> DistillStep:
    """A step of the mix in which every method has all its losses."""
    stage = "pt" if program == "pretrain" else "ft"
    base = [flag for name in names for flag in BASE.get(name, [])]
    lists = (f"--mixbaseline_inter_bl={','.join(names)}",)
    lists += (f"--mixbaseline_pre_bl_{stage}_soft={','.join(names)}",)
    lists += ("--mixbaseline_tinybert_t=3",)  # as the switches of the laws have it
    return step_of(program, MIX, *base, *lists, *flags, soft=soft)


@pytest.mark.parametrize("case", ONE, ids="-".join)
def test_a_mix_of_one_method_is_that_method(case):
    program, name, *flags = case
    soft = program == "pretrain"  # fine-tuning, the mix has soft labels of its own
    alone = step_of(*case, soft=soft)
    mix = mixed(program, [name], *flags, soft=soft)
    expected, actual = (take(step, batch_of(program)) for step in (alone, mix))
    torch.testing.assert_close(actual.loss, expected.loss, rtol=1e-6, atol=1e-6)
    label = label_of(name)
    grads = grads_of(mix.student.module)
    for key, grad in grads_of(alone.student.module).items():
        key = key.replace("student.", f"student.{label}.")
        torch.testing.assert_close(grads[key], grad, rtol=1e-5, atol=1e-6, msg=key)
    told = {name.replace(f"/{label}/", "/"): value for name, value in actual.terms.items()}
    for term, value in expected.terms.items():
        torch.testing.assert_close(torch.as_tensor(told[term]), torch.as_tensor(value), msg=term)


@pytest.mark.parametrize("names", [*itertools.pairwise([*TOGETHER, TOGETHER[0]])], ids="-".join)
def test_a_mix_of_two_is_their_weighted_sum(names):
    flags = [flag for name in names for flag in BASE.get(name, [])]
    flags += ["--teacher_hidden_size=16"]
    lists = [f"--mixbaseline_inter_bl={','.join(names)}", "--mixbaseline_weights=0.5,2"]
    mix = step_of("pretrain", MIX, *flags, *lists, soft=False)
    total = take(mix, batch_of("pretrain")).loss.detach()
    grads, expected = grads_of(mix.student.module), {}
    weights = mix.student.module.state_dict()
    loss = torch.zeros(())
    for name, factor in zip(names, (0.5, 2.0), strict=True):
        label = f"student.{label_of(name)}."
        only = [f"--mixbaseline_inter_bl={name}"]
        alone = step_of("pretrain", MIX, *flags, *only, soft=False)
        own = {k: v for k, v in weights.items() if "student." not in k or k.startswith(label)}
        alone.student.module.load_state_dict(own)
        loss += factor * take(alone, batch_of("pretrain")).loss.detach()
        for key, grad in grads_of(alone.student.module).items():
            expected[key] = expected.get(key, 0) + factor * grad
    torch.testing.assert_close(total, loss, rtol=1e-5, atol=1e-5)
    assert grads.keys() == expected.keys()
    largest = max(float(g.abs().max()) for g in expected.values())
    for key, grad in expected.items():
        torch.testing.assert_close(grads[key], grad, rtol=1e-4, atol=1e-5 * largest, msg=key)


def test_the_law_sees_a_forgotten_weight():
    loss = []
    for text in ("1", "2"):
        flags = ["--mixbaseline_inter_bl=logitsdistil", f"--mixbaseline_weights={text}"]
        step = step_of("pretrain", MIX, *flags, soft=False)
        loss.append(float(take(step, batch_of("pretrain")).loss.detach()))
    assert loss[1] == pytest.approx(2 * loss[0]) != 0


@pytest.mark.parametrize("name", [n for n in all_methods() if n != MIX])
def test_losses_computed_again_have_the_same_gradient(name):
    grads = []
    for flags in ([], ["--mixbaseline_inter_checkpoint"]):
        step = mixed("pretrain", [name], *flags, soft=True)
        take(step, batch_of("pretrain"))
        grads.append(grads_of(step.student.module))
    for key, grad in grads[0].items():
        torch.testing.assert_close(grads[1][key], grad, rtol=1e-5, atol=1e-7, msg=key)
