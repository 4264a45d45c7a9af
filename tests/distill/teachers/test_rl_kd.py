"""RL-KD against loops over samples and teachers: choice, policy term one step late, rewards."""

import dataclasses

import pytest
import torch

from distill.capture import Captured, output, to_hook
from distill.context import Clock
from mpu import hook_model
from tasks.base import token_mask
from tests.distill.runs import grads_of, take, toy_run, toy_step
from tests.distill.teachers.several import (
    KD,
    THREE,
    batch_of,
    hard_each,
    hard_of,
    logits_of,
    problems,
    soft_each,
    step_of,
    task_of,
)

MT = "--multi_teacher_model=rl_kd"
SEMANTIC = [MT, "--rl_kd_semantic_model=1"]  # teachers 0 and 2 are chosen from
BLIND = [MT, "--rl_kd_semantic_model_dim=5"]  # all three are
PROGRAMS = pytest.mark.parametrize("program", ["pretrain", "finetune"])


def step_three(*flags, program="finetune"):
    step = toy_step(toy_run(*THREE, *KD, *flags, program=program), task_of(program))
    with torch.no_grad():  # an agent that is not certain
        step.comparison.combiner.agent_semantic_mt_loss.weight.mul_(0.1)
        step.comparison.combiner.agent_mt_soft.weight.mul_(0.1)
    return step


def numbers(step):
    semantic = step.comparison.combiner.args.rl_kd_semantic_model
    return [k for k in range(len(step.teachers)) if k != semantic]


def seen(step, batch, mask=None, filled=False):
    """x [b, width + n] and y [b, n c], built sample by sample."""
    _, teachers = logits_of(step, batch)
    chosen, semantic = numbers(step), step.comparison.combiner.args.rl_kd_semantic_model
    said = None
    if semantic is not None:
        found, hook = [], to_hook([output()])
        hook_model(hook, found, step.teachers[semantic].module, *step.task.inputs(batch))
        said = Captured(hook, found)[output()][:, 0].detach()
    x, y = [], []
    for i in range(len(batch.tokens)):
        width = step.comparison.combiner.width
        row = [torch.zeros(width)]
        if said is not None:
            states = said.view(len(batch.tokens), -1, said.size(-1))[i]
            if batch.choice_mask is not None and not filled:
                states = states * batch.choice_mask[i][:, None]
            row = [torch.nn.functional.pad(states.flatten(), (0, width - states.numel()))]
        row += [hard_each(teachers[k], batch)[i : i + 1] for k in chosen]
        x.append(torch.cat(row))
        parts = []
        for k in chosen:
            z = teachers[k][i]
            if z.dim() == 2:
                z = z[mask[i] > 0].sum(0) / max(1, int((mask[i] > 0).sum()))
            elif batch.choice_mask is not None and not filled:
                z = z * batch.choice_mask[i]
            parts.append(z)
        y.append(torch.cat(parts))
    return torch.stack(x), torch.stack(y)


def pi_of(step, x, y):
    combiner = step.comparison.combiner
    a, b = combiner.agent_semantic_mt_loss, combiner.agent_mt_soft
    return torch.sigmoid(x @ a.weight.T + a.bias + y @ b.weight.T + b.bias)


def fixed(step):
    """Uniform numbers known to the test."""
    generator = torch.Generator().manual_seed(4)
    uniform = torch.rand(4, len(numbers(step)), generator=generator)
    step.comparison.combiner.draw = lambda shape: uniform
    return uniform


@PROGRAMS
@pytest.mark.parametrize("agent", [SEMANTIC, BLIND], ids=["semantic", "blind"])
@pytest.mark.parametrize("reward", [1, 2])
@pytest.mark.parametrize("wo_hard", [False, True])
def test_two_steps(program, agent, reward, wo_hard):
    flags = [*agent, f"--rl_kd_reward={reward}", "--rl_kd_alpha=0.3"]
    flags += ["--rl_kd_wo_hard"] if wo_hard else []
    step, batches = step_three(*flags, program=program), [batch_of(program), batch_of(program)]
    batches[1].tokens[0, ..., 1] = 21
    uniform, memory = fixed(step), None
    for batch in batches:
        step.student.module.zero_grad()
        s, teachers = logits_of(step, batch)
        x, y = seen(step, batch, batch.loss_mask)
        action = (uniform < pi_of(step, x, y)).float().detach()
        assert 0 < action.mean() < 1
        losses = torch.stack([soft_each(s, teachers[k], batch) for k in numbers(step)], 1)
        expected = (action * losses).mean()
        if memory is not None:
            gain = -hard_of(s, batch).detach()
            if reward == 2:
                gain = gain - sum(
                    hard_each(teachers[k], batch).mean() for k in numbers(step)
                ) / len(numbers(step))
            pi, old = pi_of(step, *memory[:2]), memory[2]
            log_p = torch.where(old > 0, pi.log(), (1 - pi).log())
            policy = -gain * log_p.mean(0).sum()
            expected = expected + policy
        expected = 0.3 * expected + (0 if wo_hard else 0.7 * hard_of(s, batch))
        expected.backward()
        grads = grads_of(step.student.module)
        output = take(step, batch)
        torch.testing.assert_close(output.loss, expected)
        for key, grad in grads_of(step.student.module).items():
            torch.testing.assert_close(grad, grads[key], rtol=1e-4, atol=1e-5, msg=key)
        assert ("multi_teacher_model/rl_loss" in output.terms) == (memory is not None)
        if memory is not None:
            assert float(output.terms["multi_teacher_model/rl_loss"]) == pytest.approx(
                float(policy.detach()), rel=1e-4
            )
            agent_keys = [key for key in grads if "agent_" in key]
            assert all(grads[key].any() for key in agent_keys if key.endswith("bias"))
        assert ("multi_teacher_model/hard_loss" in output.terms) == (not wo_hard)
        memory = x, y, action


@pytest.mark.parametrize("flag", ["wo_loss_mask", "only_mask_pad"])
def test_the_agent_sees_all_tokens(flag):
    step, batch = step_three(*BLIND, f"--rl_kd_{flag}", program="pretrain"), batch_of("pretrain")
    assert not step.comparison.needs_targets_only
    fixed(step)
    take(step, batch)
    expected = seen(step, batch, token_mask(batch.position_ids))
    last = step.comparison.combiner._last
    torch.testing.assert_close(last["x"], expected[0])
    torch.testing.assert_close(last["y"], expected[1], rtol=1e-4, atol=1e-5)


def test_only_logits_of_targets_are_computed_otherwise():
    step, batch = step_three(*SEMANTIC, program="pretrain"), batch_of("pretrain")
    assert step.comparison.needs_targets_only
    lean = float(take(step, batch).loss.detach())
    other = step_three(*SEMANTIC, program="pretrain")
    other.method.needs_targets_only = lambda: False
    assert float(take(other, batch).loss.detach()) == pytest.approx(lean, rel=1e-6)


@pytest.mark.parametrize("agent", [SEMANTIC, BLIND])
def test_the_average_stage(agent):
    step = step_three(*agent, "--rl_kd_only_avg", "--rl_kd_alpha=0.2")
    batch, ran = batch_of("finetune"), []
    s, teachers = logits_of(step, batch)
    for number, teacher in enumerate(step.teachers):
        teacher.module.register_forward_hook(lambda *_, number=number: ran.append(number))
    mean = sum(soft_each(s, teachers[k], batch).mean() for k in numbers(step)) / len(numbers(step))
    torch.testing.assert_close(take(step, batch).loss, 0.2 * mean + 0.8 * hard_of(s, batch))
    assert ran == numbers(step)
    grads = grads_of(step.student.module)
    assert not any(grads[key].any() for key in grads if "agent_" in key)
    assert step.comparison.combiner.combiner_state() == {"ranks": [{}]}


def test_the_semantic_model_is_not_compared():
    step = step_three(*SEMANTIC)
    asked, function = [], step.method.get_teacher_hook
    step.method.get_teacher_hook = lambda t_no=0: asked.append(t_no) or function(t_no=t_no)
    output = take(step, batch_of("finetune"))
    assert asked == [0, 2]
    assert {name[-2:] for name in output.terms if name.startswith("pre_loss")} == {"t0", "t2"}


def test_samples_with_fewer_choices_are_widened():
    batch, other = batch_of("finetune"), batch_of("finetune")
    step = step_three(*SEMANTIC)
    take(step, batch)
    for name in ("tokens", "position_ids", "attention_mask", "target_ids", "logit_mask"):
        setattr(other, name, getattr(other, name)[:, :2])
    other.choice_mask, other.labels = None, other.labels.clamp(max=1)
    x, y = seen(step, other)
    take(step, other)
    last = step.comparison.combiner._last
    torch.testing.assert_close(last["x"], x)
    expected = torch.nn.functional.pad(y.view(4, 2, 2), (0, 1)).flatten(1)
    torch.testing.assert_close(last["y"], expected)


def test_fillers_and_padded_choices_change_nothing():
    losses, grads = [], []
    for token in (11, 33):
        batch = batch_of("finetune")
        batch.tokens[-1, -1, 1:4] = token  # a choice that only fills the batch
        step = step_three(*SEMANTIC)
        take(step, batch)
        losses.append(take(step, batch).loss.detach())
        grads.append(grads_of(step.student.module))
    torch.testing.assert_close(losses[0], losses[1])
    for key, grad in grads[0].items():
        torch.testing.assert_close(grads[1][key], grad, rtol=1e-4, atol=1e-5, msg=key)


@PROGRAMS
def test_a_filler_sample_takes_no_part_in_policy_and_reward(program):
    policies = []
    for flags in (SEMANTIC, [*SEMANTIC, "--rl_kd_reward=2"]):
        for weight, rows in (([1, 1, 1, 0], 4), ([1, 1, 1], 3)):
            batch = batch_of(program)
            if rows == 3:
                from tests.distill.runs import rows_of

                batch = rows_of(batch, 0, 3)
            batch = dataclasses.replace(batch, weight=torch.tensor(weight).float())
            step = step_three(*flags, program=program)
            uniform = torch.rand(4, 2, generator=torch.Generator().manual_seed(4))
            step.comparison.combiner.draw = lambda shape, u=uniform: u[: shape[0]]
            take(step, batch)
            terms = take(step, batch).terms
            policies.append(float(terms["multi_teacher_model/rl_loss"]))
    assert policies[0] == pytest.approx(policies[1], rel=1e-5)
    assert policies[2] == pytest.approx(policies[3], rel=1e-5)
    assert policies[0] != pytest.approx(policies[2], rel=1e-3)


MASKS = {
    (): lambda batch: batch.loss_mask,
    ("--rl_kd_wo_loss_mask",): lambda batch: torch.ones_like(batch.loss_mask),
    ("--rl_kd_only_mask_pad",): lambda batch: (batch.labels > 0).float(),
}


@PROGRAMS
@pytest.mark.parametrize("flags", MASKS)
@pytest.mark.parametrize("reward", [1, 2])
def test_compat_takes_the_gradient_of_pi_and_the_last_teachers_loss(program, flags, reward):
    words = [*SEMANTIC, "--compat=MT,D6", f"--rl_kd_reward={reward}", *flags]
    step, batch = step_three(*words, program=program), batch_of(program)
    uniform = fixed(step)
    take(step, batch)
    step.student.module.zero_grad()
    s, teachers = logits_of(step, batch)
    x, y = seen(step, batch, torch.ones_like(batch.tokens), filled=True)
    if program == "pretrain":
        mask = MASKS[flags](batch)
        y = torch.cat([(teachers[k] * mask[..., None]).mean(1) for k in (0, 2)], 1)
    pi = pi_of(step, x, y)
    action = (uniform < pi).float().detach()
    gain = -hard_of(s, batch).detach()
    if reward == 2:
        gain = gain - hard_each(teachers[2], batch).mean()
    policy = -gain * (pi * action + (1 - pi) * (1 - action)).sum()
    every = dataclasses.replace(batch, choice_mask=None)  # D6
    losses = torch.stack([soft_each(s, teachers[k], every) for k in (0, 2)], 1)
    expected = 0.5 * ((action * losses).mean() + policy) + 0.5 * hard_of(s, batch)
    expected.backward()
    grads = grads_of(step.student.module)
    torch.testing.assert_close(take(step, batch).loss, expected, rtol=1e-5, atol=1e-5)
    for key, grad in grads_of(step.student.module).items():
        torch.testing.assert_close(grad, grads[key], rtol=1e-4, atol=1e-4, msg=key)


@PROGRAMS
def test_a_batch_of_one_one_teacher_and_no_targets(program):
    one = ["--mt_hidden_size=24", "--mt_num_layers=4", "--mt_num_attention_heads=4"]
    task = task_of(program)
    lonely = toy_step(toy_run(*one, *KD, *BLIND, "--rl_kd_reward=2", program=program), task)
    empty = batch_of(program)
    if program == "pretrain":
        empty.loss_mask[:] = 0
    nobody = dataclasses.replace(batch_of(program), weight=torch.zeros(4))
    for step in (lonely, step_three(*SEMANTIC, "--rl_kd_reward=2", program=program)):
        for batch in (batch_of(program, 1), empty, nobody, batch_of(program)):
            assert torch.isfinite(take(step, batch).loss)
            assert all(g.isfinite().all() for g in grads_of(step.student.module).values())


def test_an_agent_that_is_certain_keeps_its_logarithm_finite():
    step, batch = step_three(*BLIND), batch_of("finetune")
    with torch.no_grad():
        step.comparison.combiner.agent_mt_soft.bias.fill_(1000.0)
    take(step, batch)
    step.comparison.combiner._last["action"].zero_()
    assert torch.isfinite(take(step, batch).loss)


def test_methods_without_losses_per_sample():
    step, batch = step_three(*BLIND), batch_of("finetune")
    step.method.pre_loss = lambda *_, **__: 0.0
    fixed(step)
    s, _ = logits_of(step, batch)
    torch.testing.assert_close(take(step, batch).loss, 0.5 * hard_of(s, batch))
    step.method.pre_loss = lambda s, *_, **__: s.sum()
    assert torch.isfinite(take(step, batch).loss)


def test_draws_are_a_function_of_the_clock():
    first, second = (step_three(*BLIND).comparison.combiner for _ in range(2))
    clocks = [
        Clock(iteration=i, micro_step=m, repeat=r)
        for i, m, r in ((0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 0, 1))
    ]
    drawn = []
    for clock in clocks:
        first.begin_pass(clock)
        drawn.append(first.draw((4, 3)))
    second.begin_pass(clocks[2])
    assert torch.equal(second.draw((4, 3)), drawn[2])
    assert len({tuple(x.flatten().tolist()) for x in drawn}) == 4


def test_what_it_needs():
    def told(*flags):
        return problems(*KD, MT, *flags)

    assert told("--rl_kd_semantic_model=1") == [] == told("--rl_kd_semantic_model_dim=7")
    (line,) = told()
    assert line.startswith("--rl_kd_semantic_model: missing")
    assert len(told("--rl_kd_only_avg")) == 1
    (line,) = told("--rl_kd_semantic_model=2")
    assert line == "--rl_kd_semantic_model=2: there are teachers 0 to 1"
    (line,) = told("--rl_kd_semantic_model=0", "--rl_kd_semantic_model_dim=7")
    assert line.startswith("--rl_kd_semantic_model_dim=7: teacher 0 has width 24")
    assert told("--rl_kd_semantic_model=0", "--rl_kd_semantic_model_dim=24") == []
    line, soft = told("--rl_kd_semantic_model=0", "--mt_disable_operation=0:1")
    assert soft.startswith("--mt_disable_operation=0:1: soft labels need")
    assert line.startswith("--mt_disable_operation=0:1: rl_kd needs")
    (line,) = told("--rl_kd_semantic_model=0", "--distill_ft_hard")
    assert line.startswith("--distill_ft_hard: rl_kd adds the hard loss itself")
    assert told("--rl_kd_semantic_model=0", "--distill_ft_hard", "--rl_kd_wo_hard") == []
    one = ["--mt_hidden_size=24", "--mt_num_layers=4", "--mt_num_attention_heads=4"]
    (line,) = told("--rl_kd_semantic_model=0", *one)
    assert line.startswith("--rl_kd_semantic_model=0: is the only teacher")


def test_the_semantic_model_may_be_of_any_width():
    pkd = ["--student_model=pkd", "--distill_ft_soft", MT, "--mt_hidden_size=24:16"]
    assert problems(*pkd, "--rl_kd_semantic_model=0") == []
    (line,) = problems(*pkd, "--rl_kd_semantic_model=1")
    assert "teacher 0 has 24" in line
    step = step_of(*pkd, "--rl_kd_semantic_model=0")
    assert torch.isfinite(take(step, batch_of("finetune")).loss)


def test_values_of_flags():
    from config import ConfigError
    from distill.agent import RLKDArgs

    with pytest.raises(ConfigError) as error:
        RLKDArgs(rl_kd_reward=3, rl_kd_alpha=1.5)
    assert [line.split("=")[0] for line in error.value.problems] == [
        "--rl_kd_reward",
        "--rl_kd_alpha",
    ]
