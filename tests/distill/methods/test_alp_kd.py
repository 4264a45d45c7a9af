"""ALP-KD against loops over sequences and teacher layers."""

import math

import pytest
import torch

from distill.methods.alp_kd import ALPKD
from model.build import HeadSpec
from tests.distill.methods.handed import handed, states, tokens
from tests.distill.runs import take, toy_run, toy_step
from tests.toy import toy_cloze_batch, toy_lm_batch

FLAGS = ["--student_model=alp_kd", "--teacher_hidden_size=16", "--alp_kd_lambda=0.3"]


def terms(call, num_t=4) -> list[list[float]]:
    """[layer][sequence]: mean squared distance to the teacher's layers, mixed by attention."""
    theirs, result = states(call.teacher, num_t, list(range(1, num_t + 1))), []
    for own in states(call.student, 2, [1, 2]):
        losses = []
        for i, x in enumerate(own[:, 0]):
            scores = [float(x @ y[i, 0]) for y in theirs]
            weights = [math.exp(score - max(scores)) for score in scores]
            mixed = sum(w / sum(weights) * y[i, 0] for w, y in zip(weights, theirs, strict=True))
            losses.append(float((x - mixed).square().mean()))
        result.append(losses)
    return result


@pytest.mark.parametrize("program", ["pretrain", "finetune"])
@pytest.mark.parametrize("depth", [1, 4])  # a teacher may be shallower
def test_the_formula(program, depth):
    lm = program == "pretrain"
    batch = toy_lm_batch(3) if lm else toy_cloze_batch(3, choices=3, variable=True)
    step = toy_step(toy_run(*FLAGS, f"--teacher_num_layers={depth}", program=program))
    (call,) = handed(step, batch)
    real = tokens(batch)[:, 0]
    expected = [
        0.3 * float((torch.tensor(x) * real).sum() / real.sum()) for x in terms(call, depth)
    ]
    assert call.loss == pytest.approx(sum(expected), rel=1e-5)
    for k, value in enumerate(expected):
        actual = float(step.output.terms[f"inter_loss/hidden_states.{k}_t0"])
        assert actual == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("compat", ["D13", "D13,D3,D6", "glmkd"])
def test_compat_has_weight_one_and_counts_padded_choices(compat):
    batch = toy_cloze_batch(3, choices=3, variable=True)
    (call,) = handed(toy_step(toy_run(*FLAGS, f"--compat={compat}", program="finetune")), batch)
    real = tokens(batch)[:, 0] if compat == "D13" else torch.ones(9)
    expected = sum(float((torch.tensor(x) * real).sum() / real.sum()) for x in terms(call))
    assert call.loss == pytest.approx(expected, rel=1e-5)


def test_the_gradient_passes_through_the_attention():
    step = toy_step(toy_run(*FLAGS))
    (call,) = handed(step, toy_lm_batch(2))
    point = step.method.student_points()[0]
    number = call.student.hook["transformer"]["layers"][1]["layernorm_output"]

    def loss(x):
        call.student.inter_vars[number] = x
        return sum(
            value for _, value in step.method.layer_losses(call.student, call.teacher, call.context)
        )

    x = call.student[point].detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    ahead, behind = (loss(x.detach() + e * direction).detach() for e in (1e-2, -1e-2))
    slope = float(ahead - behind) / 2e-2
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-2)
    assert not bool(gradient[:, 1:].any())


def test_the_published_weights():
    flags = ["--distill_ft_soft", "--distill_soft_rate=0.7", "--distill_ft_hard"]
    flags += ["--distill_hard_rate=0.1", "--distill_temperature=20"]
    step = toy_step(toy_run(*FLAGS[:2], *flags, program="finetune"))
    output = take(step, toy_cloze_batch(2))
    assert step.method.args.method.alp_kd_lambda == 0.2
    parts = [v for k, v in output.terms.items() if k.startswith(("pre_loss/", "inter_loss/"))]
    assert len(parts) == 4
    assert float(sum(parts)) == pytest.approx(float(output.loss.detach()), rel=1e-6)


def test_what_it_needs():
    head = HeadSpec("lm")
    assert list(ALPKD.problems(toy_run(*FLAGS, "--teacher_num_layers=1"), head)) == []
    (width,) = ALPKD.problems(toy_run("--student_model=alp_kd"), head)
    assert width.startswith("--hidden-size=16")
