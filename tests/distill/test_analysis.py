"""Similarity of all layers, in the log and nowhere else."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mpu
from config import ConfigError
from distill.analysis import TEMPERATURES, Analysis
from distill.context import Clock
from distill.step import check_needs
from model.build import HeadSpec
from tasks.choice import ChoiceTask
from tests.distill.runs import grads_of, take, toy_run, toy_step
from tests.ranks import run_ranks
from tests.toy import toy_cloze_batch, toy_lm_batch

SAME = "--teacher_hidden_size=16"
KD = ["--student_model=kd", "--distill_pt_soft", "--distill_ft_soft"]
EVERY = ["--distil_analysis_inter", "--log-interval=1"]
IN_LAYERS = {
    "attention_scores": "attention_scores",
    "query": "query_layer",
    "key": "key_layer",
    "value": "value_layer",
}


def analysed(*flags: str, program: str = "pretrain", task=None, batch=None):
    """(step, batch, analysis terms) of one step."""
    step = toy_step(toy_run(*KD, *EVERY, *flags, program=program), task)
    if batch is None:
        batch = toy_lm_batch(3) if program == "pretrain" else toy_cloze_batch(2, choices=3)
    output = take(step, batch)
    kind = "analysis/"
    return step, batch, {k: float(v) for k, v in output.terms.items() if k.startswith(kind)}


def captures(model, inputs, num_layers: int) -> dict[tuple, Tensor]:
    names = ["layernorm_output", *IN_LAYERS.values()]
    layers = {i: dict.fromkeys(names) for i in range(num_layers)}
    hook = {"transformer": {"layers": layers, "output": None}, "logits_parallel": None}
    with torch.no_grad():
        return model(*inputs, hook=hook)[1]


def numbers(x: Tensor, y: Tensor, positions: Tensor, columns: Tensor | None) -> dict[str, float]:
    """By loops: [b, s, ...] or [b, n, s, ...] over the rows under the mask."""
    x, y = (z if z.dim() == 4 else z[:, None] for z in (x.double(), y.double()))
    found: dict[str, list[float]] = {}
    for b, s in positions.nonzero().tolist():
        for n in range(x.size(1)):
            pair = [z[b, n, s] for z in (x, y)]
            if columns is not None:
                pair = [z[columns[b]] for z in pair]
            found.setdefault("mse", []).append(float((pair[0] - pair[1]).square().mean()))
            for t in TEMPERATURES:
                q, p = (F.softmax(z / t, -1) for z in pair)
                kl = float((p * (p.clamp(min=1e-300).log() - q.clamp(min=1e-300).log())).sum())
                found.setdefault(f"kl_T{t}", []).append(t * t * kl)
    return {name: sum(values) / len(values) for name, values in found.items()}


def relation(x: Tensor) -> Tensor:
    return x.double() @ x.double().transpose(-1, -2) / x.size(-1) ** 0.5


@pytest.mark.parametrize("program", ["pretrain", "finetune"])
def test_every_number_is_its_formula(program):
    step, batch, actual = analysed(SAME, program=program)
    inputs = step.task.inputs(batch)
    s = captures(step.student.module, inputs, 2)
    t = captures(step.teachers[0].module, inputs, 4)
    tokens = step._masks(batch)["tokens"] > 0
    last = ("transformer", "output")
    pairs = {"logits": (s["logits_parallel",], t["logits_parallel",])}
    for i, e in enumerate((0, 2, 4)):
        states = [
            captured[last if j == number else ("transformer", "layers", j, "layernorm_output")]
            for captured, j, number in ((s, i, 2), (t, e, 4))
        ]
        pairs[f"hidden_states.{i}"] = tuple(states)
    for name, place in IN_LAYERS.items():
        for i, e in ((1, 2), (2, 4)):
            at = [("transformer", "layers", j - 1, place) for j in (i, e)]
            pairs[f"{name}.{i}"] = (s[at[0]], t[at[1]])
    expected = {}
    for name, (x, y) in pairs.items():
        columns = tokens if "scores" in name else None
        for term, value in numbers(x, y, tokens, columns).items():
            expected[f"analysis/{name}/{term}_t0"] = value
        if name != "logits" and "scores" not in name:
            for term, value in numbers(relation(x), relation(y), tokens, tokens).items():
                expected[f"analysis/{name}/relation_{term}_t0"] = value
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name] == pytest.approx(value, rel=2e-4, abs=2e-6), name


def test_of_other_widths_only_relations_scores_and_logits_are_compared():
    _, _, terms = analysed()
    direct = {name.split("/")[1].split(".")[0] for name in terms if "relation" not in name}
    assert direct == {"attention_scores", "logits"}
    related = {name.split("/")[1].split(".")[0] for name in terms if "relation" in name}
    assert related == {"hidden_states", "query", "key", "value"}


def test_of_other_heads_only_what_has_none():
    _, _, terms = analysed("--teacher_num_attention_heads=2")
    assert {name.split("/")[1].split(".")[0] for name in terms} == {"hidden_states", "logits"}


def test_a_head_without_words_has_no_logits():
    head = HeadSpec("classification", num_classes=2)
    task = ChoiceTask("toy", head)
    batch = toy_cloze_batch(2, multi_token=False)
    _, _, terms = analysed(program="finetune", task=task, batch=batch)
    assert terms
    assert not any("logits" in name for name in terms)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("method", ["kd", "tinybert"])
def test_training_does_not_see_it(method, dropout):
    results = []
    flags = ["--distill_pt_soft", "--distill_pt_hard", "--log-interval=1"]
    for more in ([], ["--distil_analysis_inter"]):
        run = toy_run(f"--student_model={method}", *flags, *more)
        model = dataclasses.replace(run.model, attention_dropout=dropout, output_dropout=dropout)
        step = toy_step(dataclasses.replace(run, model=model))
        step.student.module.train()
        mpu.seed_step(1, 0, 0, 0)
        output = take(step, toy_lm_batch(3))
        drawn = torch.rand(3)
        results.append((output.loss.detach(), grads_of(step.student.module), output.terms, drawn))
        assert step.student.module.training
    (loss, grads, terms, drawn), (other, other_grads, other_terms, other_drawn) = results
    assert torch.equal(loss, other)
    assert torch.equal(drawn, other_drawn), "no random number more is drawn"
    assert all(torch.equal(grad, other_grads[key]) for key, grad in grads.items())
    assert terms.keys() < other_terms.keys()
    assert all(not torch.as_tensor(v).requires_grad for v in other_terms.values())


def test_a_student_equal_to_its_teacher_is_at_distance_zero():
    step = toy_step(toy_run(*KD, *EVERY, SAME, "--teacher_num_layers=2"))
    step.teachers[0].module.load_state_dict(step.student.module.state_dict())
    terms = take(step, toy_lm_batch(2)).terms
    found = [float(v) for k, v in terms.items() if k.startswith("analysis/")]
    assert len(found) == 126
    assert max(abs(v) for v in found) < 1e-5


def test_padding_has_no_part_in_it():
    batch = toy_lm_batch(3)
    longer = toy_lm_batch(3, pad_to=batch.tokens.size(1) + 5)
    short, long = (analysed(SAME, batch=b)[2] for b in (batch, longer))
    assert long == pytest.approx(short, rel=1e-4, abs=1e-6)


def test_only_steps_that_are_logged_and_the_passes_asked_for():
    run = toy_run(*KD, "--distil_analysis_inter", "--log-interval=5", "--forward_repeat_num=2",
                  "--distil_analysis_frcn=0,2")  # fmt: skip
    analysis = Analysis(run)
    clocks = [
        Clock(iteration=i, total=12, micro_step=m, repeat=r)
        for i in range(12)
        for m in range(2)
        for r in range(3)
    ]
    wanted = [(c.iteration, c.micro_step, c.repeat) for c in clocks if analysis.wanted(c)]
    assert wanted == [(i, 0, r) for i in (4, 9, 11) for r in (0, 2)]
    assert not any(Analysis(toy_run(*KD, "--log-interval=5")).wanted(c) for c in clocks)


def test_passes_have_names_of_their_own():
    flags = ["--forward_repeat_num=1", "--distil_analysis_frcn=1", "--distill_random_data=replace"]
    _, _, terms = analysed(*flags, "--distill_random_data_n=1")
    assert terms
    assert all(name.endswith("_t0_repeat1") for name in terms)


def test_nothing_runs_in_between(monkeypatch):
    step = toy_step(toy_run(*KD, "--distil_analysis_inter", "--log-interval=5"))
    calls = []
    for model in (step.student.module, step.teachers[0].module):
        model.register_forward_hook(lambda *a: calls.append(1))
    take(step, toy_lm_batch(2))
    assert len(calls) == 2
    step.state.iteration = 4
    take(step, toy_lm_batch(2))
    assert len(calls) == 6


def test_it_works_where_the_teachers_forward_is_left_out():
    flags = ["--student_model=theseus", "--distill_pt_hard", "--mt_disable_operation=1", SAME]
    step = toy_step(toy_run(*flags, *EVERY))
    assert any(name.startswith("analysis/") for name in take(step, toy_lm_batch(2)).terms)


@pytest.mark.parametrize(
    ("flags", "kind", "words"),
    [
        (["--num-layers=5"], "lm", "--num-layers=5: --distil_analysis_inter gives"),
        ([], "multi_token_fast", "--distil_analysis_inter: .*leave out one of them"),
    ],
)
def test_what_it_needs(flags, kind, words):
    run = toy_run(*KD, *flags)
    check_needs(run, HeadSpec(kind))
    with pytest.raises(ConfigError, match=words):
        check_needs(toy_run(*KD, *EVERY, *flags), HeadSpec(kind))


def on_rank(rank: int, world_size: int, program: str) -> dict[str, float]:
    mpu.initialize_model_parallel(world_size)
    return analysed(SAME, program=program)[2]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("program", ["pretrain", "finetune"])
def test_the_numbers_do_not_depend_on_p(size, program):
    expected = analysed(SAME, program=program)[2]
    for actual in run_ranks(size, on_rank, program):
        assert actual == pytest.approx(expected, rel=1e-3, abs=1e-5)
