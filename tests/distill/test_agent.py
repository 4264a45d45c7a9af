"""The agent: its sharded layer, its memory, REINFORCE, and what it sees."""

import pytest
import torch
import torch.nn.functional as F

import mpu
from distill.agent import RLKDArgs, ShardedAgent, policy_term, said, side_by_side, widened
from distill.combiner import COMBINERS, Answer, Combination
from distill.context import Clock, LossContext
from distill.rows import local_rows
from mpu.layout import Layout
from tasks.base import TaskShape
from tests.distill.runs import toy_run
from tests.ranks import run_ranks
from tests.toy import merged, randomize, rank_grads

BLOCKS, WORDS = 3, 8
WIDE = ["--mt_hidden_size=24:16", "--mt_num_layers=4:3", "--mt_num_attention_heads=4:8"]


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_policy_term_is_reinforce():
    scores, reward = random(4, 3).requires_grad_(), torch.tensor(-2.0)
    action = (random(4, 3, seed=1) > 0).float()
    real = torch.tensor([1.0, 1, 0, 1])
    expected, seed = 0.0, 0.0
    for b in (0, 1, 3):
        for i in range(3):
            pi = torch.sigmoid(scores[b, i])
            p = pi if action[b, i] else 1 - pi
            expected, seed = expected + 2.0 * p.log() / 3, seed + 2.0 * p
    actual = policy_term(scores, action, real, reward)
    torch.testing.assert_close(actual, expected)
    grads = [torch.autograd.grad(x, scores)[0] for x in (actual, expected)]
    torch.testing.assert_close(*grads)
    torch.testing.assert_close(policy_term(scores, action, real, reward, seed=True), seed)


def test_policy_term_is_finite_where_the_agent_is_certain():
    scores = torch.tensor([[500.0, -500.0]]).requires_grad_()
    for action in (torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])):
        loss = policy_term(scores, action, torch.ones(1), torch.tensor(-1.0))
        (grad,) = torch.autograd.grad(loss, scores)
        assert loss.isfinite()
        assert grad.isfinite().all()
    assert float(policy_term(scores, action, torch.zeros(1), torch.tensor(1.0)).detach()) == 0


def agent():
    return randomize(ShardedAgent(BLOCKS, WORDS, 2, seed=(1, "a")), 5)


def forward(rank, size):
    if size > 1:
        mpu.initialize_model_parallel(size)
    layer, x = agent(), random(4, BLOCKS * WORDS)
    x = mpu.split(x, mpu.Partition(1, stride=BLOCKS), rank, size)
    out = layer(x)
    (out * random(4, 2, seed=2)).sum().backward()
    fresh = ShardedAgent(BLOCKS, WORDS, 2, seed=(1, "a"))
    return out.detach(), rank_grads(layer), dict(fresh.state_dict())


@pytest.mark.parametrize("size", [2, 4])
def test_the_sharded_layer_does_not_depend_on_p(size):
    out, grads, weights = forward(0, 1)
    layer = agent()
    dense = F.linear(random(4, BLOCKS * WORDS), layer.weight, layer.bias)
    torch.testing.assert_close(out, dense.detach())
    ranks = run_ranks(size, forward)
    for other, _, _ in ranks:
        torch.testing.assert_close(other, out)
    for number, expected in ((1, grads), (2, weights)):
        for key, value in merged([r[number] for r in ranks], layer).items():
            torch.testing.assert_close(value, expected[key])


def choosing(classes, rank=0):
    run = toy_run(
        *WIDE, "--student_model=kd", "--multi_teacher_model=rl_kd", "--rl_kd_semantic_model_dim=5"
    )
    shape = TaskShape(classes=classes)
    return COMBINERS["rl_kd"](run, run.combiner, shape)


def chosen(rank, size, p, restore):
    """Choose once; the state; the policy after restoring it elsewhere."""
    if size > 1:
        mpu.initialize_model_parallel(p)
    combiner = choosing(0)
    combiner.begin_pass(Clock(iteration=3))
    x, y = random(4, 7, seed=9), random(4, 2 * 64, seed=8)
    if restore is None:
        y = mpu.split(y, mpu.Partition(1, stride=2), mpu.get_model_parallel_rank(), p)
        action = combiner.choose(x + mpu.get_data_parallel_rank(), y, torch.ones(4))
        return combiner.combiner_state(), combiner.policy(torch.tensor(-1.0)).detach(), action
    combiner.load_combiner_state(restore)
    policy = combiner.policy(torch.tensor(-1.0))
    return None if policy is None else policy.detach()


def test_the_memory_goes_on_with_another_p():
    ((state, policy, action),) = [chosen(0, 1, 1, None)]
    assert state["ranks"][0]["y"].shape == (4, 128)
    assert chosen(0, 1, 1, state) == policy
    for found, other, taken in run_ranks(2, chosen, 2, None):
        torch.testing.assert_close(other, policy)
        assert torch.equal(taken, action)
        assert all(torch.equal(v, state["ranks"][0][k]) for k, v in found["ranks"][0].items())
    for other in run_ranks(2, chosen, 2, state):
        torch.testing.assert_close(other, policy)


def test_every_data_parallel_rank_has_its_own_memory():
    ranks = run_ranks(2, chosen, 1, None)
    states = [state for state, _, _ in ranks]
    assert len(states[0]["ranks"]) == 2
    assert torch.equal(states[0]["ranks"][1]["x"], states[1]["ranks"][1]["x"])
    assert torch.equal(states[0]["ranks"][1]["x"], states[0]["ranks"][0]["x"] + 1)
    assert not torch.equal(ranks[0][2], ranks[1][2])  # other draws
    restored = run_ranks(2, chosen, 1, states[0])
    assert restored == [policy for _, policy, _ in ranks]
    assert chosen(0, 1, 1, states[0]) is None  # other ranks: it begins anew


def test_state_before_the_first_choice():
    combiner = choosing(3)
    assert combiner.combiner_state() == {"ranks": [{}]}
    combiner.load_combiner_state({"ranks": [{}]})
    assert combiner.policy(torch.tensor(1.0)) is None


def test_actions_follow_their_probabilities():
    combiner = choosing(3)
    combiner.begin_pass(Clock())
    scores = torch.tensor([-50.0, 0.0])
    combiner._scores = lambda x, y: scores.expand(len(x), 2)
    x = torch.zeros(4000, 7)
    action = combiner.choose(x, x, torch.ones(4000)).mean(0)
    assert float(action[0]) == 0
    assert float(action[1]) == pytest.approx(0.5, abs=0.03)


def answers(*logits):
    hard = [random(len(z), seed=k).abs() for k, z in enumerate(logits)]
    return [Answer(k, 0.0, 0.0, z, h) for k, (z, h) in enumerate(zip(logits, hard, strict=True))]


def made(**fields):
    hard = torch.tensor(0.0)
    return Combination(torch.zeros(2, 3), hard, 1.0, LossContext(**fields), lambda *_: None)


def test_what_it_sees_of_choices():
    mask = torch.tensor([[1.0, 1, 1], [1, 1, 0]])
    z = [random(2, 3, seed=k) for k in (5, 6)]
    y = side_by_side(answers(*z), made(class_mask=mask), 4, rows="targets")
    assert y.shape == (2, 8)
    assert torch.equal(y[:, :3], z[0] * mask)
    assert torch.equal(y[:, 4:7], z[1] * mask)
    assert not y[:, [3, 7]].any()
    states = random(2, 3, 5)
    x = said(answers(*z), made(class_mask=mask), states, 20)
    assert torch.equal(x[:, :15], (states * mask[..., None]).flatten(1))
    assert not x[:, 15:20].any()
    assert torch.equal(x[:, 20:], torch.stack([a.hard_loss for a in answers(*z)], 1))
    assert not said(answers(*z), made(), None, 20)[:, :20].any()
    one = said(answers(*z), made(class_mask=mask), states[:, :1], 5)  # a sample is one row
    assert torch.equal(one[:, :5], states[:, 0])


def test_what_it_sees_of_a_language_model():
    z, mask = random(2, 4, 6), torch.tensor([[0.0, 1, 0, 0], [0, 0, 0, 0]])
    rows = {"targets": local_rows(mask, 2)}
    assert rows["targets"].index is not None
    context = made(rows=rows, layout=Layout.SHARD_LAST)
    expected = torch.stack([z[0, 1], torch.zeros(6)])
    assert torch.equal(side_by_side(answers(z), context, 0, rows="targets"), expected)
    picked = side_by_side(answers(z[:1, 1]), context, 0, rows="targets")
    assert torch.equal(picked, expected)
    without = side_by_side(answers(z), made(layout=Layout.SHARD_LAST), 0, rows="targets")
    torch.testing.assert_close(without, z.mean(1))


def test_widened():
    assert widened(torch.ones(2, 3), 5).tolist() == [[1, 1, 1, 0, 0]] * 2
    with pytest.raises(AssertionError, match="3 entries"):
        widened(torch.ones(2, 3), 2)


def test_width_of_the_semantic_model():
    run = toy_run(*WIDE, "--student_model=kd")
    assert RLKDArgs(rl_kd_semantic_model=1).width(run) == 16
    assert RLKDArgs(rl_kd_semantic_model_dim=9).width(run) == 9
