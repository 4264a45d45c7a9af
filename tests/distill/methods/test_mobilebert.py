"""MobileBERT's distillation against loops, stage by stage."""

import pytest
import torch

import mpu
from distill.methods.mobilebert import MobileBERT
from model.build import HeadSpec
from tests.distill.methods.seen import kl_rows, mean_over_tokens, seen
from tests.distill.runs import cloze_task, grads_of, lm_task, take, toy_run, toy_step
from tests.ranks import run_ranks
from tests.toy import merged, toy_cloze_batch, toy_lm_batch

BOTTLENECK = [
    "--inverted_bottleneck_mode",
    "--ib_hidden_size=8",
    "--ib_ffn_num=2",
    "--teacher_inverted_bottleneck_mode",
    "--teacher_ib_hidden_size=24",
    "--teacher_ib_ffn_num=1",
]
HARD = {"pretrain": "--distill_pt_hard", "finetune": "--distill_ft_hard"}
WEIGHTS = ["--mobilebert_kd_w=0.3", "--mobilebert_pkt_small_lr=0.05"]


def step_at(iteration, *flags, program="pretrain", total=30):
    wide = ["--student_model=mobilebert", "--teacher_hidden_size=16", f"--train-iters={total}"]
    run = toy_run(*wide, HARD[program], *flags, program=program)
    task = lm_task() if program == "pretrain" else cloze_task()
    return toy_step(run, task, iteration)


def batch_of(program):
    if program == "pretrain":
        return toy_lm_batch(3)
    return toy_cloze_batch(3, choices=3, variable=True)


def distances(step, batch):
    """Of all layers, without any weight."""
    (student, teacher), terms = seen(step, batch), {}
    for k in (1, 2):
        s = student.layer(k, "attention_scores").detach()
        t = teacher.layer(2 * k, "attention_scores")
        terms[f"attention_scores.{k - 1}"] = mean_over_tokens(
            batch, lambda i, n, s=s, t=t: kl_rows(s[i, :, :n, :n], t[i, :, :n, :n]).mean(0)
        )
    for k in (0, 1, 2):
        s, t = student.state(k).detach(), teacher.state(2 * k)
        terms[f"hidden_states.{k}"] = mean_over_tokens(
            batch, lambda i, n, s=s, t=t: (s[i, :n] - t[i, :n]).square().mean(-1)
        )
    return {name: float(value) for name, value in terms.items()}


OLD = 0.05
# Iteration -> the weight of each term that takes part.
STAGES = {
    0: {"attention_scores.0": 1, "hidden_states.0": OLD, "hidden_states.1": 1},
    10: {
        "attention_scores.0": OLD,
        "attention_scores.1": 1,
        "hidden_states.0": OLD,
        "hidden_states.1": OLD,
        "hidden_states.2": 1,
    },
    20: {
        "attention_scores.0": 1,
        "attention_scores.1": 1,
        "hidden_states.0": 1,
        "hidden_states.1": 1,
        "hidden_states.2": 1,
    },
}


@pytest.mark.parametrize("program", ["pretrain", "finetune"])
@pytest.mark.parametrize("iteration", STAGES)
@pytest.mark.parametrize("flags", [[], BOTTLENECK], ids=["plain", "bottleneck"])
def test_the_formula(flags, iteration, program):
    step, batch = step_at(iteration, *WEIGHTS, *flags, program=program), batch_of(program)
    terms = take(step, batch).terms
    of_layers, weights = distances(step, batch), STAGES[iteration]
    expected = {f"inter_loss/{name}_t0": w * of_layers[name] for name, w in weights.items()}
    actual = {k: float(v) for k, v in terms.items() if k.startswith("inter_loss")}
    assert list(actual) == list(expected)
    assert actual == pytest.approx(expected, rel=1e-4)
    hard = float(terms["Train/hard_loss"]) if iteration == 20 else 0.0
    total = float(terms["teacher_loss/teacher_0_t0"])
    assert total == pytest.approx(0.3 * sum(expected.values()) + hard, rel=1e-4)


def test_other_terms_have_no_weight_of_it():
    batch = toy_lm_batch(2)
    terms = take(step_at(0, "--mobilebert_kd_w=0", "--distill_logits_parallel"), batch).terms
    total = float(terms["teacher_loss/teacher_0_t0"])
    assert total == pytest.approx(float(terms["inter_loss/logits_parallel_t0"]))


def names(step):
    return [n for n in take(step, toy_lm_batch(2)).terms if n.startswith(("inter", "pre"))]


def test_the_schedule_of_the_learning_rate_sets_the_stages():
    short = ["--lr-decay-iters=15"]
    assert names(step_at(5, *short)) == names(step_at(10))
    assert names(step_at(10, *short)) == names(step_at(20))
    assert names(step_at(4, *short)) == names(step_at(0))
    assert names(step_at(29, *short)) == names(step_at(29))


def test_the_seed_counts_calls():
    step, counts = step_at(29, "--compat=D20"), []
    for _ in range(4):
        counts.append(len(names(step)))
    assert counts == [3, 5, 6, 6]
    assert step.method.method_state() == {}


def test_padding_counts_under_d3():
    batch, step = toy_lm_batch(3), step_at(0, "--compat=D3")
    terms = take(step, batch).terms
    student, teacher = seen(step, batch)
    expected = float((student.state(1) - teacher.state(2)).detach().square().mean())
    assert float(terms["inter_loss/hidden_states.1_t0"]) == pytest.approx(expected, rel=1e-4)


def test_nothing_is_logged_where_it_is_not_wanted():
    step = step_at(0)
    step.method.show_inter = False
    assert names(step) == []


def on_ranks(rank, world_size):
    mpu.initialize_model_parallel(world_size)
    results = []
    for iteration in STAGES:
        step = step_at(iteration, *BOTTLENECK)
        output = take(step, toy_lm_batch(3))
        results.append((output.loss.detach(), grads_of(step.student.module)))
    return results


@pytest.mark.parametrize("size", [2, 4])
def test_no_stage_depends_on_p(size):
    ranks = run_ranks(size, on_ranks)
    for number, iteration in enumerate(STAGES):
        step = step_at(iteration, *BOTTLENECK)
        expected = take(step, toy_lm_batch(3)).loss.detach()
        for results in ranks:
            torch.testing.assert_close(results[number][0], expected, rtol=1e-5, atol=1e-6)
        actual = merged([results[number][1] for results in ranks], step.student.module)
        grads = grads_of(step.student.module)
        largest = max(float(g.abs().max()) for g in grads.values())
        for key, grad in grads.items():
            torch.testing.assert_close(actual[key], grad, rtol=1e-4, atol=1e-5 * largest, msg=key)


def lines(*flags):
    return list(MobileBERT.problems(toy_run("--student_model=mobilebert", *flags), HeadSpec("lm")))


def test_what_it_needs():
    wide = "--teacher_hidden_size=16"
    assert lines(wide) == []
    (line,) = lines()
    assert line.startswith("--hidden-size=16: mobilebert")
    (line,) = lines(wide, "--teacher_num_attention_heads=2")
    assert line.startswith("--num-attention-heads=4: mobilebert")
    (line,) = lines(wide, "--teacher_num_layers=1")
    assert line.startswith("--num-layers=2: mobilebert")
