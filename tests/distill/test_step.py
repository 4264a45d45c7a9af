"""DistillStep: order, terms, what is computed, what reaches a method."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import ConfigError
from distill.context import TrainState
from distill.registry import METHODS
from distill.step import DistillStep, check_method
from distill.student import GLMStudent, build_student
from distill.teacher import Teacher
from model.build import HeadSpec, build_model
from tests.distill.runs import (
    Local,
    cloze_task,
    grads_of,
    lm_task,
    take,
    toy_run,
    toy_step,
    toy_student,
)
from tests.toy import toy_cloze_batch, toy_glm, toy_lm_batch


@dataclasses.dataclass
class Seen:
    """What one method was called with."""

    calls: list[tuple[str, dict[str, Any]]] = dataclasses.field(default_factory=list)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """A method `spy` that overrides both losses and notes its calls."""
    import distill.methods  # noqa: F401 - before the name is added

    seen = Seen()

    class Spy(GLMStudent):
        def pre_loss(self, s_logits, t_logits, loss, **kwargs):
            seen.calls.append(("pre_loss", kwargs | {"s_logits": s_logits, "t_logits": t_logits}))
            return super().pre_loss(s_logits, t_logits, loss, **kwargs)

        def inter_loss(self, s_inter_vars, t_inter_vars, s_hook, t_hook, **kwargs):
            seen.calls.append(("inter_loss", kwargs))
            return super().inter_loss(s_inter_vars, t_inter_vars, s_hook, t_hook, **kwargs)

        def get_teacher_hook_op(self, t_no=0, teacher_models=None, **kwargs):
            seen.calls.append(("teacher_hook_op", {"t_no": t_no, "models": teacher_models}))
            return {}

    monkeypatch.setitem(METHODS, "spy", Spy)
    return seen


def dense_loss(glm: nn.Module, batch: Any) -> Tensor:
    """Masked mean cross entropy of a language model."""
    logits = glm(batch.tokens, batch.position_ids, batch.attention_mask)[0]
    losses = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none")
    return (losses * batch.loss_mask.flatten()).sum() / batch.loss_mask.sum()


@pytest.mark.parametrize("few", [True, False])  # targets: picked, or all rows computed
def test_plain_pretraining_is_masked_cross_entropy(few):
    glm, batch = toy_glm(), toy_lm_batch(3)
    if not few:
        batch.loss_mask = torch.ones_like(batch.loss_mask)
        batch.loss_mask[0, 3] = 0
    step = DistillStep(lm_task(), Local(glm), (), toy_run(), TrainState())
    output = take(step, batch)
    actual = grads_of(glm)
    assert output.terms == {}
    glm.zero_grad()
    expected = dense_loss(glm, batch)
    expected.backward()
    torch.testing.assert_close(output.loss, expected)
    for key, grad in grads_of(glm).items():
        torch.testing.assert_close(actual[key], grad, rtol=1e-4, atol=1e-6, msg=key)


def test_plain_fine_tuning_is_the_tasks_loss():
    run, batch = toy_run(program="finetune"), toy_cloze_batch(3)
    step = toy_step(run)
    scores = step.student.module(*step.task.inputs(batch))[0]
    torch.testing.assert_close(take(step, batch).loss, F.cross_entropy(scores, batch.labels))


def test_terms_have_the_seeds_names_in_its_order():
    flags = [
        "--student_model=glmd",
        "--distill_pt_soft",
        "--distill_pt_hard",
        "--logitsdistil_top_n=5",
    ]
    output = take(toy_step(toy_run(*flags)), toy_lm_batch(2))
    assert list(output.terms) == [
        "Train/hard_loss",
        "pre_loss/pt_soft_t0",
        "pre_loss/pt_hard_t0",
        "inter_loss/s_logits_threshold_t0",
        "inter_loss/s_logits_threshold_count_nonzero_t0",
        "inter_loss/logits_parallel_t0",
        "teacher_loss/teacher_0_t0",
    ]
    values = {k: float(v) for k, v in output.terms.items()}
    parts = ["pre_loss/pt_soft_t0", "pre_loss/pt_hard_t0"]
    parts += ["inter_loss/s_logits_threshold_t0", "inter_loss/logits_parallel_t0"]
    assert values["teacher_loss/teacher_0_t0"] == pytest.approx(sum(values[k] for k in parts))
    assert float(output.loss.detach()) == pytest.approx(values["teacher_loss/teacher_0_t0"])
    assert values["pre_loss/pt_hard_t0"] == values["Train/hard_loss"]


def test_the_prediction_layer_comes_first_and_both_get_the_same_context(spy):
    step = toy_step(toy_run("--student_model=spy", "--distill_pt_soft"))
    batch = toy_lm_batch(2)
    take(step, batch)
    assert [name for name, _ in spy.calls] == ["teacher_hook_op", "pre_loss", "inter_loss"]
    assert spy.calls[0][1] == {"t_no": 0, "models": [step.teachers[0].module]}
    (_, pre), (_, inter) = spy.calls[1:]
    assert {k: pre[k] for k in ("t_no", "keep_batch")} == {"t_no": 0, "keep_batch": False}
    assert torch.equal(pre["labels"], batch.labels)
    assert torch.equal(pre["loss_mask"], batch.loss_mask)
    assert pre.keys() - {"s_logits", "t_logits"} == inter.keys()


def test_fine_tuning_gives_no_loss_mask_as_in_the_seed(spy):
    batch = toy_cloze_batch(2, choices=3, variable=True)
    take(toy_step(toy_run("--student_model=spy", program="finetune")), batch)
    pre = spy.calls[1][1]
    assert pre["loss_mask"] is None
    assert torch.equal(pre["logit_mask"], batch.logit_mask)
    assert torch.equal(pre["class_mask"], batch.choice_mask)
    assert pre["s_logits"].shape == pre["t_logits"].shape == (2, 3)


def shapes_of_logits(
    monkeypatch: pytest.MonkeyPatch, step: DistillStep, batch: Any
) -> list[torch.Size]:
    seen = []
    for model in (step.student.module, step.teachers[0].module):
        model.register_forward_hook(lambda m, i, out: seen.append(out[0].shape))
    take(step, batch)
    return seen


def test_only_target_rows_of_the_vocabulary_are_computed(monkeypatch):
    batch = toy_lm_batch(3)
    targets = int(batch.loss_mask.sum())
    flags = ["--student_model=kd", "--distill_pt_soft", "--distill_pt_hard"]
    step = toy_step(toy_run(*flags))
    assert shapes_of_logits(monkeypatch, step, batch) == [(targets, 64)] * 2
    whole = toy_step(toy_run(*flags, "--distill_wo_loss_mask"))
    assert shapes_of_logits(monkeypatch, whole, batch) == [(*batch.tokens.shape, 64)] * 2


def test_a_method_with_its_own_pre_loss_gets_all_logits(spy):
    batch = toy_lm_batch(2)
    flags = ["--student_model=spy", "--distill_pt_soft", "--distill_pt_hard"]
    step = toy_step(toy_run(*flags))
    output = take(step, batch)
    assert spy.calls[1][1]["s_logits"].shape == (*batch.tokens.shape, 64)
    lean = take(toy_step(toy_run("--student_model=kd", *flags[1:])), batch)
    torch.testing.assert_close(output.loss, lean.loss)


def test_padded_choices_take_no_part():
    flags = [
        "--student_model=kd",
        "--distill_ft_soft",
        "--distill_logits_parallel",
        "--distill_temperature=2",
    ]
    batch = toy_cloze_batch(2, choices=3, variable=True)
    other = dataclasses.replace(batch, tokens=batch.tokens.clone())
    other.tokens[-1, -1, 1:4] = 33
    results = {}
    for compat in ("", "D6"):
        step = toy_step(toy_run(*flags, f"--compat={compat}", program="finetune"))
        results[compat] = [float(take(step, b).loss.detach()) for b in (batch, other)]
    assert results[""][0] == pytest.approx(results[""][1], rel=1e-6)
    assert results["D6"][0] != pytest.approx(results["D6"][1], rel=1e-4)


@pytest.mark.parametrize("kind", ["single_token", "multi_token_fast"])
def test_one_context_for_all_choices_has_one_row_of_tokens(kind):
    batch = toy_cloze_batch(3, choices=3, multi_token=False, variable=True)
    for compat in ("", "D6"):
        run = toy_run("--student_model=kd", f"--compat={compat}", program="finetune")
        masks = toy_step(run, cloze_task(kind))._masks(batch)
        expected = (batch.position_ids[:, 0] > 0).float()
        expected[:, 0] = 1
        assert torch.equal(masks["tokens"], expected)


def test_a_step_without_a_term_is_zero_and_can_be_backpropagated():
    step = toy_step(toy_run("--student_model=kd"))
    output = take(step, toy_lm_batch(2))
    assert float(output.loss.detach()) == 0.0
    assert not any(bool(g.any()) for g in grads_of(step.student.module).values())


class Editing(GLMStudent):
    """Replaces the first hidden state by zeros."""

    def get_student_hook_op(self, **kwargs):
        return {"transformer": {"output": lambda output, **_: output * 0}}


def test_edits_reach_the_students_forward(monkeypatch):
    monkeypatch.setitem(METHODS, "editing", Editing)
    step = toy_step(toy_run("--student_model=editing", "--distill_pt_hard"))
    loss = take(step, toy_lm_batch(2)).loss.detach()
    assert float(loss) == pytest.approx(torch.tensor(64.0).log().item(), rel=1e-6)


class Half(Local):
    """An engine in bfloat16."""

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return super().__call__(*inputs, **options)


def test_captures_are_fp32_whatever_the_engine(monkeypatch):
    seen = []

    class Looking(GLMStudent):
        def get_student_hook(self, **kwargs):
            return {
                "transformer": {"layers": {0: {"mixed_query_layer": None}}},
                "logits_parallel": None,
                "position_ids": None,
            }

        def inter_loss(self, s_inter_vars, t_inter_vars, s_hook, t_hook, **kwargs):
            seen.extend(x.dtype for x in s_inter_vars)
            return 0.0

    monkeypatch.setitem(METHODS, "looking", Looking)
    run = toy_run("--student_model=looking")
    step = toy_step(run)
    step.student = Half(step.student.module)
    take(step, toy_lm_batch(2))
    assert sorted(map(str, set(seen))) == ["torch.float32", "torch.int64"]


def test_bfloat16_losses_are_near_those_of_fp32():
    run = toy_run("--student_model=glmd", "--distill_pt_soft", "--distill_pt_hard")
    step, batch = toy_step(run), toy_lm_batch(3)
    exact = take(step, batch)
    step.student = Half(step.student.module)
    rough = take(step, batch)
    for key, value in exact.terms.items():
        assert float(rough.terms[key]) == pytest.approx(float(value), rel=3e-2), key


def test_several_teachers_are_averaged():
    both = "--mt_num_layers=4:3", "--mt_hidden_size=24:16"
    run = toy_run("--student_model=kd", "--distill_pt_soft", *both)
    step, batch = toy_step(run), toy_lm_batch(2)
    losses = []
    for numbers in ((0,), (1,), (0, 1)):
        part = dataclasses.replace(run, teachers=tuple(run.teachers[k] for k in numbers))
        teachers = [step.teachers[k] for k in numbers]
        step.method.multi_teacher_model = None
        output = take(DistillStep(step.task, step.student, teachers, part, TrainState()), batch)
        losses.append(float(output.loss.detach()))
    assert losses[2] == pytest.approx((losses[0] + losses[1]) / 2)
    assert "pre_loss/pt_soft_t1" in output.terms


def test_vocabulary_logits_need_a_head_that_has_them():
    head = HeadSpec("classification", num_classes=2)
    with pytest.raises(ConfigError, match="--student_model=glmd.*--cloze-eval"):
        check(head, "--student_model=glmd")
    check(head, "--student_model=glmd", "--logitsdistil_wo_inter", "--distill_ft_soft")


@pytest.mark.parametrize(
    "flags",
    [
        ["--student_model=glmd"],
        ["--student_model=kd", "--distill_ft_soft", "--distill_logits_parallel"],
    ],
)
def test_captures_need_whole_samples(flags):
    with pytest.raises(ConfigError, match=rf"{flags[0]}: .*leave out --fast-decode"):
        check(HeadSpec("multi_token_fast"), *flags)
    check(HeadSpec("multi_token"), *flags)
    check(HeadSpec("multi_token_fast"), "--student_model=kd", "--distill_ft_soft")


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--distill_pt_soft"],  # of the other program
        ["--distill_ft_soft", "--distill_soft_rate=0"],
        ["--distill_ft_hard", "--distill_hard_rate=0"],
    ],
)
@pytest.mark.parametrize("method", [["kd"], ["glmd", "--logitsdistil_wo_inter"]])
def test_a_method_needs_a_loss(method, flags):
    flags = [f"--student_model={method[0]}", *method[1:], *flags]
    with pytest.raises(ConfigError, match="no loss is on.*--distill_ft_soft.*_rate"):
        check(HeadSpec("multi_token"), *flags)
    check(HeadSpec("multi_token"), *flags, "--distill_ft_soft", "--distill_soft_rate=0.5")


def check(head: HeadSpec, *flags: str) -> None:
    run = toy_run(*flags, program="finetune")
    check_method(build_student(build_model(run.model, head), run), head, run)


def test_teachers_need_a_method():
    with pytest.raises(AssertionError):
        DistillStep(lm_task(), Local(toy_glm()), (Teacher(toy_glm()),), toy_run(), TrainState())


def test_evaluation_tasks_share_the_students_head():
    run = toy_run("--student_model=kd", program="finetune")
    for kind in ("single_token", "multi_token"):
        task = cloze_task(kind)
        module = toy_student(run, task)
        batch = toy_cloze_batch(2, multi_token=kind == "multi_token")
        assert module(*task.inputs(batch))[0].shape == (2, 2)
