"""MGSKD: how levels, spans and means are put together; single structures are in test_triplets."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from config import ConfigError
from distill.capture import Captured, hidden
from distill.context import Clock
from distill.methods.mgskd import MGSKDArgs
from distill.registry import METHODS
from distill.step import DistillStep
from distill.triplets import pair_differences, sample_differences, triplet_differences
from model.build import HeadSpec
from mpu import hook_model
from tests.distill.runs import grads_of, rows_of, take, toy_run, toy_step
from tests.toy import toy_cloze_batch, toy_lm_batch

HEADS, K1, K2 = 4, 5, 4
FLAGS = [
    "--student_model=mgskd",
    f"--mgskd_multi_heads={HEADS}",
    f"--mgskd_triplet_k1={K1}",
    f"--mgskd_triplet_k2={K2}",
]
NAMES = [f"inter_loss/hidden_states.{i}_t0" for i in range(3)]


def step_of(*flags: str, program: str = "pretrain", iteration: int = 0) -> DistillStep:
    return toy_step(toy_run(*FLAGS, *flags, program=program), iteration=iteration)


def states(step: DistillStep, batch: Any) -> list[tuple[Tensor, Tensor]]:
    """(student, teacher), each [b, s, h], of each layer that is compared."""
    inputs, method = step.task.inputs(batch), step.method
    own, target = method.get_student_hook(), method.get_teacher_hook()
    raw: list[Tensor] = []
    with torch.no_grad():
        hook_model(own, raw, step.student.module, *inputs)
        output = step.teachers[0](inputs, target)
    own, target = Captured(own, raw), Captured(target, output.captured)
    return [(own[s], target[t]) for _, s, t in method.pairs(0)]


def lengths_of(batch: Any) -> list[int]:
    positions = batch.position_ids.flatten(0, -3)
    return [int(row[0].gt(0).nonzero().max()) + 1 for row in positions]


def ratio(structure: tuple[Tensor, Tensor]) -> float:
    sums, counts = structure
    return float(sums.sum() / counts.sum().clamp(min=1))


def units_of(own: Tensor, target: Tensor) -> float:
    """TP of one sequence, [n, h] twice."""
    pair, mask = (own[None], target[None]), torch.ones(1, len(own))
    triplets = triplet_differences(*pair, mask, HEADS, K1, K2)
    return ratio(pair_differences(*pair, mask, HEADS)) + ratio(triplets)


def cut(x: Tensor, spans: list[int]) -> Tensor:
    """[n, h] -> means of its spans."""
    return torch.stack([part.mean(0) for part in x.split(spans)])


def samples_of(own: Tensor, target: Tensor, lengths: list[int]) -> float:
    pooled = [
        torch.stack([row[:n].mean(0) for row, n in zip(x, lengths, strict=True)])
        for x in (own, target)
    ]
    return ratio(sample_differences(*pooled, torch.ones(len(lengths)), HEADS))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def terms_of(step: DistillStep, batch: Any) -> list[float]:
    terms = take(step, batch).terms
    return [float(terms[name]) for name in NAMES]


@pytest.mark.parametrize("program", ["pretrain", "finetune"])
def test_the_formula(program):
    batch = toy_lm_batch(4) if program == "pretrain" else toy_cloze_batch(2)
    step = step_of(program=program)
    layers, lengths = states(step, batch), lengths_of(batch)
    assert len(set(lengths)) > 1
    expected = []
    for own, target in layers[:2]:
        rows = [(s[:n], t[:n]) for s, t, n in zip(own, target, lengths, strict=True)]
        spans = [step.method.draw_spans(n) for n in lengths]
        whole = mean([units_of(*row) for row in rows])
        parts = [units_of(cut(s, c), cut(t, c)) for (s, t), c in zip(rows, spans, strict=True)]
        expected.append(whole + mean(parts))
    expected.append(4 * samples_of(*layers[2], lengths))
    assert terms_of(step, batch) == pytest.approx(expected, rel=1e-4)


def test_the_seed_cuts_the_padded_length_and_pools():
    batch = toy_lm_batch(3)
    step = step_of("--compat=D3", "--mgskd_sample_level_m=3")
    lengths, size = lengths_of(batch), batch.tokens.size(1)
    spans = step.method.draw_spans(size)
    starts = [sum(spans[:i]) for i in range(len(spans))]
    mask = torch.tensor([[float(i < n) for i in range(size)] for n in lengths])
    of_spans = torch.tensor([[float(start < n) for start in starts] for n in lengths])
    assert not bool(of_spans.all())
    expected = []
    for pair in states(step, batch):
        total = 0.0
        of_cuts = [torch.stack([cut(row, spans) for row in x]) for x in pair]  # padding included
        for states_of, real in ((pair, mask), (of_cuts, of_spans)):
            total += ratio(pair_differences(*states_of, real, HEADS))
            total += ratio(triplet_differences(*states_of, real, HEADS, K1, K2))
        expected.append(total)
    assert terms_of(step, batch) == pytest.approx(expected, rel=1e-4)


def test_one_sample_level_is_the_same_in_both_modes():
    batch, flags = toy_lm_batch(4), ["--mgskd_sample_level_m=0"]
    exact = terms_of(step_of(*flags), batch)
    assert exact == pytest.approx(terms_of(step_of(*flags, "--compat=D3"), batch), rel=1e-5)


def test_padded_choices_are_no_samples():
    batch = toy_cloze_batch(3, choices=3, variable=True)
    step = step_of("--mgskd_sample_level_m=0", program="finetune")
    real = batch.choice_mask.flatten().bool()
    lengths = [n for n, r in zip(lengths_of(batch), real.tolist(), strict=True) if r]
    assert len(lengths) == 8
    expected = [4 * samples_of(s[real], t[real], lengths) for s, t in states(step, batch)]
    assert terms_of(step, batch) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("compat", ["", "D3", "glmkd"])
def test_a_filler_is_no_sample(compat):
    batch = toy_lm_batch(5)
    filled = dataclasses.replace(batch, weight=torch.tensor([1.0, 1, 1, 1, 0]))
    flags = [f"--compat={compat}"]
    width = batch.tokens.size(1)  # the seed's spans depend on it
    alone = rows_of(batch, 0, 4)
    alone = rows_of(batch, 0, 4, longer=width - alone.tokens.size(1))
    expected = terms_of(step_of(*flags), alone)
    assert terms_of(step_of(*flags), filled) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("flag", "at"), [("weight_token", 0), ("weight_span", 0), ("weight_sample", 2)]
)
def test_weights(flag, at):
    batch = toy_lm_batch(4)
    none, one, three = (terms_of(step_of(f"--mgskd_{flag}={w}"), batch)[at] for w in (0, 1, 3))
    assert one > none
    assert three - none == pytest.approx(3 * (one - none), rel=1e-4)


def test_without_spans_there_is_no_span_level():
    batch = toy_lm_batch(4)
    expected = terms_of(step_of("--mgskd_weight_span=0"), batch)
    assert terms_of(step_of("--mgskd_span_max_rate=0"), batch) == pytest.approx(expected)
    assert terms_of(step_of("--mgskd_span_max_rate=0.9"), batch)[0] > expected[0]


@pytest.mark.parametrize("level", [0, 1, 3, 9])
def test_the_level_from_which_samples_count(level):
    batch = toy_lm_batch(3)
    actual = terms_of(step_of(f"--mgskd_sample_level_m={level}"), batch)
    below = terms_of(step_of("--mgskd_sample_level_m=9"), batch)
    above = terms_of(step_of("--mgskd_sample_level_m=0"), batch)
    assert actual == pytest.approx(below[:level] + above[level:], rel=1e-5)


@pytest.mark.parametrize(("k1", "k2"), [(1, 4), (5, 2)])
def test_numbers_of_triplets(k1, k2):
    flags = [f"--mgskd_triplet_k1={k1}", f"--mgskd_triplet_k2={k2}", "--mgskd_weight_span=0"]
    batch = toy_lm_batch(1)
    step = step_of(*flags)
    own, target = states(step, batch)[0]
    mask = torch.ones(own.shape[:2])
    pairs = ratio(pair_differences(own, target, mask, HEADS))
    triplets = ratio(triplet_differences(own, target, mask, HEADS, k1, k2))
    assert terms_of(step, batch)[0] == pytest.approx(pairs + triplets, rel=1e-4)


@pytest.mark.parametrize("flags", [[], ["--compat=glmkd"]])
@pytest.mark.parametrize(("batch", "longest"), [(1, 24), (2, 24)])
def test_small_batches_have_finite_losses(flags, batch, longest):
    output = take(step_of(*flags), toy_lm_batch(batch, longest=longest))
    assert output.loss.isfinite()
    assert float(output.terms[NAMES[2]]) == 0.0  # no angle between two samples


def test_short_sequences_without_triplets_are_finite_and_alone_samples_give_no_gradient():
    batch = toy_lm_batch(3)
    few = {name: getattr(batch, name)[..., :2] for name in ("tokens", "position_ids", "labels")}
    batch = dataclasses.replace(batch, **few, loss_mask=batch.loss_mask[:, :2])
    for flags in ([], ["--compat=glmkd"], ["--mgskd_span_max_rate=1"]):
        step = step_of(*flags)
        assert take(step, batch).loss.isfinite()
        assert all(bool(g.isfinite().all()) for g in grads_of(step.student.module).values())
    step = step_of("--mgskd_sample_level_m=0")
    assert float(take(step, toy_lm_batch(2)).loss.detach()) == 0.0
    assert not any(bool(g.any()) for g in grads_of(step.student.module).values())


def test_spans_depend_on_iteration_and_length_only():
    steps = [step_of(iteration=i) for i in (0, 3, 3)]
    for number, step in enumerate(steps):
        step.method.begin_pass(Clock(iteration=step.state.iteration, micro_step=number))
    first, second, resumed = (step.method.draw_spans(60) for step in steps)
    assert first != second == resumed
    assert sum(first) == 60
    assert len(first) == 24
    assert sum(steps[0].method.draw_spans(61)) == 61
    assert steps[0].method.draw_spans(2) == []
    assert steps[0].method.draw_spans(0) == []


def test_every_draw_of_a_step_is_by_length(monkeypatch):
    step, batch = step_of(), toy_lm_batch(4)
    asked: list[int] = []
    draw = step.method.draw_spans
    monkeypatch.setattr(step.method, "draw_spans", lambda n: asked.append(n) or draw(n))
    take(step, batch)
    assert sorted(asked) == sorted(set(lengths_of(batch)))
    asked.clear()
    step = step_of("--compat=D3")
    monkeypatch.setattr(step.method, "draw_spans", lambda n: asked.append(n) or draw(n))
    take(step, batch)
    assert asked == [batch.tokens.size(1)]


def test_without_structures_nothing_is_captured():
    step = step_of("--mgskd_wo_inter", "--distill_pt_soft")
    assert step.method.get_student_hook() == {}
    assert step.method.get_teacher_hook() == {}
    output = take(step, toy_lm_batch(3))
    assert float(output.loss.detach()) == pytest.approx(float(output.terms["pre_loss/pt_soft_t0"]))


def test_the_layers_are_evenly_spaced_also_where_depths_do_not_divide():
    step = step_of("--teacher_num_layers=5")
    assert step.method.teacher_points(0) == [hidden(k, 5) for k in (0, 3, 5)]
    assert step.method.student_points() == [hidden(k, 2) for k in (0, 1, 2)]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("mgskd_triplet_k1", 0, "at least 1"),
        ("mgskd_triplet_k2", -3, "at least 1"),
        ("mgskd_multi_heads", 0, "at least 1"),
        ("mgskd_span_max_rate", 1.5, "between 0 and 1"),
        ("mgskd_span_max_rate", -0.1, "between 0 and 1"),
    ],
)
def test_impossible_flags(field, value, words):
    with pytest.raises(ConfigError, match=f"--{field}=.*{words}"):
        MGSKDArgs(**{field: value})


def test_problems():
    def problems(*flags: str) -> list[str]:
        return list(METHODS["mgskd"].problems(toy_run("--student_model=mgskd", *flags), head))

    head = HeadSpec("lm")
    (heads,) = problems()
    assert heads.startswith("--mgskd_multi_heads=64: MGSKD ")
    assert "16, 24" in heads
    assert heads.endswith("use a divisor of 8")
    assert problems("--mgskd_multi_heads=8") == []
    assert problems("--mgskd_wo_inter") == []
    (depth,) = problems("--mgskd_multi_heads=8", "--num-layers=6")
    assert depth.startswith("--num-layers=6: MGSKD ")
