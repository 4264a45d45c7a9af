"""GLMStudent: the seed's API, a subclass written for the seed, checkpoint keys."""

from typing import Any

import pytest
import torch
from torch import nn

import mpu
from distill.capture import Captured, attention_scores, hidden, logits, to_hook
from distill.context import LossContext
from distill.losses import kl, mse
from distill.registry import METHODS
from distill.student import GLMStudent, build_student, find_student
from model.build import HeadSpec, add_head, build_model
from tests.distill.runs import (
    Local,
    cloze_task,
    lm_task,
    take,
    toy_run,
    toy_step,
    toy_student,
    toy_teachers,
)
from tests.toy import randomize, toy_cloze_batch, toy_glm, toy_lm_batch


class SeedMethod(GLMStudent):
    """As the seed's README tells to write a method: hooks by hand, flat arguments, super calls."""

    def __init__(self, language_model, args, **kwargs):
        super().__init__(language_model, args, **kwargs)
        self.fit_dense = mpu.ColumnParallelLinear(
            args.hidden_size,
            args.teacher_hidden_size,
            gather_output=True,
            init_method=nn.init.xavier_normal_,
        )

    def get_teacher_hook(self, **kwargs):
        args = self.args
        layers = {
            i: {"layernorm_output": None}
            for i in range(0, args.teacher_num_layers, args.teacher_num_layers // args.num_layers)
        }
        return {"transformer": {"layers": layers, "output": None}}

    def get_student_hook(self, **kwargs):
        layers = {i: {"layernorm_output": None} for i in range(self.args.num_layers)}
        return {"transformer": {"layers": layers, "output": None}}

    def inter_loss(self, s_inter_vars, t_inter_vars, s_hook, t_hook, **kwargs):
        def states(inter_vars, hook):
            tree = hook["transformer"]
            places = [layer["layernorm_output"] for layer in tree["layers"].values()]
            return [inter_vars[place] for place in [*places, tree["output"]]]

        loss_ = 0.0
        for s, t in zip(states(s_inter_vars, s_hook), states(t_inter_vars, t_hook), strict=True):
            mse_loss = torch.nn.functional.mse_loss(self.fit_dense(s), t)
            self.add_summary("inter_loss/hidden_states", mse_loss)
            loss_ = loss_ + mse_loss
        return loss_ + super().inter_loss(s_inter_vars, t_inter_vars, s_hook, t_hook, **kwargs)


@pytest.fixture
def seed_method(monkeypatch: pytest.MonkeyPatch) -> type[GLMStudent]:
    """The method above, registered for one test."""
    import distill.methods  # noqa: F401 - before the name is added

    monkeypatch.setitem(METHODS, "seed_method", SeedMethod)
    return SeedMethod


@pytest.mark.parametrize("program", ["pretrain", "finetune"])
@pytest.mark.parametrize("extra", [[], ["--distill_logits_parallel", "--distill_temperature=2"]])
def test_a_subclass_written_for_the_seed_runs_unchanged(seed_method, program, extra):
    run = toy_run("--student_model=seed_method", *extra, program=program)
    step = toy_step(run, lm_task() if program == "pretrain" else cloze_task())
    batch = toy_lm_batch(2) if program == "pretrain" else toy_cloze_batch(2)
    output = take(step, batch)
    # The same by hand, from captures of points.
    student, teacher = step.student.module, step.teachers[0].module
    s = capture(student, step.task.inputs(batch), [hidden(i, 2) for i in range(3)] + [logits()])
    t = capture(teacher, step.task.inputs(batch), [hidden(i, 4) for i in (0, 2, 4)] + [logits()])
    dense = step.method.fit_dense
    expected = sum(mse(dense(a), b) for a, b in zip(s[:3], t[:3], strict=True))
    if extra:
        rows = step._context(batch, step_rows(step, batch)).rows["tokens"]
        expected = expected + kl(s[3], t[3], layout=logits().layout, rows=rows, temperature=2.0)
    torch.testing.assert_close(output.loss, expected)
    assert dense.weight.grad.any()
    assert "inter_loss/hidden_states_t0" in output.terms
    assert ("inter_loss/logits_parallel_t0" in output.terms) == bool(extra)


def step_rows(step: Any, batch: Any) -> dict:
    masks, counts = step._masks(batch), step.count([batch])
    return step._rows(batch, masks, counts, step._hard_rows(batch, masks, counts))


def capture(module: nn.Module, inputs: tuple, points: list) -> list[torch.Tensor]:
    hook, inter_vars = to_hook(points), []
    mpu.hook_model(hook, inter_vars, module, *inputs)
    captured = Captured(hook, inter_vars)
    return [captured[point] for point in points]


def test_flat_arguments_are_read_only(seed_method):
    student = toy_student(toy_run("--student_model=seed_method"), lm_task())
    args = student.args
    assert (
        args.hidden_size,
        args.teacher_hidden_size,
        args.num_layers,
        args.teacher_num_layers,
    ) == (16, 24, 2, 4)
    assert args.distill_temperature == 1.0
    with pytest.raises(AttributeError):
        args.distill_temperature = 3.0


@pytest.mark.parametrize("kind", ["lm", "single_token", "multi_token", "classification"])
def test_checkpoint_keys_are_bare_in_every_stack(seed_method, kind):
    run = toy_run("--student_model=seed_method")
    head = HeadSpec(kind, num_classes=2)
    module = add_head(build_student(build_model(run.model, head), run), head, run.model)
    state = module.state_dict()
    glm = [k for k in state if not k.startswith(("student.", "pool_layer.", "multichoice_head."))]
    assert glm == list(toy_glm().state_dict()), "the GLM's keys, in the official order"
    assert {"student.fit_dense.weight", "student.fit_dense.bias"} <= state.keys()
    other = randomize(
        add_head(build_student(build_model(run.model, head), run), head, run.model), 5
    )
    missing = other.load_state_dict(state, strict=True)
    assert not missing.missing_keys
    assert not missing.unexpected_keys
    assert all(torch.equal(v, state[k]) for k, v in other.state_dict().items())


def test_a_students_checkpoint_is_a_glms(seed_method):
    student = toy_student(toy_run("--student_model=seed_method"), lm_task())
    glm = toy_glm(seed=9)
    state = {k: v for k, v in student.state_dict().items() if not k.startswith("student.")}
    glm.load_state_dict(state, strict=True)
    batch = toy_lm_batch(1)
    inputs = (batch.tokens, batch.position_ids, batch.attention_mask)
    assert torch.equal(glm(*inputs)[0], student(*inputs)[0])


def test_unknown_keys_are_reported(seed_method):
    student = toy_student(toy_run("--student_model=seed_method"), lm_task())
    with pytest.raises(RuntimeError, match="nonsense"):
        student.load_state_dict(student.state_dict() | {"student.nonsense": torch.zeros(1)})


def test_parts_and_prediction_terms_are_all_a_method_needs_to_override():
    class Halved(GLMStudent):
        def add_parts(self):
            self.scale = torch.nn.Parameter(torch.tensor(0.5))

        def prediction_terms(self, given, ctx):
            terms = super().prediction_terms(given, ctx)
            return {"soft": self.scale * terms["soft"], "hard": terms["hard"], "own": 7.0}

    flags = (
        "--student_model=kd",
        "--distill_pt_soft",
        "--distill_pt_soft_mse",
        "--distill_pt_hard",
    )
    task, run = lm_task(), toy_run(*flags)
    student = Halved(toy_student(run, task).origin_model, run)
    assert "student.scale" in student.state_dict()
    s, t = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0, 2.0]]])
    parts = student.pre_loss(s, t, torch.tensor(10.0), return_dict=True, mse_t_w=0.5)
    expected_soft = 0.5 * ((1 - 1.5) ** 2 + (2 - 1) ** 2) / 2
    assert float(parts["soft"].detach()) == pytest.approx(expected_soft)
    assert float(parts["loss"].detach()) == pytest.approx(expected_soft + 10 + 7)
    assert student.pre_loss(s, t, torch.tensor(10.0), mse_t_w=0.5) == parts["loss"]


def test_a_misspelt_keyword_is_an_error():
    # The seed swallowed `maks=` and so never masked a loss.
    student = toy_student(toy_run("--student_model=kd", "--distill_pt_soft"), lm_task())
    with pytest.raises(TypeError, match="maks"):
        student.pre_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor(0.0), maks=None)
    with pytest.raises(TypeError, match="keepbatch"):
        student.inter_loss([], [], {}, {}, keepbatch=True)


class Pairs(GLMStudent):
    """The house's way: rows of points."""

    def pairs(self, t_no):
        yield "hidden_states.0", hidden(0, 2), hidden(0, 2)
        yield "attention_scores.2", attention_scores(2), attention_scores(2)


def test_pairs_are_all_a_method_needs():
    run = toy_run("--student_model=kd")
    student = randomize(Pairs(build_model(run.model, HeadSpec("lm")), run), 0)
    glm = toy_glm(seed=4)
    batch = toy_lm_batch(2)
    inputs = (batch.tokens, batch.position_ids, batch.attention_mask)
    s_hook, t_hook, s_vars, t_vars = (
        student.get_student_hook(),
        student.get_teacher_hook(t_no=0),
        [],
        [],
    )
    mpu.hook_model(s_hook, s_vars, student, *inputs)
    mpu.hook_model(t_hook, t_vars, glm, *inputs)
    loss = student.inter_loss(s_vars, t_vars, s_hook, t_hook)
    pairs = [
        (Captured(s_hook, s_vars)[s], Captured(t_hook, t_vars)[t]) for _, s, t in student.pairs(0)
    ]
    expected = [torch.nn.functional.mse_loss(s, t) for s, t in pairs]
    torch.testing.assert_close(loss, sum(expected))
    terms = student.take_terms()
    assert list(terms) == ["inter_loss/hidden_states.0", "inter_loss/attention_scores.2"]
    assert student.take_terms() == {}
    per_sample = student.inter_loss(s_vars, t_vars, s_hook, t_hook, keep_batch=True)
    torch.testing.assert_close(per_sample.mean(), loss)


def test_the_loss_that_every_method_can_add_has_a_name_of_its_own():
    flags = ["--distill_temperature=2", "--distill_logits_parallel", "--distill_logit_mse"]
    alone, both = (
        take(toy_step(toy_run(f"--student_model={name}", *flags)), toy_lm_batch(2))
        for name in ("kd", "glmd")
    )
    name = "inter_loss/logits_parallel_t0"  # the seed's
    added = both.terms["inter_loss/distill_logits_parallel_t0"]
    torch.testing.assert_close(added, alone.terms[name])
    torch.testing.assert_close(both.terms[name] + added, both.loss.detach())
    assert not torch.isclose(both.terms[name], added)
    assert len([term for term in alone.terms if term.startswith("inter_loss/")]) == 1


def test_show_flags_silence_the_log():
    run = toy_run("--student_model=kd")
    student = Pairs(build_model(run.model, HeadSpec("lm")), run, show_inter=False)
    s_vars = t_vars = [torch.zeros(1, 2, 3)] * 2
    hook = {"transformer": {"layers": {0: {"layernorm_output": 0}, 1: {"attention_scores": 1}}}}
    student.inter_loss(s_vars, t_vars, hook, hook)
    assert student.take_terms() == {}


def test_hooks_given_to_the_base_are_merged():
    run = toy_run("--student_model=kd", "--distill_logits_parallel")
    student = build_student(build_model(run.model, HeadSpec("lm")), run)
    mine = {"transformer": {"output": None}}
    for hook in (
        student.get_student_hook(hook_before_analysis=mine),
        student.get_teacher_hook(t_no=0, hook_before_analysis=mine),
    ):
        assert hook == {"transformer": {"output": None}, "logits_parallel": None}


def test_without_a_method_the_glm_is_trained_itself():
    run = toy_run()
    glm = build_model(run.model, HeadSpec("lm"))
    assert build_student(glm, run) is glm
    assert find_student(glm) is None


def test_the_student_is_found_below_a_head():
    run = toy_run("--student_model=kd", program="finetune")
    module = toy_student(run, cloze_task())
    assert isinstance(find_student(module), METHODS["kd"])
    assert not isinstance(module, GLMStudent)


def test_context_rows_fall_back_to_a_plain_mean():
    assert LossContext().first_rows("tokens") is None
    assert LossContext(rows={"all": 1}).first_rows("tokens", "all") == 1


def test_the_local_engine_of_these_tests_passes_hooks():
    glm, batch = toy_glm(), toy_lm_batch(1)
    hook = {"logits_parallel": None}
    inputs = (batch.tokens, batch.position_ids, batch.attention_mask)
    (outputs, captured) = Local(glm)(*inputs, hook=hook)
    assert captured[("logits_parallel",)] is outputs[0]
    assert toy_teachers(toy_run(), lm_task()) == ()
