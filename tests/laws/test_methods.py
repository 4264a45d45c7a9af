"""Laws of every registered method, in pretraining and fine-tuning. A new one is tested at once."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mpu
from distill.adapters import Adapter
from distill.capture import merge_hooks, to_hook
from distill.step import DistillStep
from distill.student import GLMStudent
from mpu import hook_model
from tests.distill.runs import all_methods, cloze_task, grads_of, lm_task, take, toy_run, toy_step
from tests.ranks import run_ranks
from tests.toy import merged, toy_cloze_batch, toy_lm_batch

STAGES = ("pretrain", "finetune")
SWITCHES = {
    "pretrain": ["--distill_pt_soft", "--distill_pt_hard", "--distill_temperature=3"],
    "finetune": ["--distill_ft_soft", "--distill_ft_hard", "--distill_temperature=3"],
}
# Flags without which a method cannot run on the toy models: its variants have them, too.
BASE: dict[str, list[str]] = {
    "distilbert": ["--teacher_hidden_size=16"],
    "minilmv2": ["--minilmv2_relation_heads=4", "--minilmv2_teacher_layer=-1"],
    "diito": ["--teacher_hidden_size=16", "--forward_repeat_num=1"],
    "theseus": ["--teacher_hidden_size=16"],
    "mgskd": ["--mgskd_multi_heads=4"],
    "pkd": ["--teacher_hidden_size=16"],
    "alp_kd": ["--teacher_hidden_size=16"],
    "sid": ["--teacher_hidden_size=16"],
    "mobilebert": ["--teacher_hidden_size=16"],
}
# Methods whose flags a law must set to test more of them: name -> list of flag lists.
VARIANTS: dict[str, list[list[str]]] = {
    "pkd": [
        ["--pkd_normalized_patience", "--pkd_only_cls", "--pkd_use_embed"],
        ["--pkd_wo_final", "--compat=glmkd"],
    ],
    "rail_kd": [
        ["--rail_kd_concatenated", "--rail_kd_has_embed", "--rail_kd_has_final"],
        ["--rail_kd_no_random", "--rail_kd_layer_wise_alpha=2", "--compat=glmkd,-D37"],
    ],
    "alp_kd": [["--compat=glmkd"]],
    "universal_kd": [
        ["--universal_kd_cg", "--universal_kd_avg", "--universal_kd_size=5"],
        ["--universal_kd_wo_inter"],
        ["--compat=glmkd"],
    ],
    "lrc_bert": [
        ["--lrc_bert_gard_perturb", "--forward_repeat_num=1", "--ignore_first_backward_gard"],
        ["--lrc_bert_gather_dp", "--compat=glmkd"],
    ],
    "distilbert": [
        ["--distilbert_fix_layernorm", "--distilbert_ce_mask_padding"],
        ["--distilbert_cos_mask_padding", "--compat=glmkd"],
    ],
    "kd": [["--distill_logits_parallel"], ["--distill_logits_parallel", "--distill_logit_mse"]],
    "logitsdistil": [
        ["--logitsdistil_mask_a"],
        ["--logitsdistil_mse", "--logitsdistil_mask_pad"],
        ["--logitsdistil_top_n=7"],
        ["--logitsdistil_top_n=0.2", "--logitsdistil_teacher_min"],
        ["--compat=glmkd"],
        ["--logitsdistil_top_n=7", "--compat=D3"],
    ],
    "ckd": [["--ckd_window_size=3", "--ckd_ltrdist_w=0"], ["--compat=glmkd"], ["--compat=D3"]],
    "mgskd": [
        ["--mgskd_sample_level_m=1", "--mgskd_triplet_k1=4", "--mgskd_triplet_k2=3"],
        ["--mgskd_wo_inter"],
        ["--compat=glmkd"],
        ["--compat=D3"],
    ],
    "minilm": [["--compat=glmkd"], ["--compat=D27"]],
    "minilmv2": [["--minilmv2_relation_heads=2"], ["--compat=D3"]],
    "mixbaseline": [
        ["--mixbaseline_inter_bl=TinyBERT,glmd,CKD", "--mixbaseline_weights=1,0.5,2,1"]
        + [f"--mixbaseline_pre_bl_{stage}_soft=DistilBERT" for stage in ("pt", "ft")],
        ["--mixbaseline_inter_bl=DistilBERT,TinyBERT,DIITO", "--mixbaseline_inter_checkpoint"]
        + ["--teacher_hidden_size=16", "--forward_repeat_num=1", "--compat=glmkd"],
    ],
    "tinybert": [
        ["--tinybert_only_emb_final", "--tinybert_custom_final=2", "--tinybert_fit_parallel"],
        ["--tinybert_random_layers", "--tinybert_fit_compatible_mt", "--tinybert_wo_emb"],
        ["--compat=glmkd"],
    ],
    "diito": [
        ["--diito_alignment=late", "--diito_interchange_way=random"],
        ["--compat=glmkd", "--diito_interchange_way=masked"],
    ],
    "sid": [["--sid_accumulate_t=0.5"], ["--sid_accumulate_t=9", "--compat=glmkd"]],
    "mobilebert": [["--mobilebert_kd_w=2"], ["--mobilebert_pkt_small_lr=3", "--compat=glmkd"]],
    "annealing_kd": [
        ["--annealing_kd_max_t=3", "--distill_pt_soft_mse", "--distill_ft_soft_mse"],
        ["--compat=glmkd", "--distill_pt_soft_mse", "--distill_ft_soft_mse"],
    ],
    "continuation_kd": [
        ["--continuation_kd_margin=20", "--distill_pt_soft_mse", "--distill_ft_soft_mse"],
        ["--compat=glmkd", "--distill_pt_soft_mse", "--distill_ft_soft_mse"],
    ],
    "erdistill": [
        ["--erdistill_inter=1plus", "--erdistill_inter_mse"],
        ["--erdistill_inter=two", "--erdistill_wo_local"],
        ["--erdistill_inter=one", "--erdistill_wo_global", "--compat=glmkd"],
    ],
    "theseus": [["--mt_disable_operation=0", "--compat=D31"], ["--theseus_replacing_rate=0.9"]],
}


def runs() -> list[tuple[str, ...]]:
    """(program, method, further flags...)"""
    return [
        (program, name, *flags)
        for name in all_methods()
        for program in STAGES
        for flags in [[], *VARIANTS.get(name, [])]
    ]


def step_of(program: str, name: str, *flags: str, soft: bool = True, **changes: Any) -> DistillStep:
    """A toy step; `changes` are fields of the model's arguments."""
    switches = SWITCHES[program] if soft else []
    flags = (*BASE.get(name, []), *flags)
    run = toy_run(f"--student_model={name}", *switches, *flags, program=program)
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, **changes))
    return toy_step(run, lm_task() if program == "pretrain" else cloze_task())


def batch_of(program: str) -> Any:
    return (
        toy_lm_batch(3) if program == "pretrain" else toy_cloze_batch(3, choices=3, variable=True)
    )


every_run = pytest.mark.parametrize("case", runs(), ids="-".join)


def on_ranks(rank: int, world_size: int) -> list[tuple[Tensor, dict, dict[str, Tensor]]]:
    mpu.initialize_model_parallel(world_size)
    results = []
    for case in runs():
        step = step_of(*case)
        output = take(step, batch_of(case[0]))
        terms = {name: float(value) for name, value in output.terms.items()}
        results.append((output.loss.detach(), terms, grads_of(step.student.module)))
    return results


@pytest.fixture(scope="module", params=[2, 4])
def sharded(request: pytest.FixtureRequest) -> list[list[tuple[Tensor, dict, dict[str, Tensor]]]]:
    """Results of all runs on p ranks."""
    return run_ranks(request.param, on_ranks)


def test_a_method_does_not_depend_on_p(sharded):
    for number, case in enumerate(runs()):
        step = step_of(*case)
        output = take(step, batch_of(case[0]))
        expected = grads_of(step.student.module)
        ranks = [rank[number] for rank in sharded]
        for loss, terms, _ in ranks:
            torch.testing.assert_close(loss, output.loss.detach(), rtol=1e-5, atol=1e-6)
            assert terms == pytest.approx({k: float(v) for k, v in output.terms.items()}, rel=1e-4)
        actual = merged([grads for _, _, grads in ranks], step.student.module)
        assert actual.keys() == expected.keys()
        largest = max(float(g.abs().max()) for g in expected.values())
        for key, grad in expected.items():
            torch.testing.assert_close(
                actual[key], grad, rtol=1e-4, atol=1e-5 * largest, msg=f"{case} {key}"
            )


@every_run
def test_a_loss_is_made_and_reaches_the_student(case):
    step = step_of(*case)
    output = take(step, batch_of(case[0]))
    assert torch.isfinite(output.loss)
    assert any(bool(g.any()) for g in grads_of(step.student.module).values())
    assert all(not torch.as_tensor(v).requires_grad for v in output.terms.values())


@every_run
def test_capturing_changes_nothing(case):
    step, batch = step_of(*case), batch_of(case[0])
    method, module = step.method, step.student.module
    inputs = step.task.inputs(batch)
    hook = merge_hooks(method.get_student_hook(), to_hook(method.base_points()))
    expected = module(*inputs)[0]
    actual = hook_model(hook or None, [], module, *inputs)[0]
    if "attention_" in str(hook):  # scores exist only without the fused kernel, which rounds else
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(actual, expected)


@every_run
def test_activation_checkpointing_changes_no_gradient(case):
    grads = []
    for checkpointing in (False, True):
        step = step_of(*case, checkpoint_activations=checkpointing)
        take(step, batch_of(case[0]))
        grads.append(grads_of(step.student.module))
    for key, expected in grads[0].items():
        torch.testing.assert_close(grads[1][key], expected, rtol=1e-5, atol=1e-7, msg=key)


@every_run
def test_the_teacher_is_not_touched(case):
    step = step_of(*case)
    (teacher,) = step.teachers
    before = {k: v.clone() for k, v in teacher.module.state_dict().items()}
    take(step, batch_of(case[0]))
    assert not teacher.module.training
    assert all(p.grad is None and not p.requires_grad for p in teacher.module.parameters())
    assert all(torch.equal(v, before[k]) for k, v in teacher.module.state_dict().items())


@every_run
def test_keep_batch_is_the_same_loss(case):
    step, batch = step_of(*case), batch_of(case[0])
    for function, args, kwargs in recorded_calls(step, batch):
        scalar = function(step.method, *args, **kwargs)
        if not isinstance(scalar, Tensor):
            continue
        if function is GLMStudent.pre_loss:
            args = (*args[:2], args[2].expand(3))  # the hard loss, per sample
        per_sample = function(step.method, *args, **(kwargs | {"keep_batch": True}))
        assert per_sample.shape == (3,), function
        torch.testing.assert_close(per_sample.mean(), scalar)


def recorded_calls(step: DistillStep, batch: Any) -> list[tuple[Any, tuple, dict]]:
    """What the step hands to pre_loss and inter_loss."""
    calls = []
    for name in ("pre_loss", "inter_loss"):
        function = getattr(type(step.method), name)

        def record(*args: Any, _function: Any = function, **kwargs: Any) -> Any:
            calls.append((_function, args, kwargs))
            return _function(step.method, *args, **kwargs)

        setattr(step.method, name, record)
    take(step, batch)
    return calls


# Methods whose intermediate loss is a distance: 0 where student and teacher are the same model.
NO_DISTANCE = ("alp_kd", "lrc_bert")  # a mix of several layers; a contrast
DISTANCES = [name for name in all_methods() if name not in NO_DISTANCE]
DISTANCE_ONLY = {"distilbert": ["--distilbert_alpha_mlm=0"]}  # flags that leave hard labels out


@pytest.mark.parametrize("program", STAGES)
@pytest.mark.parametrize("name", DISTANCES)
def test_a_student_equal_to_its_teacher_has_zero_distance(name, program):
    same = ["--teacher_num_layers=2", "--teacher_hidden_size=16", "--distill_logits_parallel"]
    step = step_of(program, name, *same, *DISTANCE_ONLY.get(name, []), soft=False)
    for module in step.student.module.modules():
        if isinstance(module, Adapter):
            nn.init.eye_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    own = {k: v for k, v in step.student.module.state_dict().items() if "student." not in k}
    step.teachers[0].module.load_state_dict(own)
    output = take(step, batch_of(program))
    assert float(output.loss.detach()) == pytest.approx(0.0, abs=1e-9)
    assert max(float(g.abs().max()) for g in grads_of(step.student.module).values()) < 1e-6
