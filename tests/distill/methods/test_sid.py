"""SID against loops; its stages by time and by threshold, on ranks and on resume."""

import math

import pytest
import torch

import mpu
from config import ConfigError
from distill.context import Clock
from distill.methods.sid import SID
from distill.step import check_needs
from model.build import HeadSpec
from tests.distill.methods.seen import kl_rows, lengths, mean_over_tokens, seen
from tests.distill.runs import cloze_task, grads_of, lm_task, rows_of, take, toy_run, toy_step
from tests.ranks import run_ranks
from tests.toy import merged, toy_cloze_batch, toy_lm_batch

WIDE = ["--student_model=sid", "--teacher_hidden_size=16", "--train-iters=30"]
SOFT = {"pretrain": "--distill_pt_soft", "finetune": "--distill_ft_soft"}


def batch_of(program):
    if program == "pretrain":
        return toy_lm_batch(3)
    return toy_cloze_batch(3, choices=3, variable=True)


def step_at(iteration, *flags, program="pretrain"):
    run = toy_run(*WIDE, SOFT[program], *flags, program=program)
    task = lm_task() if program == "pretrain" else cloze_task()
    return toy_step(run, task, iteration)


def attention_of(step, batch, layer):
    """Mean over tokens of the mean over heads, of student layer `layer` and the teacher's."""
    student, teacher = seen(step, batch)
    s = student.layer(layer, "attention_scores")
    t = teacher.layer(2 * layer, "attention_scores")
    return mean_over_tokens(batch, lambda i, n: kl_rows(s[i, :, :n, :n], t[i, :, :n, :n]).mean(0))


def cosine_of(step, batch, layer):
    """Mean over sequences of 1 - cos of position 0."""
    student, teacher = seen(step, batch)
    distances = []
    for i in lengths(batch):
        x, y = student.state(layer)[i, 0].tolist(), teacher.state(2 * layer)[i, 0].tolist()
        dot = sum(a * b for a, b in zip(x, y, strict=True))
        norms = math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))
        distances.append(1 - dot / norms)
    return sum(distances) / len(distances)


@pytest.mark.parametrize("program", ["pretrain", "finetune"])
@pytest.mark.parametrize(("iteration", "layers"), [(0, [1]), (9, [1]), (10, [1, 2]), (19, [1, 2])])
def test_the_formula(program, iteration, layers):
    step, batch = step_at(iteration, program=program), batch_of(program)
    output = take(step, batch)
    expected = {}
    for k in layers:
        expected[f"inter_loss/attention_scores.{k - 1}_t0"] = float(
            attention_of(step, batch, k).detach()
        )
    for k in layers:
        expected[f"inter_loss/hidden_states.{k - 1}_t0"] = cosine_of(step, batch, k)
    actual = {k: float(v) for k, v in output.terms.items() if k.startswith("inter_loss")}
    assert list(actual) == list(expected)
    assert actual == pytest.approx(expected, rel=1e-4)
    assert float(output.loss.detach()) == pytest.approx(sum(expected.values()), rel=1e-4)
    assert not any(name.startswith("pre_loss") for name in output.terms)


@pytest.mark.parametrize("flags", [[], ["--distill_logits_parallel"]])
@pytest.mark.parametrize("iteration", [20, 29, 500])
def test_the_last_stage_learns_labels_only(iteration, flags):
    step = step_at(iteration, *flags)
    output = take(step, toy_lm_batch(3))
    terms = [k for k in output.terms if k.split("/")[0] in ("pre_loss", "inter_loss")]
    expected = ["pre_loss/pt_soft_t0"] + ["inter_loss/logits_parallel_t0"] * bool(flags)
    assert terms == expected
    assert step.method.student_points() == step.method.teacher_points(0) == []
    assert any(bool(g.any()) for g in grads_of(step.student.module).values())


def test_a_last_stage_without_labels_still_has_a_loss():
    step = toy_step(toy_run(*WIDE), iteration=29)
    output = take(step, toy_lm_batch(2))
    assert float(output.loss.detach()) == 0.0


def test_padding_counts_under_d3():
    batch, flags = toy_lm_batch(3), ["--compat=D3"]
    step = step_at(0, *flags)
    output = take(step, batch)
    student, teacher = seen(step, batch)
    s, t = student.layer(1, "attention_scores"), teacher.layer(2, "attention_scores")
    actual = float(output.terms["inter_loss/attention_scores.0_t0"])
    assert actual == pytest.approx(float(kl_rows(s, t).mean().detach()), rel=1e-4)


def next_stage(step, batch):
    """The stage of the step after this one."""
    take(step, batch)
    step.state.iteration += 1
    step.method.begin_step(step._clock(0, 0))
    step.method.begin_pass(step._clock(0, 0))
    return step.method.stages.now


def test_a_threshold_ends_a_stage_early():
    batch = toy_lm_batch(3)
    first = cosine_of(step_at(0), batch, 1)
    both = first + cosine_of(step_at(0), batch, 2)
    for threshold, expected in ((first * 0.99, 1), (first * 1.01, 2)):
        assert next_stage(step_at(0, f"--sid_accumulate_t={threshold}"), batch) == expected
    step = step_at(0, f"--sid_accumulate_t={(first + both) / 2}")  # the sum of both is above
    assert [next_stage(step, batch) for _ in range(3)] == [2, 2, 2]
    step = step_at(0, f"--sid_accumulate_t={both * 1.01}")
    assert [next_stage(step, batch) for _ in range(3)] == [2, 3, 3]


def test_time_limits_a_stage_unless_told_otherwise():
    batch = toy_lm_batch(2)
    assert next_stage(step_at(9, "--sid_accumulate_t=1e-6"), batch) == 2
    assert next_stage(step_at(9, "--sid_accumulate_t=1e-6", "--sid_lim_e=none"), batch) == 1
    assert next_stage(step_at(0, "--sid_accumulate_t=9", "--sid_lim_e=none"), batch) == 2


def thresholded(accumulation):
    """A threshold between the cosine of the whole batch and that of its halves."""
    batch = toy_lm_batch(8, seed=3)
    whole = cosine_of(step_at(0), batch, 1)
    halves = [cosine_of(step_at(0), rows_of(batch, k, k + 4), 1) for k in (0, 4)]
    assert min(halves) < whole < max(halves)
    thresholds = [(whole + min(halves)) / 2, (whole + max(halves)) / 2]
    flag = f"--gradient-accumulation-steps={accumulation}"
    return batch, [step_at(0, flag, f"--sid_accumulate_t={t}") for t in thresholds]


def optimizer_step(step, micro_batches):
    """As an engine takes it, without an update."""
    counts = step.count(micro_batches)
    for number, batch in enumerate(micro_batches):
        step(batch, counts, number)
    step.state.iteration += 1
    step.count(micro_batches)
    step.method.begin_pass(step._clock(0, 0))
    return step.method.stages.now


def test_the_threshold_is_asked_of_the_mean_over_micro_batches():
    batch, steps = thresholded(2)
    parts = [rows_of(batch, 0, 4, longer=2), rows_of(batch, 4, 8)]
    assert [optimizer_step(step, parts) for step in steps] == [1, 2]


def test_further_passes_do_not_count():
    batch = toy_lm_batch(2)
    value = cosine_of(step_at(0), batch, 1)
    flags = ["--forward_repeat_num=1", f"--sid_accumulate_t={value * 1.01}"]
    assert next_stage(step_at(0, *flags), batch) == 2


def data_parallel(rank, world_size):
    mpu.initialize_model_parallel(1)
    batch, steps = thresholded(1)
    part = rows_of(batch, 4 * rank, 4 * rank + 4)
    states = []
    for step in steps:
        optimizer_step(step, [part])
        states.append((step.method.stages.now, step.method.method_state()))
    return states


def test_all_data_parallel_ranks_have_one_answer():
    for states in run_ranks(2, data_parallel):
        assert [stage for stage, _ in states] == [1, 2]
        assert [state for _, state in states] == [{"stage": 1}, {"stage": 2}]


STAGES = [(0, 1), (15, 2), (25, 3)]


def on_ranks(rank, world_size):
    mpu.initialize_model_parallel(world_size)
    results = []
    for iteration, _ in STAGES:
        step = step_at(iteration, "--sid_accumulate_t=0.1")
        output = take(step, toy_lm_batch(3))
        results.append((output.loss.detach(), grads_of(step.student.module)))
    return results


@pytest.mark.parametrize("size", [2, 4])
def test_no_stage_depends_on_p(size):
    ranks = run_ranks(size, on_ranks)
    for number, (iteration, _) in enumerate(STAGES):
        step = step_at(iteration)
        expected = take(step, toy_lm_batch(3)).loss.detach()
        for results in ranks:
            torch.testing.assert_close(results[number][0], expected, rtol=1e-5, atol=1e-6)
        actual = merged([results[number][1] for results in ranks], step.student.module)
        grads = grads_of(step.student.module)
        largest = max(float(g.abs().max()) for g in grads.values())
        for key, grad in grads.items():
            torch.testing.assert_close(actual[key], grad, rtol=1e-4, atol=1e-5 * largest, msg=key)


def test_without_a_threshold_nothing_is_kept():
    step = step_at(15)
    take(step, toy_lm_batch(2))
    assert step.method.method_state() == {}


def test_a_resumed_run_is_in_the_same_stage():
    batch, flags = toy_lm_batch(2), ["--sid_accumulate_t=9"]
    going_on = step_at(0, *flags)
    take(going_on, batch)
    state = going_on.method.method_state()  # after the step, before the next begins
    assert state == {"stage": 2}
    assert going_on.method.method_state() == state
    resumed = step_at(1, *flags)
    resumed.method.load_method_state(state)
    going_on.state.iteration = 1
    for step in (going_on, resumed):
        step.method.begin_step(step._clock(0, 0))
        step.method.begin_pass(step._clock(0, 0))
        assert step.method.stages.now == 2
    losses = [take(step, batch).loss.detach() for step in (going_on, resumed)]
    assert torch.equal(*losses)


def test_the_seed_counts_calls_and_forgets_them():
    batch = toy_lm_batch(2)
    step = step_at(29, "--compat=D20")
    assert [next_stage(step, batch) for _ in range(3)] == [2, 3, 3]
    assert step.method.method_state() == {}
    step = step_at(0, "--compat=D20", "--sid_accumulate_t=9")
    assert [next_stage(step, batch) for _ in range(3)] == [2, 3, 3]
    step = step_at(0, "--compat=D20", "--sid_accumulate_t=9", "--gradient-accumulation-steps=2")
    counts = step.count([batch] * 2)
    for number in range(2):
        step(batch, counts, number)
    step.method.begin_pass(Clock(iteration=1, total=30))
    assert step.method.stages.now == 3


def lines(*flags, program="pretrain"):
    run = toy_run("--student_model=sid", "--distill_pt_hard", "--distill_ft_hard", *flags)
    return list(SID.problems(run, HeadSpec("lm")))


def test_what_it_needs():
    wide = "--teacher_hidden_size=16"
    assert lines(wide) == []
    (line,) = lines()
    assert line.startswith("--hidden-size=16: sid")
    (line,) = lines(wide, "--teacher_num_attention_heads=2")
    assert line.startswith("--num-attention-heads=4: sid")
    (line,) = lines(wide, "--teacher_num_layers=1")
    assert line.startswith("--num-layers=2: sid")
    (line,) = lines(wide, "--distill_hard_rate=0")
    assert line.startswith("--student_model=sid: learns from labels")
    (line,) = lines(wide, "--sid_lim_e=none")
    assert line.startswith("--sid_lim_e=none")
    assert lines(wide, "--sid_lim_e=none", "--sid_accumulate_t=0.1") == []


def test_needs_are_told_before_models_are_built():
    run = toy_run("--student_model=SID", "--distill_pt_hard")
    with pytest.raises(ConfigError, match="--hidden-size=16"):
        check_needs(run, HeadSpec("lm"))
