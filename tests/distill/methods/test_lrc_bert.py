"""LRC-BERT: the loss against loops, the perturbation against a second forward by hand."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

import mpu
from distill.capture import embeddings, to_hook
from distill.methods.lrc_bert import LRCBERT
from distill.student import GLMStudent
from model.build import HeadSpec
from mpu import hook_model
from tests.distill.methods.handed import handed, states, tokens
from tests.distill.runs import cloze_task, grads_of, rows_of, take, toy_run, toy_step
from tests.ranks import run_ranks
from tests.toy import toy_cloze_batch, toy_lm_batch

FLAGS = ["--student_model=lrc_bert", "--lrc_bert_alpha=0.5"]
GATHER = "--lrc_bert_gather_dp"
PASSES = ["--forward_repeat_num=1", "--ignore_first_backward_gard"]
PERTURB = ["--lrc_bert_gard_perturb", *PASSES]


def batch_of(program):
    if program == "pretrain":
        return toy_lm_batch(3)
    return toy_cloze_batch(3, choices=3, variable=True)


@torch.no_grad()
def expected(step, call, mask, real, theirs=(2, 4), num_t=4, t_no=0) -> float:
    """COS-NCE by loops over sequences, layers and positions."""
    fit = step.method.s_fit_dense[t_no]
    student = [fit(x) for x in states(call.student, 2, [1, 2])]
    teacher = states(call.teacher, num_t, theirs)
    among = [i for i in range(len(real)) if real[i]]

    def g(i, j):
        both = (mask[i] * mask[j]).nonzero().flatten()
        pairs = zip(student, teacher, strict=True)
        cosines = [F.cosine_similarity(s[i, both], t[j, both]).mean() for s, t in pairs]
        return 1 - float(sum(cosines)) / len(cosines)

    losses = []
    for i in among:
        own = g(i, i)
        gaps = [g(i, j) - own for j in among if j != i]
        losses.append(1 + own - sum(gaps) / (2 * len(gaps)))
    return 0.5 * 2 * sum(losses) / len(losses)


@pytest.mark.parametrize("program", ["pretrain", "finetune"])
def test_the_formula(program):
    batch = batch_of(program)
    step = toy_step(toy_run(*FLAGS, program=program))
    (call,) = handed(step, batch)
    mask = tokens(batch)
    value = expected(step, call, mask, mask[:, 0])
    assert call.loss == pytest.approx(value, rel=1e-5)
    logged = [k for k in step.output.terms if k.startswith("inter_loss/")]
    assert logged == ["inter_loss/hidden_states.1_t0"]


def test_compat_compares_padding_and_padded_choices():
    batch = batch_of("finetune")
    step = toy_step(toy_run(*FLAGS, "--compat=glmkd", program="finetune"))
    (call,) = handed(step, batch)
    every = torch.ones(9, batch.tokens.size(-1))
    assert call.loss == pytest.approx(expected(step, call, every, torch.ones(9)), rel=1e-5)


@pytest.mark.parametrize("compat", ["", "D3", "glmkd"])
@pytest.mark.parametrize("program", ["pretrain", "finetune"])
def test_fillers_are_no_negatives(program, compat):
    batch = batch_of(program)
    batch = dataclasses.replace(batch, weight=torch.tensor([1.0, 1.0, 0.0]))
    flags = [*FLAGS, f"--compat={compat}"]
    with_filler = float(take(toy_step(toy_run(*flags, program=program)), batch).loss.detach())
    width = batch.tokens.size(-1)
    fewer = rows_of(batch, 0, 2)
    fewer = rows_of(batch, 0, 2, longer=width - fewer.tokens.size(-1))
    without = float(take(toy_step(toy_run(*flags, program=program)), fewer).loss.detach())
    assert with_filler == pytest.approx(without, rel=1e-6)


def test_padding_does_not_matter():
    step = toy_step(toy_run(*FLAGS))
    losses = [float(take(step, toy_lm_batch(3, pad_to=n)).loss.detach()) for n in (0, 30)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_one_sequence_has_loss_0():
    step = toy_step(toy_run(*FLAGS, *PERTURB))
    output = take(step, toy_lm_batch(1))
    assert float(output.loss.detach()) == 0.0
    assert not any(bool(g.any()) for g in grads_of(step.student.module).values())
    assert all(bool(torch.isfinite(g).all()) for g in grads_of(step.student.module).values())


def test_each_teacher_has_its_projection():
    run = toy_run(*FLAGS, program="finetune")
    other = dataclasses.replace(run.teachers[0], num_layers=3, hidden_size=8)
    step = toy_step(dataclasses.replace(run, teachers=(run.teachers[0], other)), cloze_task())
    batch = toy_cloze_batch(2)
    first, second = handed(step, batch)
    mask = tokens(batch)
    assert first.loss == pytest.approx(expected(step, first, mask, mask[:, 0]), rel=1e-5)
    value = expected(step, second, mask, mask[:, 0], theirs=(2, 3), num_t=3, t_no=1)
    assert second.loss == pytest.approx(value, rel=1e-5)


# Over ranks.


def on_rank(rank: int, world_size: int, program: str, *flags: str) -> tuple[float, dict]:
    mpu.initialize_model_parallel(1)
    step = toy_step(toy_run(*FLAGS, *flags, program=program))
    mine = ((0, 3), (3, 4))[rank]  # unequal numbers and lengths
    output = take(step, rows_of(whole(program), *mine))
    return float(output.loss.detach()), grads_of(step.student.module)


def whole(program):
    if program == "pretrain":
        return toy_lm_batch(4, seed=3)
    return toy_cloze_batch(4, choices=3, variable=True, seed=3)


@pytest.mark.parametrize("program", ["pretrain", "finetune"])
@pytest.mark.parametrize("flags", [(), PERTURB], ids=["plain", "perturbed"])
def test_gathered_samples_are_negatives_as_in_one_batch(program, flags):
    step = toy_step(toy_run(*FLAGS, *flags, program=program))
    loss = float(take(step, whole(program)).loss.detach())
    grads = grads_of(step.student.module)
    ranks = run_ranks(2, on_rank, program, GATHER, *flags)
    assert sum(rank[0] for rank in ranks) / 2 == pytest.approx(loss, rel=1e-5)
    largest = max(float(g.abs().max()) for g in grads.values())
    for key, value in grads.items():
        actual = sum(rank[1][key] for rank in ranks) / 2
        torch.testing.assert_close(actual, value, rtol=1e-4, atol=1e-5 * largest, msg=key)
    alone, key = run_ranks(2, on_rank, program, *flags), "student.s_fit_dense.0.weight"
    actual = sum(rank[1][key] for rank in alone) / 2
    with pytest.raises(AssertionError):
        torch.testing.assert_close(actual, grads[key], rtol=1e-4, atol=1e-5 * largest)


def test_gathering_on_one_process_changes_nothing():
    losses = [
        float(take(toy_step(toy_run(*FLAGS, *flags)), toy_lm_batch(3)).loss.detach())
        for flags in ([], [GATHER])
    ]
    assert losses[0] == losses[1]


# The perturbation.

SOFT = ["--distill_ft_soft", "--distill_ft_hard", "--distill_hard_rate=3"]


def at(step, batch, shift):
    """The student's loss with shifted embeddings, the embeddings, and the losses' gradient."""
    method, module, kept = step.method, step.student.module, {}

    def edit(hidden_states, this):
        kept["x"] = (hidden_states + shift).detach().requires_grad_()
        return kept["x"]

    counts = step.count([batch])
    method.get_student_hook_op = lambda **kwargs: {"transformer": {"embeddings": edit}}
    loss = step(batch, counts).loss
    del method.get_student_hook_op
    (gradient,) = torch.autograd.grad(loss, kept["x"])
    module.zero_grad()
    return float(loss.detach()), gradient


@pytest.mark.parametrize("program", ["pretrain", "finetune"])
def test_the_second_pass_is_perturbed_and_alone_counts(program):
    batch, labels = batch_of(program), SOFT if program == "finetune" else []
    if labels:
        batch.labels = batch.labels * 0  # a real choice
    plain = toy_step(toy_run(*FLAGS, *labels, program=program))
    first, gradient = at(plain, batch, 0.0)
    norm = gradient.norm(dim=-1, keepdim=True)
    step = torch.where(norm > 0, gradient / norm, 0.0)
    assert bool((norm == 0).any())  # padding
    second, _ = at(plain, batch, step)
    perturbed = toy_step(toy_run(*FLAGS, *labels, *PERTURB, program=program))
    output = take(perturbed, batch)
    assert float(output.loss.detach()) == pytest.approx(second, rel=1e-4)
    terms = output.terms
    assert float(terms["teacher_loss/teacher_0_t0"]) == pytest.approx(first, rel=1e-5)
    assert float(terms["teacher_loss/teacher_0_t0_repeat1"]) == pytest.approx(second, rel=1e-4)
    assert second != pytest.approx(first, rel=1e-2)


def test_each_micro_batch_has_its_own_gradient():
    batches = [toy_lm_batch(3, seed=seed) for seed in (0, 1)]
    step = toy_step(toy_run(*FLAGS, *PERTURB))
    together = [float(take(step, batch).loss.detach()) for batch in batches]
    alone = [
        float(take(toy_step(toy_run(*FLAGS, *PERTURB)), batch).loss.detach()) for batch in batches
    ]
    assert together == alone


def test_checkpointing_changes_nothing():
    losses = []
    for checkpointing in (False, True):
        run = toy_run(*FLAGS, *PERTURB)
        model = dataclasses.replace(run.model, checkpoint_activations=checkpointing)
        step = toy_step(dataclasses.replace(run, model=model))
        losses.append(float(take(step, toy_lm_batch(3)).loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize(
    "flags", [[], ["--lrc_bert_gard_perturb"], ["--lrc_bert_gard_perturb", PASSES[0]], PASSES]
)
def test_without_all_three_flags_nothing_is_perturbed(flags):
    batch = toy_lm_batch(3)
    plain = float(take(toy_step(toy_run(*FLAGS)), batch).loss.detach())
    step = toy_step(toy_run(*FLAGS, *flags))
    terms = take(step, batch).terms
    assert step.method.gradient_points() == []
    for key in (k for k in terms if k.startswith("inter_loss/")):
        assert float(terms[key]) == plain


def test_the_edit_takes_the_seeds_keywords_and_keeps_the_precision():
    step = toy_step(toy_run(*FLAGS, *PERTURB))
    method: GLMStudent = step.method
    method.take_gradients({embeddings(): torch.ones(1, 2, 16)})
    assert method.get_student_hook_op() == {}  # first pass
    method.begin_pass(dataclasses.replace(method.clock, repeat=1))
    edit = method.get_student_hook_op(teacher_models=[])["transformer"]["embeddings"]
    actual = edit(hidden_states=torch.zeros(1, 2, 16, dtype=torch.bfloat16), this=None)
    assert actual.dtype == torch.bfloat16
    assert torch.equal(actual.float(), torch.full((1, 2, 16), 0.25))
    method.begin_pass(dataclasses.replace(method.clock, repeat=2))
    assert method.get_student_hook_op() == {}


def test_the_perturbed_embeddings_reach_the_model():
    step, batch = toy_step(toy_run(*FLAGS, *PERTURB)), toy_lm_batch(2)
    take(step, batch)
    method, inputs = step.method, step.task.inputs(batch)
    captured = []
    for op in ({}, method.get_student_hook_op()):
        found = []
        hook_model(to_hook([embeddings()]), found, method, *inputs, hook_op=op)
        captured.append(found[0])
    length = (captured[1] - captured[0]).norm(dim=-1)
    torch.testing.assert_close(length, tokens(batch), rtol=1e-4, atol=1e-5)


def problems(*flags):
    return list(LRCBERT.problems(toy_run("--student_model=lrc_bert", *flags), HeadSpec("lm")))


def test_what_it_needs():
    assert problems() == [] == problems(*PERTURB)
    (depth,) = problems("--teacher_num_layers=1")
    assert depth.startswith("--num-layers=2")
    for flags in (PERTURB[:1], PERTURB[:2]):
        (passes,) = problems(*flags)
        assert passes.startswith("--lrc_bert_gard_perturb: needs")
        assert "--forward_repeat_num=1 --ignore_first_backward_gard" in passes
