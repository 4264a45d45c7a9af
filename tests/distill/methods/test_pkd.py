"""PKD against loops over rows."""

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F

from config import ConfigError
from distill.context import LossContext
from distill.methods.pkd import PKD, PKDArgs
from model.build import HeadSpec
from tests.distill.methods.handed import handed, states, tokens
from tests.distill.runs import cloze_task, take, toy_run, toy_step
from tests.toy import toy_cloze_batch, toy_lm_batch

WIDE = ["--student_model=pkd", "--teacher_hidden_size=16", "--pkd_beta=3"]


def batch_of(program):
    if program == "pretrain":
        return toy_lm_batch(3)
    return toy_cloze_batch(3, choices=3, variable=True)


def distance(student, teacher, flags, mask, divisor=None):
    """Row by row: mean over the width, mean over the rows of the mask."""
    total, number = 0.0, 0
    positions = 1 if "--pkd_only_cls" in flags else student.size(1)
    for i, j in itertools.product(range(len(student)), range(positions)):
        if not mask[i, j]:
            continue
        x, y = student[i, j], teacher[i, j]
        if "--pkd_normalized_patience" in flags:
            x, y = x / x.square().sum().sqrt(), y / y.square().sum().sqrt()
        total, number = total + float((x - y).square().mean()), number + 1
    return total / (divisor or number)


CASES = {
    (): ([1, 2], [2, 4]),
    ("--pkd_use_embed",): ([0, 1, 2], [0, 2, 4]),
    ("--pkd_wo_final",): ([1], [2]),
    ("--pkd_only_cls",): ([1, 2], [2, 4]),
    ("--pkd_normalized_patience",): ([1, 2], [2, 4]),
    ("--pkd_use_embed", "--pkd_wo_final", "--pkd_only_cls", "--pkd_normalized_patience"): (
        [0, 1],
        [0, 2],
    ),
}


@pytest.mark.parametrize("program", ["pretrain", "finetune"])
@pytest.mark.parametrize("flags", CASES, ids="".join)
def test_the_formula(flags, program):
    batch, (own, theirs) = batch_of(program), CASES[flags]
    step = toy_step(toy_run(*WIDE, *flags, program=program))
    (call,) = handed(step, batch)
    mask = tokens(batch)
    assert mask.min() == 0
    pairs = zip(states(call.student, 2, own), states(call.teacher, 4, theirs), strict=True)
    expected = [distance(s, t, flags, mask) for s, t in pairs]
    assert call.loss == pytest.approx(3 * sum(expected), rel=1e-5)
    logged = {k: float(v) for k, v in step.output.terms.items() if k.startswith("inter_loss")}
    names = [f"inter_loss/hidden_states.{k}_t0" for k in range(len(own))]
    assert logged == pytest.approx(dict(zip(names, expected, strict=True)), rel=1e-5)


def test_depths_that_do_not_divide_end_together():
    step = toy_step(toy_run(*WIDE, "--num-layers=3", "--teacher_num_layers=4"))
    pairs = [(str(s), str(t)) for _, s, t in step.method.pairs(0)]
    layer = "transformer.layers.{}.layernorm_output".format
    assert pairs == [(layer(k), layer(e)) for k, e in ((1, 2), (2, 3))] + [
        ("transformer.output", "transformer.output")
    ]


def test_compat_divides_by_every_position():
    batch = toy_lm_batch(3)
    (call,) = handed(toy_step(toy_run(*WIDE, "--compat=D3")), batch)
    own, theirs = states(call.student, 2, [1, 2]), states(call.teacher, 4, [2, 4])
    expected = sum(F.mse_loss(s, t) for s, t in zip(own, theirs, strict=True))
    assert call.loss == pytest.approx(3 * float(expected), rel=1e-5)


def test_compat_compares_padded_choices_at_position_0():
    batch = batch_of("finetune")
    flags = [*WIDE, "--pkd_only_cls", "--compat=glmkd"]
    (call,) = handed(toy_step(toy_run(*flags, program="finetune")), batch)
    own, theirs = states(call.student, 2, [1, 2]), states(call.teacher, 4, [2, 4])
    expected = sum(F.mse_loss(s[:, 0], t[:, 0]) for s, t in zip(own, theirs, strict=True))
    assert call.loss == pytest.approx(3 * float(expected), rel=1e-5)


LABELS = ["--distill_ft_soft", "--distill_ft_hard", "--distill_temperature=4"]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_alpha_weighs_soft_and_hard_labels(alpha):
    batch = toy_cloze_batch(3)
    flags = [*WIDE[:2], "--pkd_beta=0", *LABELS, "--distill_soft_rate=2", f"--pkd_alpha={alpha}"]
    step = toy_step(toy_run(*flags, program="finetune"))
    output = take(step, batch)
    with torch.no_grad():
        models = step.student.module, step.teachers[0].module
        s, t = (model(*step.task.inputs(batch))[0] for model in models)
    soft = -2 * 16 * ((t / 4).softmax(-1) * (s / 4).log_softmax(-1)).sum(-1).mean()
    hard = F.cross_entropy(s, batch.labels)
    torch.testing.assert_close(output.loss.detach(), alpha * soft + (1 - alpha) * hard)
    assert float(output.terms["pre_loss/ft_soft_t0"]) == pytest.approx(float(soft), rel=1e-5)
    assert float(output.terms["pre_loss/ft_hard_t0"]) == pytest.approx(float(hard), rel=1e-5)


def test_parts_of_the_prediction_loss():
    method = toy_step(toy_run(*WIDE, *LABELS, "--pkd_alpha=0.25", program="finetune")).method
    s, t = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    parts = method.pre_loss(s, t, torch.tensor(2.0), return_dict=True)
    assert float(parts["hard"]) == 1.5
    assert float(parts["loss"]) == float(parts["soft"] + parts["hard"])
    assert float(method.pre_loss(s, t, torch.tensor(2.0))) == float(parts["loss"])
    assert toy_step(toy_run(*WIDE, program="finetune")).method.pre_loss(s, t, s.sum()) == 0.0


def test_soft_labels_of_a_language_model_need_target_positions_only():
    flags = [*WIDE, "--distill_pt_soft"]
    assert toy_step(toy_run(*flags)).method.needs_targets_only()
    assert not toy_step(toy_run(*flags, "--distill_wo_loss_mask")).method.needs_targets_only()
    batch = toy_lm_batch(3)
    method = (step := toy_step(toy_run(*flags))).method
    lean = float(take(step, batch).loss.detach())
    method.needs_targets_only = lambda: False
    assert float(take(step, batch).loss.detach()) == pytest.approx(lean, rel=1e-6)


def test_called_by_hand_it_is_a_plain_mean():
    method = toy_step(toy_run(*WIDE, "--pkd_only_cls")).method
    s, t = torch.randn(2, 3, 5, 16, generator=torch.Generator().manual_seed(0))
    (name, point, _), *_ = method.pairs(0)
    actual = method.loss(name, point, s, t, LossContext())
    torch.testing.assert_close(actual, F.mse_loss(s[:, 0], t[:, 0]))
    each = method.loss(name, point, s, t, LossContext(keep_batch=True))
    torch.testing.assert_close(each, (s[:, 0] - t[:, 0]).square().mean(-1))


def problems(*flags):
    run = toy_run("--student_model=pkd", *flags)
    return list(PKD.problems(run, HeadSpec("lm")))


def test_what_it_needs():
    assert problems("--teacher_hidden_size=16") == []
    (width,) = problems()
    assert width.startswith("--hidden-size=16")
    (depth,) = problems("--teacher_hidden_size=16", "--teacher_num_layers=1")
    assert depth.startswith("--num-layers=2")
    one = ["--teacher_hidden_size=16", "--num-layers=1"]
    assert problems(*one) == [] == problems(*one, "--pkd_wo_final", "--pkd_use_embed")
    (final,) = problems(*one, "--pkd_wo_final")
    assert "pkd with --pkd_wo_final needs at least 2" in final


def test_alpha_is_a_fraction():
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="--pkd_alpha"):
            PKDArgs(pkd_alpha=wrong)


def test_two_teachers_have_their_own_layers():
    run = toy_run(*WIDE, program="finetune")
    deep = dataclasses.replace(run.teachers[0], num_layers=6)
    run = dataclasses.replace(run, teachers=(run.teachers[0], deep))
    first, second = handed(toy_step(run, cloze_task()), toy_cloze_batch(2))
    own = states(second.student, 2, [1, 2])
    theirs = states(second.teacher, 6, [3, 6])
    mask = tokens(toy_cloze_batch(2))
    expected = sum(distance(s, t, (), mask) for s, t in zip(own, theirs, strict=True))
    assert second.loss == pytest.approx(3 * expected, rel=1e-5)
    assert first.loss != second.loss
