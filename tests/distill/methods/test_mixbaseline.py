"""MixBaseline: what its methods share, and what they do not."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distill.adapters import Adapter
from distill.capture import hidden, merge_hooks, output
from distill.context import Clock
from distill.methods.mixbaseline import MixBaseline
from distill.registry import METHODS, method_args
from distill.student import GLMStudent
from tests.distill.runs import grads_of, take, toy_run, toy_step
from tests.toy import toy_cloze_batch, toy_lm_batch

SAME = "--teacher_hidden_size=16"
INTER, PT = "--mixbaseline_inter_bl", "--mixbaseline_pre_bl_pt_soft"
FT = "--mixbaseline_pre_bl_ft_soft"
SOFT = ["--distill_pt_soft", "--distill_pt_hard"]


def mix_step(*flags: str, program: str = "pretrain"):
    return toy_step(toy_run("--student_model=mixbaseline", *flags, program=program))


def terms_of(step, batch=None) -> dict[str, float]:
    lm = step.run.program == "pretrain"
    output = take(step, batch or (toy_lm_batch(3) if lm else toy_cloze_batch(3)))
    return {name: float(value) for name, value in output.terms.items()}


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> list[GLMStudent]:
    """Methods `first` and `second` that note what happens; each lists itself here when built."""
    method_args()
    built: list[GLMStudent] = []

    class Noting(GLMStudent):
        add, times = 0.0, 1.0

        def __init__(self, language_model, args):
            super().__init__(language_model, args)
            self.seen = []
            self.count = 0
            built.append(self)

        def begin_step(self, clock):
            self.seen.append(("begin_step", clock.iteration))

        def begin_pass(self, clock):
            super().begin_pass(clock)
            self.seen.append(("begin_pass", clock.iteration))

        def method_state(self):
            return {"count": self.count}

        def load_method_state(self, values):
            self.count = values["count"]

        def gradient_points(self):
            return [output()] if self.add else [output(), hidden(1, 2)]

        def take_gradients(self, gradients):
            self.seen.append(("take_gradients", list(gradients)))

        def get_student_hook_op(self, teacher_models=None, **kwargs):
            self.seen.append(("models", len(teacher_models)))
            return {"transformer": {"output": lambda output: output * self.times + self.add}}

    first = type("First", (Noting,), {"times": 2.0})
    second = type("Second", (Noting,), {"add": 3.0})
    monkeypatch.setitem(METHODS, "first", first)
    monkeypatch.setitem(METHODS, "second", second)
    return built


def test_the_published_first_stage_has_the_losses_of_all_four():
    flags = [f"{INTER}=TinyBERT,MiniLMv2,MiniLM,DistilBERT", f"{PT}=DistilBERT", SAME]
    flags += ["--minilmv2_relation_heads=4", "--minilmv2_teacher_layer=4"]
    terms = terms_of(mix_step(*flags, "--distilbert_cos_mask_padding"))
    shown = [name for name in terms if name.count("/") == 1]
    assert shown == [
        "Train/hard_loss",
        "pre_loss/DistilBERT_t0",
        "inter_loss/TinyBERT_t0",
        "inter_loss/MiniLMv2_t0",
        "inter_loss/MiniLM_t0",
        "inter_loss/DistilBERT_t0",
        "teacher_loss/teacher_0_t0",
    ]
    assert terms["teacher_loss/teacher_0_t0"] == pytest.approx(sum(terms[n] for n in shown[1:-1]))
    parts = [v for name, v in terms.items() if name.startswith("inter_loss/TinyBERT/")]
    assert len(parts) == 5
    assert terms["inter_loss/TinyBERT_t0"] == pytest.approx(sum(parts))
    assert "pre_loss/DistilBERT/distilbert_alpha_ce_t0" in terms


def test_step_3_of_the_seeds_readme_works():
    # It crashed there, as the list is empty.
    flags = ["--mixbaseline_wo_inter", "--tinybert_wo_inter", "--distill_ft_soft"]
    flags += ["--distill_ft_hard", "--distill_temperature=10", "--mixbaseline_tinybert_t=1"]
    step = mix_step(*flags, f"{FT}=TinyBERT", program="finetune")
    batch = toy_cloze_batch(3)
    with torch.no_grad():
        models = (step.student.module, step.teachers[0].module)
        s, t = (model(*step.task.inputs(batch))[0] for model in models)
    kd = -100 * ((t / 10).softmax(-1) * (s / 10).log_softmax(-1)).sum(-1).mean()
    soft = -(t.softmax(-1) * s.log_softmax(-1)).sum(-1).mean()
    hard = F.cross_entropy(s, batch.labels)
    expected = {
        "pre_loss/ft_soft_t0": kd,
        "pre_loss/KD_t0": kd,
        "pre_loss/TinyBERT/ft_soft_t0": soft,
        "pre_loss/TinyBERT/ft_hard_t0": hard,
        "pre_loss/TinyBERT_t0": soft + hard,
        "teacher_loss/teacher_0_t0": kd + soft + hard,
    }
    actual = terms_of(step, batch)
    assert {k: actual[k] for k in expected} == pytest.approx(
        {k: float(v) for k, v in expected.items()}, rel=1e-5
    )


def test_hard_labels_count_once():
    flags = [*SOFT, SAME, f"{PT}=DistilBERT,PKD,kd"]
    terms = terms_of(mix_step(*flags))
    assert terms["pre_loss/DistilBERT/distilbert_alpha_mlm_t0"] == 0
    assert "pre_loss/PKD/pt_hard_t0" not in terms
    assert terms["pre_loss/KD/pt_hard_t0"] == terms["Train/hard_loss"] > 0
    terms = terms_of(mix_step(*SOFT, SAME, f"{PT}=kd,DistilBERT"))
    assert "pre_loss/KD/pt_hard_t0" not in terms
    assert terms["pre_loss/DistilBERT/distilbert_alpha_mlm_t0"] == terms["Train/hard_loss"]


@pytest.mark.parametrize("program", ["pretrain", "finetune"])
def test_without_methods_it_is_the_base_class(program):
    stage = "pt" if program == "pretrain" else "ft"
    flags = [f"--distill_{stage}_soft", f"--distill_{stage}_hard", "--distill_logits_parallel"]
    batch = toy_lm_batch(3) if program == "pretrain" else toy_cloze_batch(3)
    mix, kd = (
        toy_step(toy_run(f"--student_model={name}", *flags, program=program))
        for name in ("mixbaseline", "kd")
    )
    losses = [take(step, batch).loss.detach() for step in (mix, kd)]
    torch.testing.assert_close(*losses)


def test_fine_tuning_adds_the_soft_labels_of_the_base_class_pretraining_does_not():
    tuned = mix_step("--distill_ft_soft", f"{FT}=glmd", program="finetune")
    assert {"pre_loss/KD_t0", "pre_loss/LogitsDistil_t0"} <= terms_of(tuned).keys()
    terms = terms_of(mix_step("--distill_pt_soft", f"{PT}=glmd"))
    assert "pre_loss/LogitsDistil_t0" in terms
    assert "pre_loss/KD_t0" not in terms


def test_the_loss_on_logits_that_every_method_can_add_is_there_once():
    flags = [f"{INTER}=glmd,TinyBERT", "--distill_logits_parallel", "--distill_temperature=2"]
    terms = terms_of(mix_step(*flags))
    found = [name for name in terms if "logits_parallel" in name]
    assert found == [
        "inter_loss/LogitsDistil/logits_parallel_t0",
        "inter_loss/logits_parallel_t0",
    ]


def test_temperatures_reach_each_method():
    def kl(*flags: str) -> float:
        return terms_of(mix_step(f"{INTER}=glmd", *flags))["inter_loss/LogitsDistil_t0"]

    alone = take(toy_step(toy_run("--student_model=glmd", "--distill_temperature=7")),
                 toy_lm_batch(3))  # fmt: skip
    expected = float(alone.loss.detach())
    assert kl("--mixbaseline_temperatures=7", "--distill_temperature=2") == pytest.approx(expected)
    assert kl("--distill_temperature=7") == pytest.approx(expected)
    assert kl("--distill_temperature=2") != pytest.approx(expected, rel=1e-3)


def test_weights_reach_both_losses():
    flags = [f"{INTER}=glmd", f"{PT}=glmd", *SOFT, "--mixbaseline_weights=0.25"]
    terms = terms_of(mix_step(*flags))
    part = terms["inter_loss/LogitsDistil/logits_parallel_t0"]
    assert terms["inter_loss/LogitsDistil_t0"] == pytest.approx(part / 4)
    parts = [terms[f"pre_loss/LogitsDistil/pt_{kind}_t0"] for kind in ("soft", "hard")]
    assert terms["pre_loss/LogitsDistil_t0"] == pytest.approx(sum(parts) / 4)


def test_the_glm_is_saved_once_and_parts_under_their_names():
    step = mix_step(f"{INTER}=tinybert,RAIL_KD", "--rail_kd_u=8")
    glm = toy_step(toy_run("--student_model=kd")).student.module.state_dict()
    state = step.student.module.state_dict()
    own = [key for key in state if key not in glm]
    assert list(state)[: len(glm)] == list(glm)
    assert own[:2] == ["student.TinyBERT.fit_dense.weight", "student.TinyBERT.fit_dense.bias"]
    assert own[2:]
    assert all(key.startswith("student.RAIL_KD.") for key in own[2:])
    assert sum(1 for _ in step.student.module.parameters()) == len(state)
    changed = {key: value + 1 for key, value in state.items()}
    step.student.module.load_state_dict(changed)
    again = step.student.module.state_dict()
    assert all(torch.equal(again[key], value) for key, value in changed.items())


def test_an_adapter_starts_as_that_of_the_method_alone():
    run = toy_run("--student_model=mixbaseline", f"{INTER}=glmd,tinybert")
    mix = MixBaseline(nn.Identity(), run)
    alone = METHODS["tinybert"](nn.Identity(), toy_run("--student_model=tinybert"))
    assert isinstance(mix.TinyBERT.fit_dense, Adapter)
    assert torch.equal(mix.TinyBERT.fit_dense.weight, alone.fit_dense.weight)


def test_captures_are_united_and_each_sees_its_own():
    step = mix_step(f"{INTER}=TinyBERT,DistilBERT,glmd", SAME)
    mix = step.method
    hook = mix.get_student_hook()
    apart = [method.get_student_hook() for method in (mix.TinyBERT, mix.DistilBERT)]
    assert hook == merge_hooks(*apart, {"logits_parallel": None})
    seen = []

    def look(s_inter_vars, t_inter_vars, s_hook, t_hook, **kwargs):
        seen.append((s_hook, t_hook))
        return 0.0

    mix.DistilBERT.inter_loss = look
    take(step, toy_lm_batch(2))
    ((s_hook, t_hook),) = seen
    assert s_hook.keys() == t_hook.keys() == {"transformer"}
    assert s_hook["transformer"].keys() == t_hook["transformer"].keys() == {"output"}
    assert all(isinstance(h["transformer"]["output"], int) for h in (s_hook, t_hook))


def test_without_inter_nothing_is_captured():
    step = mix_step(f"{INTER}=TinyBERT,glmd", "--mixbaseline_wo_inter", *SOFT)
    assert step.method.get_student_hook() == step.method.get_teacher_hook() == {}
    assert not any(name.startswith("inter_loss") for name in terms_of(step))


@pytest.mark.parametrize("compat", ["", "D32"])
def test_tinyberts_projection_is_its_own_unless_asked_for(compat):
    flags = [f"{INTER}=DistilBERT,TinyBERT", "--distilbert_cos_mask_padding", SAME]
    step = mix_step(*flags, f"--compat={compat}")
    batch = toy_lm_batch(2)
    terms = terms_of(step, batch)
    inputs, captured = step.task.inputs(batch), {}
    with torch.no_grad():
        for name, model in (("s", step.student.module), ("t", step.teachers[0].module)):
            _, found = model(*inputs, hook={"transformer": {"output": None}})
            captured[name] = found["transformer", "output"]
    if compat:
        captured["s"] = step.method.TinyBERT.fit_dense(captured["s"])
    tokens = step._masks(batch)["tokens"]
    distance = 1 - F.cosine_similarity(captured["s"], captured["t"], dim=-1)
    expected = float((distance * tokens).sum().detach() / tokens.sum())
    assert terms["inter_loss/DistilBERT_t0"] == pytest.approx(expected, rel=1e-5)


def test_time_edits_and_gradients_reach_every_method(two):
    flags = [f"{INTER}=first,second", f"{PT}=kd", *SOFT, "--forward_repeat_num=1"]
    step = mix_step(*flags)
    step.state.iteration = 4
    take(step, toy_lm_batch(2))
    for method, points in zip(two, ([output(), hidden(1, 2)], [output()]), strict=True):
        expected = [("begin_step", 4), ("begin_pass", 4), ("models", 1)]
        expected += [("take_gradients", points), ("begin_pass", 4), ("models", 1)]
        assert method.seen == expected
        assert method.clock == Clock(iteration=4, total=step.total, repeat=1)


def test_a_method_in_no_inter_list_has_no_edits(two):
    step = mix_step(f"{PT}=first,second", *SOFT)
    assert step.method.get_student_hook_op(teacher_models=[]) == {}
    assert step.method.gradient_points() == []


@pytest.mark.parametrize("names", ["first,second", "second,first"])
def test_edits_of_one_tensor_follow_each_other(two, names):
    step = mix_step(f"{INTER}={names}", *SOFT)
    edit = step.method.get_student_hook_op(teacher_models=[])["transformer"]["output"]
    x = torch.tensor([1.0, -2.0])
    expected = x * 2 + 3 if names == "first,second" else (x + 3) * 2
    assert torch.equal(edit(output=x), expected)


def test_what_methods_remember_is_kept_apart(two):
    flags = [f"{INTER}=first,second,glmd", *SOFT]
    step = mix_step(*flags)
    two[0].count, two[1].count = 5, 7
    step.remember()
    assert step.state.method == {"first": {"count": 5}, "second": {"count": 7}}
    again = mix_step(*flags).method
    again.load_method_state(step.state.method)
    assert (again.first.count, again.second.count) == (5, 7)
    fewer = mix_step(f"{INTER}=second", *SOFT).method
    fewer.load_method_state(step.state.method)
    assert fewer.second.count == 7


def test_stages_and_draws_follow_the_clock_of_the_mix():
    flags = [f"{INTER}=SID,TinyBERT", SAME, "--tinybert_random_layers", "--tinybert_random_e=0"]
    flags += ["--tinybert_random_i=1", "--train-iters=30", *SOFT]
    step = mix_step(*flags)
    alone = toy_step(toy_run("--student_model=tinybert", *flags[2:]))
    stages, draws = [], []
    for iteration in (0, 5, 11, 17, 23, 29):
        for each in (step, alone):
            each.state.iteration = iteration
            take(each, toy_lm_batch(2))
        stages.append(step.method.SID.stages.now)
        pair = [m.get_teacher_hook() for m in (step.method.TinyBERT, alone.method)]
        assert pair[0] == pair[1]
        draws.append(str(pair[0]))
    assert stages == [1, 1, 2, 2, 3, 3]
    assert len(set(draws)) > 1


@pytest.mark.parametrize("name", ["mgskd", "TinyBERT"])
def test_losses_computed_again_are_those_of_their_pass(name):
    # What a method draws in its loss must be drawn again as it was, though a pass lies between.
    flags = [f"{INTER}={name}", "--mgskd_multi_heads=4", "--forward_repeat_num=1"]
    grads = []
    for more in ([], ["--mixbaseline_inter_checkpoint"]):
        step = mix_step(*flags, *more)
        terms = terms_of(step)
        assert all(not method.terms for method in (step.method,))
        grads.append((grads_of(step.student.module), terms))
    assert grads[0][1] == pytest.approx(grads[1][1])
    for key, grad in grads[0][0].items():
        torch.testing.assert_close(grads[1][0][key], grad, rtol=1e-5, atol=1e-6, msg=key)


def test_losses_computed_again_keep_less():
    kept = []
    for more in ([], ["--mixbaseline_inter_checkpoint"]):
        step = mix_step(f"{INTER}=TinyBERT", *more)
        sizes: list[int] = []

        def pack(x, sizes=sizes):
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            step(toy_lm_batch(3), step.count([toy_lm_batch(3)]))
        kept.append(sum(sizes))
    assert kept[1] < kept[0]


def test_a_method_that_counts_in_its_loss_is_computed_once(monkeypatch):
    method_args()
    calls = []

    class Free(GLMStudent):
        def pairs(self, t_no):
            yield "output", output(), output()

        def loss(self, name, point, student, teacher, ctx):
            calls.append(type(self).__name__)
            return super().loss(name, point, student, teacher, ctx)

    class Counting(Free):
        def method_state(self):
            return {"calls": len(calls)}

    for name, cls in (("free", Free), ("counting", Counting)):
        monkeypatch.setitem(METHODS, name, cls)
    flags = [f"{INTER}=free,counting", "--mixbaseline_inter_checkpoint", SAME]
    for compat, expected in (("", ["Free", "Counting", "Free"]), ("D20", ["Free", "Counting"])):
        take(mix_step(*flags, f"--compat={compat}"), toy_lm_batch(2))
        assert calls == expected
        calls.clear()


class ByTheSeedsApi(GLMStudent):
    """A user's method, as the seed tells to write one."""

    def get_student_hook(self, **kwargs):
        return {"transformer": {"output": None}}

    def get_teacher_hook(self, **kwargs):
        return {"transformer": {"output": None}}

    def inter_loss(self, s_inter_vars, t_inter_vars, s_hook, t_hook, **kwargs):
        (s,), (t,) = ([v[h["transformer"]["output"]]] for v, h in
                      ((s_inter_vars, s_hook), (t_inter_vars, t_hook)))  # fmt: skip
        return (s - t).square().mean()


def test_methods_of_the_seeds_api_and_of_ours_go_together(monkeypatch):
    method_args()
    monkeypatch.setitem(METHODS, "seeds", ByTheSeedsApi)
    terms = terms_of(mix_step(f"{INTER}=seeds,PKD", SAME))
    alone = terms_of(toy_step(toy_run("--student_model=seeds", SAME)))
    assert terms["inter_loss/seeds_t0"] == pytest.approx(alone["teacher_loss/teacher_0_t0"])


def test_only_target_rows_are_computed_where_all_agree():
    flags = [f"{PT}=PKD,DistilBERT", *SOFT, SAME]
    assert mix_step(*flags).method.needs_targets_only()
    assert not mix_step(*flags, "--distilbert_ce_mask_padding").method.needs_targets_only()
    assert not mix_step(*SOFT, "--distill_wo_loss_mask").method.needs_targets_only()


def test_keep_batch_has_one_loss_a_sample():
    step = mix_step(f"{INTER}=TinyBERT,glmd", "--mixbaseline_weights=2,3")
    calls = []
    inter_loss = step.method.inter_loss
    step.method.inter_loss = lambda *a, **k: calls.append((a, k)) or inter_loss(*a, **k)
    take(step, toy_lm_batch(3))
    ((args, kwargs),) = calls
    per_sample = inter_loss(*args, **(kwargs | {"keep_batch": True}))
    assert per_sample.shape == (3,)
    torch.testing.assert_close(per_sample.mean(), inter_loss(*args, **kwargs))
