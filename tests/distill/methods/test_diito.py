"""DIITO against two passes written out by loops; where, what and when is swapped."""

import dataclasses
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mpu
from data_utils.batch import Batch
from distill.context import Clock, LossContext
from distill.interchange import STUDENT
from distill.methods.diito import DIITO
from distill.step import DistillStep
from model.attention import glm_mask
from model.build import HeadSpec
from tests.distill.runs import grads_of, lm_task, take, toy_run, toy_step
from tests.ranks import run_ranks
from tests.toy import toy_cloze_batch, toy_lm_batch

T = 3.0
FLAGS = [
    "--student_model=diito",
    "--teacher_hidden_size=16",
    "--forward_repeat_num=1",
    "--distill_pt_soft",
    "--distill_pt_hard",
    f"--distill_temperature={T}",
]
ALPHAS = {"mlm": 0.3, "ce": 0.7, "causal_ce": 1.7, "cos": 0.9, "causal_cos": 1.3}
WEIGHTS = [f"--diito_alpha_{name}={value}" for name, value in ALPHAS.items()]


def step_of(*flags: str, iteration: int = 0, **changes: Any) -> DistillStep:
    run = toy_run(*FLAGS, *flags)
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, **changes))
    return toy_step(run, lm_task(), iteration)


def tokens_of(batch: Batch) -> Tensor:
    mask = batch.position_ids[:, 0] > 0
    mask[:, 0] = True
    return mask


class Forward:
    """A GLM written out: after which blocks, or in front of which attention, states change."""

    def __init__(self, glm: nn.Module, batch: Batch):
        self.glm, self.batch = glm, batch

    def __call__(self, edits: dict[Any, Any], seed: bool) -> tuple[dict[Any, Tensor], Tensor]:
        """Edits by number of blocks passed -> (states by that number, output "o"), logits."""
        batch, stack = self.batch, self.glm.transformer
        positions, blocks = batch.position_ids.unbind(1)
        x = self.glm.word_embeddings(batch.tokens) + stack.position_embeddings(positions)
        x = x + stack.block_position_embeddings(blocks)
        mask = glm_mask(batch.attention_mask, x.size(1), 0, x.device)
        states: dict[Any, Tensor] = {}
        for k, layer in enumerate(stack.layers):
            normed = layer.input_layernorm(x)
            if seed and k in edits:
                normed = edits[k](normed)
            states[("norm", k)] = normed
            x = x + layer.attention(normed, mask)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
            if not seed and k + 1 in edits:
                x = edits[k + 1](x)
            states[("stream", k + 1)] = x
        output = stack.final_layernorm(x)
        last = len(stack.layers)
        if seed and last in edits:
            output = edits[last](output)
        states[("norm", last)] = output
        return states | {"o": output}, output @ self.glm.word_embeddings.weight.T


def by_loops(given: Tensor, put: Tensor, taken: Tensor) -> Any:
    def edit(x: Tensor) -> Tensor:
        rows = x.clone()
        for i in range(len(x)):
            places = zip(put[i].nonzero().flatten(), taken[i].nonzero().flatten(), strict=True)
            for to, of in places:
                rows[i, to] = given[(i + 1) % len(x), of]
        return rows

    return edit


def expected_loss(
    step: DistillStep, batch: Batch, own: list[int], theirs: list[int], seed: bool = False
) -> Tensor:
    """Both passes, with these blocks aligned."""
    method, teacher = step.method, step.teachers[0].module
    tokens, targets = tokens_of(batch), batch.loss_mask > 0
    masks = method.draw_masks(tokens, tokens & targets)
    models = (Forward(method.origin_model, batch), own), (Forward(teacher, batch), theirs)
    kind, loss = "norm" if seed else "stream", torch.zeros(())
    kept: list[dict[int, Any]] = [{}, {}]
    for soft, hard, cos in (
        (ALPHAS["ce"], ALPHAS["mlm"], ALPHAS["cos"]),
        (ALPHAS["causal_ce"], 0.0, ALPHAS["causal_cos"]),
    ):
        outputs = []
        for side, (forward, blocks) in enumerate(models):
            states, logits = forward(kept[side], seed)
            outputs.append((states["o"], logits))
            kept[side] = {k: by_loops(states[(kind, k)], *masks) for k in blocks}
        (s_output, s), (t_output, t) = outputs
        t, t_output = t.detach(), t_output.detach()
        rows = F.kl_div((s / T).log_softmax(-1), (t / T).softmax(-1), reduction="none").sum(-1)
        loss = loss + soft * T**2 * rows[targets].mean()
        loss = loss + hard * F.cross_entropy(s[targets], batch.labels[targets])
        loss = loss + cos * (1 - F.cosine_similarity(s_output, t_output, dim=-1))[tokens].mean()
    return loss


CASES = {
    "full, first": (["--diito_alignment=full"], 1, [1], [1, 2]),
    "full, last": (["--diito_alignment=full"], 2, [2], [3, 4]),
    "full, uneven": (["--num-layers=3", "--teacher_num_layers=5"], 2, [2], [3, 4]),
    "full, uneven, last": (["--num-layers=3", "--teacher_num_layers=5"], 3, [3], [5]),
    "middle": (["--diito_alignment=middle", "--num-layers=3"], 0, [2], [3]),
    "late": (["--diito_alignment=late", "--num-layers=3"], 0, [2, 3], [3, 4]),
    "random": (["--diito_interchange_way=random", "--diito_interchange_prop=0.8"], 1, [1], [1, 2]),
    "masked": (["--diito_interchange_way=masked"], 1, [1], [1, 2]),
    "few": (["--diito_interchange_max_token=1"], 1, [1], [1, 2]),
}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("compat", ["", "D29"])
@pytest.mark.parametrize("name", CASES)
def test_both_passes_and_all_gradients(name, compat, recompute):
    flags, block, own, theirs = CASES[name]
    step = step_of(*WEIGHTS, *flags, f"--compat={compat}", checkpoint_activations=recompute)
    step.method.draw_layer = lambda: block
    batch = toy_lm_batch(4)
    output = take(step, batch)
    actual = grads_of(step.student.module)
    step.student.module.zero_grad()
    expected = expected_loss(step, batch, own, theirs, seed=bool(compat))
    expected.backward()
    torch.testing.assert_close(output.loss.detach(), expected.detach())
    for key, grad in grads_of(step.student.module).items():
        torch.testing.assert_close(actual[key], grad, rtol=1e-4, atol=1e-6, msg=key)


def test_gradients_reach_the_first_pass_through_the_swap():
    def gradient(cut: bool) -> Tensor:
        step = step_of("--diito_alpha_ce=0", "--diito_alpha_mlm=0", "--diito_alpha_cos=0")
        if cut:
            keep = DIITO._keep

            def detached(model, captured):
                keep(step.method, model, captured)
                states = step.method._interchange.given[model]
                step.method._interchange.given[model] = {p: t.detach() for p, t in states.items()}

            step.method._keep = detached
        take(step, toy_lm_batch(4))
        return grads_of(step.student.module)["word_embeddings.weight"]

    assert not torch.allclose(gradient(cut=False), gradient(cut=True))


def test_terms_have_the_seeds_names():
    output = take(step_of(), toy_lm_batch(3))
    assert list(output.terms) == [
        "other/s_alignment_layer",
        "Train/hard_loss",
        "pre_loss/pt_soft_t0",
        "pre_loss/pt_hard_t0",
        "inter_loss/diito_alpha_cos_0_t0",
        "teacher_loss/teacher_0_t0",
        "Train/hard_loss_repeat1",
        "pre_loss/pt_soft_t0_repeat1_causal1",
        "inter_loss/diito_alpha_cos_1_t0_repeat1",
        "teacher_loss/teacher_0_t0_repeat1",
    ]
    assert output.terms["other/s_alignment_layer"] in (1, 2)
    late = take(step_of("--diito_alignment=late"), toy_lm_batch(3))
    assert "other/s_alignment_layer" not in late.terms


def test_a_weight_of_zero_captures_and_computes_nothing():
    step = step_of("--diito_alpha_cos=0", "--diito_alpha_causal_cos=0", "--diito_alpha_ce=0")
    assert not any("output" in p.path for p in step.method.student_points())
    output = take(step, toy_lm_batch(3))
    assert not any("cos" in name for name in output.terms)
    assert "pre_loss/pt_soft_t0" not in output.terms


def test_no_positions_make_the_passes_equal():
    terms = take(step_of("--diito_interchange_prop=0"), toy_lm_batch(3)).terms
    first = terms["inter_loss/diito_alpha_cos_0_t0"]
    torch.testing.assert_close(terms["inter_loss/diito_alpha_cos_1_t0_repeat1"], first)
    terms = take(step_of(), toy_lm_batch(3)).terms
    assert float(terms["inter_loss/diito_alpha_cos_1_t0_repeat1"]) != pytest.approx(float(first))


def test_nothing_is_kept_after_the_step():
    step = step_of()
    take(step, toy_lm_batch(3))
    assert step.method._interchange is None
    alone = step_of("--forward_repeat_num=0")
    take(alone, toy_lm_batch(3))
    assert alone.method._interchange is None


def test_a_filler_sample_changes_nothing():
    batch = toy_lm_batch(4)
    batch = dataclasses.replace(batch, weight=torch.tensor([1.0, 1.0, 1.0, 0.0]))
    losses = []
    for junk in (False, True):
        if junk:
            batch = dataclasses.replace(batch, tokens=batch.tokens.clone())
            batch.tokens[3] = 33
        step = step_of("--diito_interchange_prop=0.9")
        losses.append((take(step, batch).loss, grads_of(step.student.module)))
    assert torch.equal(losses[0][0], losses[1][0])
    assert all(torch.equal(g, losses[1][1][key]) for key, g in losses[0][1].items())


@pytest.mark.parametrize("way", ["consecutive", "masked", "random"])
def test_fine_tuning_swaps_among_sequences(way):
    flags = ["--distill_ft_soft", "--distill_ft_hard", f"--diito_interchange_way={way}"]
    step = toy_step(toy_run(*FLAGS, *flags, program="finetune"))
    seen = []
    draw = step.method.draw_masks

    def spy(tokens, targets):
        seen.append((tokens, targets, *draw(tokens, targets)))
        return seen[-1][2:]

    step.method.draw_masks = spy
    batch = toy_cloze_batch(3, choices=3, variable=True)
    output = take(step, batch)
    ((tokens, targets, put, taken),) = seen
    assert torch.isfinite(output.loss)
    assert tokens.shape == (9, batch.tokens.size(-1))
    real = batch.choice_mask.flatten() > 0
    assert not tokens[~real].any()
    assert torch.equal(targets, (batch.logit_mask.flatten(0, 1) > 0) & real[:, None])
    allowed = targets if way == "masked" else tokens
    assert not (put & ~allowed).any()
    assert not (taken.roll(1, 0) & ~allowed).any()


# Draws.


def method_of(*flags: str, **clock: int) -> DIITO:
    method = step_of(*flags).method
    method.begin_pass(Clock(**clock))
    return method


def test_the_layer_is_drawn_once_an_iteration():
    method = method_of("--num-layers=3", iteration=5)
    first = method.draw_layer()
    for changes in ({"micro_step": 3}, {"repeat": 1}, {"epoch": 2}):
        method.begin_pass(Clock(iteration=5, **changes))
        assert method.draw_layer() == first
    drawn = []
    for iteration in range(300):
        method.begin_pass(Clock(iteration=iteration))
        drawn.append(method.draw_layer())
    assert {1, 2, 3} == set(drawn)
    assert all(70 < drawn.count(layer) < 130 for layer in (1, 2, 3))


def test_masks_follow_from_the_clock():
    tokens = torch.ones(6, 30, dtype=torch.bool)
    first = method_of(iteration=5, micro_step=1).draw_masks(tokens, tokens)
    again = method_of(iteration=5, micro_step=1, repeat=1).draw_masks(tokens, tokens)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for other in ({"iteration": 6, "micro_step": 1}, {"iteration": 5, "micro_step": 2}):
        assert not torch.equal(first[0], method_of(**other).draw_masks(tokens, tokens)[0])


def masks_on_rank(rank: int, world_size: int, size: int) -> tuple[int, Tensor]:
    mpu.initialize_model_parallel(size)
    tokens = torch.ones(6, 30, dtype=torch.bool)
    method = method_of(iteration=2)
    return method.draw_layer(), torch.stack(method.draw_masks(tokens, tokens))


@pytest.mark.parametrize(("size", "same"), [(2, True), (1, False)])
def test_masks_are_equal_on_model_parallel_ranks_only(size, same):
    (layer, masks), (other_layer, other_masks) = run_ranks(2, masks_on_rank, size)
    assert layer == other_layer
    assert torch.equal(masks, other_masks) is same


def test_by_hand_every_position_is_a_token():
    step, state = step_of(), torch.zeros(2, 7, 16)
    points = step.method.student_points()
    captured = dict.fromkeys([*points, *step.method.teacher_points(0)], state)
    losses = dict(step.method.layer_losses(captured, captured, LossContext()))
    assert list(losses) == ["diito_alpha_cos_0"]
    assert step.method._interchange.put.sum(1).flatten().tolist() == [2, 2]
    assert step.method._interchange.given.keys() == {STUDENT, 0}


# What it needs.

LM, CLASSES = HeadSpec("lm"), HeadSpec("classification", num_classes=2)


def problems(*flags: str, head: HeadSpec = LM, program: str = "pretrain") -> list[str]:
    return list(DIITO.problems(toy_run(*FLAGS, *flags, program=program), head))


def test_a_complete_run_has_no_problem():
    assert problems() == []
    assert problems("--diito_alignment=late") == []
    assert problems("--diito_alignment=middle", "--num-layers=3") == []
    no_cos = ["--diito_alpha_cos=0", "--diito_alpha_causal_cos=0", "--teacher_hidden_size=24"]
    assert problems(*no_cos) == []
    assert problems("--distill_ft_soft", head=CLASSES, program="finetune") == []


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--forward_repeat_num=0"], "--forward_repeat_num=0: .* give 1"),
        (["--forward_repeat_num=2"], "--forward_repeat_num=2: .* give 1"),
        (["--mt_disable_operation=1"], "--mt_disable_operation=1: .* leave it out"),
        (["--teacher_hidden_size=24"], "--hidden-size=16: .* teacher 0 has 24"),
        (
            ["--teacher_hidden_size=24", "--diito_alpha_cos=0"],
            "--hidden-size=16: .* teacher 0 has 24",
        ),
        (["--num-layers=5"], "--num-layers=5: .* teacher 0 has 4; use a shallower"),
        (["--diito_alignment=middle"], "--num-layers=2: --diito_alignment=middle needs at least 3"),
        (
            ["--diito_alignment=middle", "--num-layers=3", "--teacher_num_layers=2"],
            "--teacher_num_layers=2: --diito_alignment=middle needs at least 3",
        ),
        (
            ["--diito_alignment=late", "--num-layers=1"],
            "--num-layers=1: --diito_alignment=late needs at least 2",
        ),
        (
            ["--diito_alpha_causal_ce=0", "--diito_alpha_causal_cos=0"],
            "--distill_pt_soft: .* no loss in pass 1",
        ),
    ],
)
def test_what_is_missing_is_told(flags, problem):
    (line,) = problems(*flags)
    assert re.match(problem, line), line


def test_fine_tuning_needs_its_own_soft_labels_and_targets_for_masked():
    (line,) = problems("--diito_alpha_causal_cos=0", program="finetune")
    assert line.startswith("--distill_ft_soft: missing")
    masked = ["--diito_interchange_way=masked", "--distill_ft_soft"]
    (line,) = problems(*masked, head=CLASSES, program="finetune")
    assert line.startswith("--diito_interchange_way=masked: needs targets; add --cloze-eval")
