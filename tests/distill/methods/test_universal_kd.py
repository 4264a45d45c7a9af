"""Universal-KD against loops over sequences and teacher layers."""

import dataclasses

import pytest
import torch

from config import ConfigError
from distill.methods.universal_kd import UniversalKD, UniversalKDArgs
from model.build import HeadSpec
from tests.distill.methods.handed import handed, pooled, states, tokens
from tests.distill.runs import cloze_task, grads_of, take, toy_run, toy_step
from tests.toy import toy_cloze_batch, toy_lm_batch

FLAGS = ["--student_model=universal_kd", "--universal_kd_gamma=0.4", "--num-layers=3"]
CG, AVG = "--universal_kd_cg", "--universal_kd_avg"


def batch_of(program):
    if program == "pretrain":
        return toy_lm_batch(3)
    return toy_cloze_batch(3, choices=3, variable=True)


def terms(step, call, mask, own=(1, 2), theirs=(1, 2, 3), num_t=4, t_no=0):
    """[layer][sequence]: KL to the teacher's outputs, mixed by attention."""
    average = step.method.args.method.universal_kd_avg
    fit = getattr(step.method, f"t_fit_dense_{t_no}")

    def outputs(captured, depth, layers, classifiers):
        x = [pooled(x, mask) if average else x[:, 0] for x in states(captured, depth, layers)]
        return [s @ w.weight.detach().T for s, w in zip(x, classifiers, strict=True)]

    x = outputs(call.student, 3, own, step.method.s_fit_dense)
    y = outputs(call.teacher, num_t, theirs, fit)
    result = []
    for each in x:
        losses = []
        for i, row in enumerate(each):
            weights = torch.tensor([float(row @ other[i]) for other in y]).softmax(0)
            target = sum(w * other[i] for w, other in zip(weights, y, strict=True))
            p = target.softmax(0)
            losses.append(float((p * (p.log() - row.softmax(0).log())).sum()))
        result.append(losses)
    return result


def total(values, real) -> float:
    return sum(float((torch.tensor(x) * real).sum() / real.sum()) for x in values)


@pytest.mark.parametrize("program", ["pretrain", "finetune"])
@pytest.mark.parametrize("flags", [(), (AVG,), ("--universal_kd_size=5",), (CG, AVG)], ids="".join)
def test_the_formula(flags, program):
    batch = batch_of(program)
    step = toy_step(toy_run(*FLAGS, *flags, program=program))
    (call,) = handed(step, batch)
    mask = tokens(batch)
    layers = {"own": [3], "theirs": [4]} if CG in flags else {}
    values = terms(step, call, mask, **layers)
    assert call.loss == pytest.approx(0.4 * total(values, mask[:, 0]), rel=1e-4)
    logged = [k for k in step.output.terms if k.startswith("inter_loss/")]
    assert logged == [f"inter_loss/hidden_states.{k}_t0" for k in range(len(values))]
    size = 5 if "--universal_kd_size=5" in flags else 16
    assert all(w.weight.shape == (size, 16) for w in step.method.s_fit_dense)


def test_compat_pools_padding_and_counts_padded_choices():
    batch = batch_of("finetune")
    step = toy_step(toy_run(*FLAGS, AVG, "--compat=glmkd", program="finetune"))
    (call,) = handed(step, batch)
    expected = 0.4 * total(terms(step, call, None), torch.ones(9))
    assert call.loss == pytest.approx(expected, rel=1e-4)


def of_teacher(step) -> dict:
    return {k: v for k, v in grads_of(step.student.module).items() if "t_fit_dense" in k}


def test_the_target_is_fixed():
    step = toy_step(toy_run(*FLAGS))
    take(step, toy_lm_batch(2))
    assert not any(bool(g.any()) for g in of_teacher(step).values())
    assert not any(p.requires_grad for p in step.method.t_fit_dense_0.parameters())
    (call,) = handed(step, toy_lm_batch(2))
    x, teacher = call.student[step.method.student_points()[0]], call.teacher
    ((_, loss), _) = step.method.layer_losses(call.student, teacher, call.context)
    (gradient,) = torch.autograd.grad(loss, step.method.s_fit_dense[0].weight, retain_graph=True)
    # By hand: the gradient of a KL at its logits is q - p, the target taken as it is.
    w = step.method.s_fit_dense[0].weight.detach()
    x = x[:, 0].detach()
    y = [
        s[:, 0] @ fit.weight.T
        for s, fit in zip(states(teacher, 4, [1, 2, 3]), step.method.t_fit_dense_0, strict=True)
    ]
    y = torch.stack(y, 1)
    a = torch.einsum("bu,bmu->bm", x @ w.T, y).softmax(-1)
    p = torch.einsum("bm,bmu->bu", a, y).softmax(-1)
    expected = 0.4 * ((x @ w.T).softmax(-1) - p).T @ x / len(x)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_compat_trains_the_target():
    same = toy_step(toy_run(*FLAGS)), toy_step(toy_run(*FLAGS, "--compat=D28"))
    first, second = (float(take(step, toy_lm_batch(2)).loss.detach()) for step in same)
    assert first == pytest.approx(second, rel=1e-6)
    assert all(bool(g.any()) for g in of_teacher(same[1]).values())
    grads = [grads_of(step.student.module)["word_embeddings.weight"] for step in same]
    assert not torch.allclose(*grads)


def test_the_second_stage_has_no_layers_but_the_same_parameters():
    first = toy_step(toy_run(*FLAGS, program="finetune"))
    flags = [*FLAGS, "--universal_kd_wo_inter", "--distill_ft_hard"]
    second = toy_step(toy_run(*flags, program="finetune"))
    assert second.method.get_student_hook() == {} == second.method.get_teacher_hook(t_no=0)
    assert second.method.state_dict().keys() == first.method.state_dict().keys()
    output = take(second, toy_cloze_batch(2))
    assert float(output.loss.detach()) == float(output.terms["Train/hard_loss"])


def test_each_teacher_has_its_classifiers():
    run = toy_run(*FLAGS, program="finetune")
    other = dataclasses.replace(run.teachers[0], num_layers=2, hidden_size=8)
    step = toy_step(dataclasses.replace(run, teachers=(run.teachers[0], other)), cloze_task())
    batch = toy_cloze_batch(2)
    _, call = handed(step, batch)
    mask = tokens(batch)
    values = terms(step, call, mask, theirs=[1], num_t=2, t_no=1)
    assert call.loss == pytest.approx(0.4 * total(values, mask[:, 0]), rel=1e-4)


def problems(*flags):
    run = toy_run("--student_model=universal_kd", *flags)
    return list(UniversalKD.problems(run, HeadSpec("lm")))


def test_what_it_needs():
    assert problems() == []
    (own,) = problems("--num-layers=1")
    assert own.startswith("--num-layers=1: universal_kd without --universal_kd_cg needs")
    (theirs,) = problems("--teacher_num_layers=1")
    assert theirs.startswith("--teacher_num_layers=1")
    for flag in (CG, "--universal_kd_wo_inter"):
        assert problems("--num-layers=1", "--teacher_num_layers=1", flag) == []


def test_the_size_is_not_negative():
    with pytest.raises(ConfigError, match="--universal_kd_size=-1"):
        UniversalKDArgs(universal_kd_size=-1)
