"""ERDistill against dense formulas: each choice of layers, each part, each model's word table."""

import dataclasses

import pytest
import torch

import mpu
from distill.methods.erdistill import ERDistill
from distill.step import check_needs
from model.build import HeadSpec
from tests.distill.methods.seen import kl_rows, mean_over_tokens, seen
from tests.distill.runs import cloze_task, grads_of, lm_task, take, toy_run, toy_step
from tests.ranks import run_ranks
from tests.toy import merged, toy_cloze_batch, toy_lm_batch

# --erdistill_inter -> (student's layer, teacher's, weight)
LAYERS = {
    "all": [(0, 0, 1.0), (1, 2, 1.0), (2, 4, 1.0)],
    "one": [(2, 4, 1.0)],
    "two": [(1, 2, 1.0), (2, 4, 1.0)],
    "1plus": [(1, 4, 0.1), (2, 4, 1.0)],
}


def step_of(*flags, program="pretrain", **changes):
    run = toy_run("--student_model=erdistill", *flags, program=program)
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, **changes))
    return toy_step(run, lm_task() if program == "pretrain" else cloze_task())


def batch_of(program):
    if program == "pretrain":
        return toy_lm_batch(3)
    return toy_cloze_batch(3, choices=3, variable=True)


def tables_of(step):
    teacher = step.teachers[0].module
    return (
        step.method.origin_model.word_embeddings.weight.detach(),
        teacher.state_dict()["word_embeddings.weight"],
    )


def expected_terms(step, batch, layers, by_mse):
    (student, teacher), (own, theirs), terms = seen(step, batch), tables_of(step), {}

    def local(i, n):
        divisor = n if by_mse else n**0.5
        pair = [x[i, :n] @ x[i, :n].T / divisor for x in (s, t)]
        return (pair[0] - pair[1]).square().mean(-1) if by_mse else kl_rows(*pair)

    def of_words(i, n):
        pair = s[i, :n] @ own.T, t[i, :n] @ theirs.T
        return (pair[0] - pair[1]).square().mean(-1) if by_mse else kl_rows(*pair)

    for kind, losses in (("local", local), ("global", of_words)):
        for number, (a, b, weight) in enumerate(layers):
            s, t = student.state(a).detach(), teacher.state(b)
            loss = weight * mean_over_tokens(batch, losses)
            terms[f"inter_loss/{kind}.{number}_t0"] = float(loss)
    return terms


def inter_terms(output):
    return {k: float(v) for k, v in output.terms.items() if k.startswith("inter_loss")}


@pytest.mark.parametrize("program", ["pretrain", "finetune"])
@pytest.mark.parametrize("by_mse", [False, True])
@pytest.mark.parametrize("inter", LAYERS)
def test_the_formula(inter, by_mse, program):
    batch = batch_of(program)
    flags = [f"--erdistill_inter={inter}", *["--erdistill_inter_mse"] * by_mse]
    step = step_of(*flags, program=program)
    output = take(step, batch)
    expected = expected_terms(step, batch, LAYERS[inter], by_mse)
    assert list(inter_terms(output)) == list(expected)
    assert inter_terms(output) == pytest.approx(expected, rel=1e-4)
    assert float(output.loss.detach()) == pytest.approx(sum(expected.values()), rel=1e-4)


def test_all_layers_are_the_default():
    batch = toy_lm_batch(2)
    losses = [take(step_of(*flags), batch).loss for flags in ((), ("--erdistill_inter=all",))]
    assert torch.equal(*losses)


@pytest.mark.parametrize("part", ["local", "global"])
def test_a_part_can_be_left_out(part):
    batch = toy_lm_batch(2)
    whole = inter_terms(take(step_of(), batch))
    actual = inter_terms(take(step_of(f"--erdistill_wo_{part}"), batch))
    assert actual == {k: v for k, v in whole.items() if part not in k}


def test_without_layers_only_labels_are_left():
    step = step_of("--erdistill_inter=", "--distill_pt_soft")
    assert step.method.student_points() == []
    assert inter_terms(take(step, toy_lm_batch(2))) == {}


@pytest.mark.parametrize("by_mse", [False, True])
def test_the_seed_divides_by_the_padded_length_and_counts_padding(by_mse):
    batch = toy_lm_batch(3)
    step = step_of("--compat=D3", "--erdistill_inter=one", *["--erdistill_inter_mse"] * by_mse)
    actual = inter_terms(take(step, batch))
    student, teacher = seen(step, batch)
    s, t, length = student.state(2).detach(), teacher.state(4), batch.tokens.size(1)
    grams = [x @ x.mT / (length if by_mse else length**0.5) for x in (s, t)]
    words = [x @ table.T for x, table in zip((s, t), tables_of(step), strict=True)]
    for name, pair in (("local", grams), ("global", words)):
        loss = (pair[0] - pair[1]).square() if by_mse else kl_rows(*pair)
        assert actual[f"inter_loss/{name}.0_t0"] == pytest.approx(float(loss.mean()), rel=1e-4)


@pytest.mark.parametrize("changes", [{}, {"compress_word_emb": 12}], ids=["plain", "narrow"])
def test_the_last_layers_global_relation_is_the_logits(changes):
    batch = toy_lm_batch(3)
    flags = ["--erdistill_inter=one", "--erdistill_wo_local", "--distill_logits_parallel"]
    output = take(step_of(*flags, **changes), batch)
    actual, expected = inter_terms(output).values()
    assert actual == pytest.approx(expected, rel=1e-5)


def test_the_word_table_is_trained_and_the_teachers_is_not_held():
    step = step_of("--erdistill_inter=one", "--erdistill_wo_local")
    names = set(step.student.module.state_dict())
    take(step, toy_lm_batch(2))
    assert bool(step.method.origin_model.word_embeddings.weight.grad.any())
    assert set(step.student.module.state_dict()) == names
    assert not {*step.teachers[0].module.modules()} & {*step.method.modules()}
    assert step.teachers[0].module.state_dict(keep_vars=True)["word_embeddings.weight"].grad is None


def test_a_filler_gives_no_nan():
    batch = dataclasses.replace(toy_lm_batch(2), weight=torch.tensor([1.0, 0.0]))
    for flags in ([], ["--erdistill_inter_mse"]):
        step = step_of(*flags)
        assert torch.isfinite(take(step, batch).loss)
        assert all(bool(g.isfinite().all()) for g in grads_of(step.student.module).values())


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_a_teacher_in_half_precision(half):
    step, batch = step_of(), toy_lm_batch(2)
    expected = inter_terms(take(step, batch))
    step.teachers[0].module.to(half)
    assert inter_terms(take(step, batch)) == pytest.approx(expected, rel=0.2)


NARROW = {"compress_word_emb": 12}
FLAGS = [["--erdistill_inter=1plus"], ["--erdistill_inter_mse"]]


def on_ranks(rank, world_size):
    mpu.initialize_model_parallel(world_size)
    results = []
    for flags in FLAGS:
        step = step_of(*flags, **NARROW)
        output = take(step, toy_lm_batch(3))
        results.append((output.loss.detach(), grads_of(step.student.module)))
    return results


@pytest.mark.parametrize("size", [2, 4])
def test_a_narrow_table_does_not_depend_on_p(size):
    ranks = run_ranks(size, on_ranks)
    for number, flags in enumerate(FLAGS):
        step = step_of(*flags, **NARROW)
        expected = take(step, toy_lm_batch(3)).loss.detach()
        for results in ranks:
            torch.testing.assert_close(results[number][0], expected, rtol=1e-5, atol=1e-6)
        actual = merged([results[number][1] for results in ranks], step.student.module)
        grads = grads_of(step.student.module)
        largest = max(float(g.abs().max()) for g in grads.values())
        for key, grad in grads.items():
            torch.testing.assert_close(actual[key], grad, rtol=1e-4, atol=1e-5 * largest, msg=key)


@pytest.mark.parametrize("inter", LAYERS)
def test_what_it_needs(inter):
    flags = ["--student_model=erdistill", f"--erdistill_inter={inter}"]
    check_needs(toy_run(*flags), HeadSpec("lm"))
    shallow = toy_run(*flags, "--teacher_num_layers=1")
    lines = list(ERDistill.problems(shallow, HeadSpec("lm")))
    assert [line.split(":")[0] for line in lines] == ["--num-layers=2"] * (inter in ("all", "two"))
