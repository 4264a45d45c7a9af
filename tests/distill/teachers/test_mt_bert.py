"""MT-BERT against its formula; its projections; what it refuses."""

import pytest
import torch
import torch.nn.functional as F

from distill.capture import Captured, hidden, to_hook
from distill.combiner import COMBINERS
from mpu import hook_model
from tests.distill.methods.handed import tokens
from tests.distill.runs import grads_of, take, toy_run, toy_step
from tests.distill.teachers.several import (
    KD,
    PKD,
    TWO,
    batch_of,
    hard_each,
    hard_of,
    logits_of,
    problems,
    soft_each,
    step_of,
    task_of,
)

MT = "--multi_teacher_model=mt_bert"
PROGRAMS = pytest.mark.parametrize("program", ["pretrain", "finetune"])
# Layers that pkd pairs: student's 1, 2 with these of teachers of 4 and 3 layers.
LAYERS = ([2, 4], [2, 3])
VARIANTS = [
    (),
    ("--mt_bert_fit_teacher",),
    ("--mt_bert_fix_layernorm",),
    ("--mt_bert_fit_teacher", "--mt_bert_fix_layernorm"),
    ("--mt_bert_wo_hard",),
]


def captured(step, model, num_layers, layers, batch):
    hook, found = to_hook([hidden(i, num_layers) for i in layers]), []
    hook_model(hook, found, model, *step.task.inputs(batch))
    return [Captured(hook, found)[hidden(i, num_layers)] for i in layers]


def inter(step, batch, t_no, flags):
    """Row by row, with the projections' own numbers."""
    depth = (4, 3)[t_no]
    own = captured(step, step.student.module, 2, [1, 2], batch)
    theirs = captured(step, step.teachers[t_no].module, depth, LAYERS[t_no], batch)
    combiner, mask = step.comparison.combiner, tokens(batch) > 0
    fit, total = getattr(combiner, f"fit_dense_{t_no}", None), 0.0
    for s, t in zip(own, theirs, strict=True):
        t = t.detach()
        if "--mt_bert_fix_layernorm" in flags:
            norm = combiner.layernorm
            s = F.layer_norm(s, s.shape[-1:], norm.weight, norm.bias, 1e-5)
            norm = getattr(combiner, f"t_layernorm_{t_no}")  # random here, as all toy weights
            t = F.layer_norm(t, t.shape[-1:], norm.weight, norm.bias, 1e-5)
        if fit is not None and "--mt_bert_fit_teacher" in flags:
            t = t @ fit.weight.T + fit.bias
        elif fit is not None:
            s = s @ fit.weight.T + fit.bias
        total = total + (s - t)[mask].square().mean()
    return total


@PROGRAMS
@pytest.mark.parametrize("flags", VARIANTS, ids="".join)
def test_the_formula(program, flags):
    labels = ["--distill_pt_soft", "--distill_temperature=3", "--distill_hard_rate=0.25"]
    step, batch = step_of(MT, *PKD, *labels, *flags, program=program), batch_of(program)
    s, teachers = logits_of(step, batch)
    expected = torch.zeros(())
    for t_no, t in enumerate(teachers):
        weight = 1 / (1 + hard_each(t, batch))
        expected = expected + (soft_each(s, t, batch) * weight).mean()
        expected = expected + inter(step, batch, t_no, flags)
    if "--mt_bert_wo_hard" not in flags:
        expected = expected + hard_of(s, batch)
    expected.backward()
    grads = grads_of(step.student.module)
    output = take(step, batch)
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=1e-5)
    assert ("multi_teacher_model/hard_loss" in output.terms) == ("--mt_bert_wo_hard" not in flags)
    for key, grad in grads_of(step.student.module).items():
        largest = float(grads[key].abs().max())
        torch.testing.assert_close(grad, grads[key], rtol=1e-4, atol=1e-5 * largest + 1e-6, msg=key)
        if "fit_dense" in key:
            assert grad.any(), key


@pytest.mark.parametrize("flags", [(), ("--mt_bert_fix_layernorm",)])
def test_without_projections_states_are_compared_as_they_are(flags):
    same = ["--mt_hidden_size=16:16", "--mt_bert_wo_convert_layer"]
    step, batch = step_of(MT, *PKD, *same, *flags), batch_of("finetune")
    combiner = step.comparison.combiner
    names = {name for name, _ in combiner.named_parameters()}
    assert not any("fit_dense" in name for name in names)
    assert ("t_layernorm_1.weight" in names) == bool(flags)
    s, teachers = logits_of(step, batch)
    expected = hard_of(s, batch)
    for t_no, t in enumerate(teachers):
        expected = expected + (soft_each(s, t, batch, 1.0) / (1 + hard_each(t, batch))).mean()
        expected = expected + inter(step, batch, t_no, flags)
    torch.testing.assert_close(take(step, batch).loss, expected, rtol=1e-5, atol=1e-5)


def test_the_teachers_layernorms_stay_1_and_0():
    run = toy_run(*TWO, MT, *PKD, "--mt_bert_fix_layernorm", program="finetune")
    combiner = COMBINERS["mt_bert"](run, run.combiner, task_of("finetune").shape)
    assert [len(getattr(combiner, f"t_layernorm_{k}").weight) for k in range(2)] == [24, 16]
    for norm in (combiner.layernorm, combiner.t_layernorm_0, combiner.t_layernorm_1):
        assert bool((norm.weight == 1).all())
        assert not norm.bias.any()
    trained = {name for name, p in combiner.named_parameters() if p.requires_grad}
    fits = {f"fit_dense_{k}.{x}" for k in range(2) for x in ("weight", "bias")}
    assert trained == fits | {"layernorm.weight", "layernorm.bias"}


def test_projections_differ_and_do_not_depend_on_other_draws():
    sizes = ["--mt_hidden_size=24:24", "--mt_num_layers=4:4"]
    run = toy_run("--mt_num_attention_heads=4:4", *sizes, MT, *PKD, program="finetune")
    first = COMBINERS["mt_bert"](run, run.combiner, task_of("finetune").shape)
    torch.manual_seed(123)
    again = COMBINERS["mt_bert"](run, run.combiner, task_of("finetune").shape)
    assert torch.equal(first.fit_dense_0.weight, again.fit_dense_0.weight)
    assert not torch.equal(first.fit_dense_0.weight, first.fit_dense_1.weight)
    assert first.fit_dense_0.weight.shape == (24, 16)
    assert not first.fit_dense_0.bias.any()


def test_predictions_alone_are_weighed():
    step, batch = step_of(MT, *KD), batch_of("finetune")
    s, teachers = logits_of(step, batch)
    soft = [(soft_each(s, t, batch) / (1 + hard_each(t, batch))).mean() for t in teachers]
    torch.testing.assert_close(take(step, batch).loss, sum(soft) + hard_of(s, batch))


def test_a_loss_without_labels_is_the_inner_one_and_the_hard_one():
    step, batch = step_of(MT, "--student_model=pkd", "--pkd_beta=1"), batch_of("finetune")
    s, _ = logits_of(step, batch)
    expected = hard_of(s, batch) + sum(inter(step, batch, k, ()) for k in range(2))
    torch.testing.assert_close(take(step, batch).loss, expected, rtol=1e-5, atol=1e-5)


def test_a_negative_hard_loss_weighs_as_0():
    step, batch = step_of(MT, *KD, "--mt_bert_wo_hard"), batch_of("finetune")
    step.comparison._hard_losses = lambda *_: torch.tensor([-1.0, -3.0, 0.0, 1.0])
    s, teachers = logits_of(step, batch)
    weight = torch.tensor([1.0, 1.0, 1.0, 0.5])
    expected = sum((soft_each(s, t, batch) * weight).mean() for t in teachers)
    torch.testing.assert_close(take(step, batch).loss, expected)


def test_a_sample_without_targets_and_a_batch_of_one():
    batch = batch_of("pretrain", 2)
    batch.loss_mask[0] = 0
    step = step_of(MT, *PKD, "--distill_pt_soft", program="pretrain")
    assert torch.isfinite(take(step, batch).loss)
    assert all(g.isfinite().all() for g in grads_of(step.student.module).values())
    batch.loss_mask[:] = 0
    assert torch.isfinite(take(step, batch).loss)
    assert torch.isfinite(take(step_of(MT, *PKD), batch_of("finetune", 1)).loss)


def test_one_teacher():
    one = ["--mt_hidden_size=24", "--mt_num_layers=4", "--mt_num_attention_heads=4"]
    step = toy_step(toy_run(*one, MT, *KD, program="finetune"), task_of("finetune"))
    batch = batch_of("finetune")
    s, (t,) = logits_of(step, batch)
    expected = (soft_each(s, t, batch) / (1 + hard_each(t, batch))).mean() + hard_of(s, batch)
    torch.testing.assert_close(take(step, batch).loss, expected)


def test_what_it_needs():
    assert problems(MT, *PKD) == [] == problems(MT, *PKD, "--mt_bert_fit_teacher")
    hard = [MT, *PKD, "--distill_ft_hard"]
    assert problems(*hard, "--mt_bert_wo_hard") == []
    (told,) = problems(*hard)
    assert told.startswith("--distill_ft_hard: mt_bert adds the hard loss itself")
    assert "--mt_bert_wo_hard" in told
    told, soft = problems(MT, *KD, "--mt_disable_operation=0:1")
    assert soft.startswith("--mt_disable_operation=0:1: soft labels need")
    assert told.startswith("--mt_disable_operation=0:1: mt_bert needs")


def test_projections_serve_methods_without_their_own():
    same = ["--mt_hidden_size=16:16"]
    (told, *_) = problems(*PKD)  # the average does not project
    assert told.startswith("--hidden-size=16: pkd compares hidden states as they are")
    assert problems(MT, *PKD, "--mt_bert_wo_convert_layer") == [told]
    assert problems(MT, *PKD, *same, "--mt_bert_wo_convert_layer") == []
    tiny = [MT, "--student_model=tinybert", "--tinybert_fit_compatible_mt", "--tinybert_wo_att"]
    (told,) = problems(*tiny)
    assert told.startswith("--multi_teacher_model: mt_bert projects hidden states, but tinybert")
    assert problems(*tiny, "--mt_bert_wo_convert_layer") == []
    assert problems(*tiny, *same) == [told]
    mix = ["--student_model=mixbaseline", "--mixbaseline_inter_bl=PKD,RAIL_KD", MT]
    (told,) = problems(*mix)
    assert "RAIL_KD needs them" in told
