"""CKD against its formula, sequence by sequence; single relations are in test_relations."""

import pytest
import torch
from torch import Tensor

from config import ConfigError
from distill.capture import Captured, hidden
from distill.methods.ckd import CKDArgs
from distill.registry import METHODS
from distill.student import GLMStudent
from model.build import HeadSpec
from mpu import hook_model
from tests.distill.runs import take, toy_run, toy_step
from tests.toy import toy_cloze_batch, toy_lm_batch

TERMS = ("wrdist", "wrangle", "ltrdist", "ltrangle")
WEIGHTS = dict(zip(TERMS, (1.0, 10.0, 1.0, 10.0), strict=True))


def step_of(*flags: str, program: str = "pretrain"):
    return toy_step(toy_run("--student_model=ckd", *flags, program=program))


def states(step, batch) -> tuple[list[Tensor], list[Tensor]]:
    """States of student and teacher, one [b, s, h] a layer, in fp64."""
    inputs, method = step.task.inputs(batch), step.method
    own, target = method.get_student_hook(), method.get_teacher_hook()
    raw: list[Tensor] = []
    with torch.no_grad():
        hook_model(own, raw, step.student.module, *inputs)
        output = step.teachers[0](inputs, target)
    pairs = (
        (method.student_points(), Captured(own, raw)),
        (method.teacher_points(0), Captured(target, output.captured)),
    )
    return tuple([captured[point].double() for point in points] for points, captured in pairs)


def sequences(states_of_layers: list[Tensor], lengths: list[int]) -> list[Tensor]:
    """[K, n, h] of each sequence, its tokens only."""
    whole = torch.stack(states_of_layers, 1)
    return [x[:, :length] for x, length in zip(whole, lengths, strict=True)]


def lengths_of(batch) -> list[int]:
    positions = batch.position_ids.flatten(0, -3)
    return [int(row[0].gt(0).nonzero().max()) + 1 for row in positions]


def kl_rows(own: Tensor, target: Tensor) -> Tensor:
    """[.., n, h] twice -> [.., n] over the cosines to the others."""
    logs = []
    for x in (own, target):
        cos = torch.cosine_similarity(x.unsqueeze(-2), x.unsqueeze(-3), dim=-1)
        number = cos.size(-1)
        others = ~torch.eye(number, dtype=torch.bool)
        cos = cos[..., others].unflatten(-1, (number, number - 1))
        logs.append(cos.log_softmax(-1))
    return (logs[1].exp() * (logs[1] - logs[0])).sum(-1)


def angles(vertex: Tensor, points: Tensor) -> Tensor:
    """[h], [w, h] -> [w, w]"""
    difference = points - vertex
    norms = difference.norm(dim=-1, keepdim=True)
    units = torch.where(norms > 0, difference / norms, 0.0)
    return units @ units.T


def window_of(position: int, window: int, size: int, clamped: bool) -> list[int]:
    every = range(position - window // 2, position + window // 2 + 1)
    if clamped:
        return [min(max(j, 0), size - 1) for j in every]
    return [j for j in every if 0 <= j < size]


def word_angle_rows(own: Tensor, target: Tensor, window: int) -> Tensor:
    """[K, n, h] twice -> [n]: mean over layers and pairs of points."""
    rows = []
    for i in range(own.size(1)):
        points = window_of(i, window, own.size(1), clamped=False)
        square = [
            (angles(a[i], a[points]) - angles(b[i], b[points])).square().mean()
            for a, b in zip(own, target, strict=True)
        ]
        rows.append(torch.stack(square).mean())
    return torch.stack(rows)


def layer_angle_rows(own: Tensor, target: Tensor) -> Tensor:
    """[K, n, h] twice -> [n]: mean over triples of layers."""
    rows = []
    for i in range(own.size(1)):
        a, b = own[:, i], target[:, i]
        square = [(angles(x, a) - angles(y, b)).square().mean() for x, y in zip(a, b, strict=True)]
        rows.append(torch.stack(square).mean())
    return torch.stack(rows)


def expected_terms(step, batch, window: int) -> dict[str, float]:
    """Exact means over all tokens."""
    lengths = lengths_of(batch)
    own, target = (sequences(x, lengths) for x in states(step, batch))
    rows: dict[str, list[Tensor]] = {name: [] for name in TERMS}
    for s, t in zip(own, target, strict=True):
        rows["wrdist"].append(kl_rows(s, t).mean(0) / s.size(1))
        rows["wrangle"].append(word_angle_rows(s, t, window))
        layers = [x.transpose(0, 1) for x in (s, t)]
        rows["ltrdist"].append(kl_rows(*layers).mean(-1) / len(s))
        rows["ltrangle"].append(layer_angle_rows(s, t))
    return {name: WEIGHTS[name] * float(torch.cat(each).mean()) for name, each in rows.items()}


def terms_of(step, batch) -> dict[str, float]:
    terms = take(step, batch).terms
    return {n.split("/")[1].removesuffix("_t0"): float(v) for n, v in terms.items() if "inter" in n}


@pytest.mark.parametrize("program", ["pretrain", "finetune"])
@pytest.mark.parametrize("window", [5, 21])
def test_the_formula(program, window):
    batch = toy_lm_batch(3) if program == "pretrain" else toy_cloze_batch(3)
    step = step_of(f"--ckd_window_size={window}", program=program)
    expected = expected_terms(step, batch, window)
    assert terms_of(step, batch) == pytest.approx(expected, rel=1e-4)
    assert list(expected) == list(TERMS)


def test_the_loss_is_the_sum_of_its_terms_and_hard_labels():
    step = step_of("--distill_pt_hard", "--distill_hard_rate=0.1")
    output = take(step, toy_lm_batch(3))
    names = [f"inter_loss/{name}_t0" for name in TERMS]
    expected = sum(float(output.terms[n]) for n in (*names, "pre_loss/pt_hard_t0"))
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", TERMS)
def test_a_weight_multiplies_its_term_and_zero_leaves_it_out(name):
    batch = toy_lm_batch(2)
    plain = terms_of(step_of(), batch)
    doubled = terms_of(step_of(f"--ckd_{name}_w={2 * WEIGHTS[name]}"), batch)
    assert doubled == pytest.approx(plain | {name: 2 * plain[name]}, rel=1e-5)
    without = terms_of(step_of(f"--ckd_{name}_w=0"), batch)
    assert without == pytest.approx({k: v for k, v in plain.items() if k != name}, rel=1e-5)


def test_the_seed_pools_pairs_clamps_windows_and_lets_padding_into_them():
    batch = toy_lm_batch(3)
    step = step_of("--compat=D3", "--ckd_window_size=5")
    lengths, (own, target) = lengths_of(batch), states(step, batch)
    assert len(set(lengths)) > 1
    pairs = zip(*(sequences(x, lengths) for x in (own, target)), strict=True)
    distances = sum(float(kl_rows(s, t).sum()) for s, t in pairs) / len(own)
    differences = 0.0
    for s, t in zip(own, target, strict=True):
        for b, length in enumerate(lengths):
            for i in range(length):
                points = window_of(i, 5, s.size(1), clamped=True)
                pair = angles(s[b, i], s[b][points]), angles(t[b, i], t[b][points])
                differences += float((pair[0] - pair[1]).square().sum()) / 25 / len(own)
    actual, exact = terms_of(step, batch), terms_of(step_of("--ckd_window_size=5"), batch)
    assert actual["wrdist"] == pytest.approx(distances / sum(n * n for n in lengths), rel=1e-4)
    assert actual["wrangle"] == pytest.approx(10 * differences / sum(lengths), rel=1e-4)
    for name in ("ltrdist", "ltrangle"):  # one micro-batch: the same
        assert actual[name] == pytest.approx(exact[name], rel=1e-5)
    for name in ("wrdist", "wrangle"):
        assert actual[name] != pytest.approx(exact[name], rel=1e-3)


def test_the_layers_are_evenly_spaced_also_where_depths_do_not_divide():
    step = step_of("--teacher_num_layers=5")
    assert step.method.student_points() == [hidden(k, 2) for k in (0, 1, 2)]
    assert step.method.teacher_points(0) == [hidden(k, 5) for k in (0, 3, 5)]
    assert take(step, toy_lm_batch(2)).loss.isfinite()


def test_one_student_layer_is_enough():
    assert take(step_of("--num-layers=1"), toy_lm_batch(2)).loss.isfinite()


def test_called_by_hand_it_is_a_plain_mean():
    batch = toy_lm_batch(1)  # no padding
    step = step_of()
    own, target = states(step, batch)
    hooks = step.method.get_student_hook(), step.method.get_teacher_hook()
    for hook, points in zip(
        hooks, (step.method.student_points(), step.method.teacher_points(0)), strict=True
    ):
        for i, point in enumerate(points):
            level = hook
            for name in point.path[:-1]:
                level = level[name]
            level[point.path[-1]] = i
    loss = GLMStudent.inter_loss(
        step.method, [x.float() for x in own], [x.float() for x in target], *hooks
    )
    assert float(loss) == pytest.approx(sum(terms_of(step, batch).values()), rel=1e-4)


@pytest.mark.parametrize("window", [0, 2, -1])
def test_a_window_has_a_middle(window):
    with pytest.raises(ConfigError, match="--ckd_window_size=.*odd"):
        CKDArgs(ckd_window_size=window)


def test_a_deeper_student_is_a_problem():
    run = toy_run("--student_model=ckd", "--num-layers=6")
    (problem,) = METHODS["ckd"].problems(run, HeadSpec("lm"))
    assert problem.startswith("--num-layers=6: CKD ")
    assert list(METHODS["CKD"].problems(toy_run("--student_model=ckd"), HeadSpec("lm"))) == []
