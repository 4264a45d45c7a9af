"""The base of combiners, and how a run chooses one."""

import dataclasses

import pytest
import torch
from torch import nn

from config import NoArgs, RunArgs
from distill.combiner import (
    COMBINERS,
    Combination,
    Combiner,
    chosen_combiner,
    combiner_args,
    register_combiner,
)
from distill.context import Clock, LossContext
from distill.rows import Rows
from distill.teachers import build_combiner
from distill.teachers.average import Average, AverageArgs
from distill.teachers.mt_bert import MTBert
from tasks.base import TaskShape
from tests.distill.runs import take, toy_run
from tests.distill.teachers.several import KD, TWO, batch_of, problems, step_of


def test_every_name_of_the_seed():
    args = combiner_args()
    names = {"avg", "tmkd", "mt_bert", "uncertainty", "rl_kd", "mixmt"}
    names |= {"AvgTeacher", "MT_BERT", "Uncertainty", "RL_KD", "MixMT"}
    assert set(args) == set(COMBINERS) == names
    assert all(args[name] is cls.Args for name, cls in COMBINERS.items())
    flags = [flag for group in set(args.values()) for flag in group.flags()]
    assert len(flags) == len(set(flags))


def test_a_name_is_taken_once():
    with pytest.raises(AssertionError, match="avg"):
        register_combiner("avg")(type("Other", (Combiner,), {}))
    assert COMBINERS["avg"] is Average


def test_what_a_run_chooses():
    run = toy_run(*TWO, *KD, "--avgmt_sum_loss")
    assert chosen_combiner(run) == (Average, AverageArgs(avgmt_sum_loss=True))
    run = toy_run(*TWO, *KD, "--multi_teacher_model=MT_BERT")
    cls, args = chosen_combiner(run)
    assert cls is MTBert
    assert args is run.combiner
    by_hand = dataclasses.replace(run, combiner=NoArgs())
    assert chosen_combiner(by_hand)[1] == MTBert.Args()
    assert chosen_combiner(RunArgs(program="pretrain")) == (Average, AverageArgs())
    assert type(build_combiner(run, TaskShape())) is MTBert


def combiner():
    return Combiner(toy_run(*TWO, *KD), NoArgs(), TaskShape())


def test_what_the_base_does():
    base = combiner()
    assert list(Combiner.problems(base.run, base.args, None)) == []
    assert base.parts == (base,)
    assert base.per_sample == base.recomputes == (False, False)
    assert not base.needs_all_logits
    assert not base.needs_teacher_loss
    assert not Combiner.converts_width(base.run, base.args)
    assert Combiner.learns_from(base.args, 1)
    assert base.runs(1)
    assert base.compares(1)
    assert base.teacher_points(1) == []
    own, its = [torch.ones(1)], [torch.zeros(1)]
    assert base.adapt(0, ({}, own), ({}, its)) == (own, its)
    assert float(base.total([torch.tensor(1.0), 3.0], [], None)) == 2
    assert base.join([5.0], None) == 5.0
    base.begin_pass(Clock(iteration=7))
    assert base.clock.iteration == 7


def test_it_keeps_no_state():
    base = combiner()
    assert base.combiner_state() == {}
    base.load_combiner_state({})
    with pytest.raises(AssertionError, match="Combiner keeps no state"):
        base.load_combiner_state({"x": 1})


def test_generators_are_keyed_by_seed_class_and_words():
    def draw(*words, cls=Combiner, **flags):
        run = toy_run(*TWO, *KD, *[f"--{k}={v}" for k, v in flags.items()])
        made = cls(run, AverageArgs(), TaskShape())
        return float(torch.rand(1, generator=made.generator(*words)))

    assert draw(1, "a") == draw(1, "a")
    others = {draw(2, "a"), draw(1, "b"), draw(1, "a", seed=9), draw(1, "a", cls=Average)}
    assert len(others | {draw(1, "a")}) == 5


def made(**rows):
    context = LossContext(rows={k: Rows(m, torch.tensor(1.0), n) for k, (m, n) in rows.items()})
    return Combination(torch.zeros(2, 3), torch.tensor(0.0), 1.0, context, lambda *_: None)


def test_real_samples():
    assert made().real is None
    samples = torch.tensor([1.0, 0.0])
    tokens = torch.tensor([[1.0, 1, 0], [0, 0, 0]])
    assert made(samples=(samples, 2)).real.tolist() == [1, 0]
    assert made(tokens=(tokens, 2)).real.tolist() == [1, 0]
    choices = torch.tensor([[1.0, 1], [0, 0], [0, 0], [0, 0]])  # of 2 samples
    assert made(tokens=(choices, 2)).real.tolist() == [1, 0]
    assert made(tokens=(tokens, 2), samples=(1 - samples, 2)).real.tolist() == [0, 1]


def test_problems_come_with_those_of_the_method():
    flags = ["--student_model=pkd", "--multi_teacher_model=rl_kd", "--mt_num_layers=1:4"]
    told = problems(*flags, "--distill_ft_soft", "--mt_disable_operation=1:0")
    words = ["--hidden-size=16", "--num-layers=2", "--rl_kd_semantic_model: missing"]
    words += ["--mt_disable_operation=1:0: rl_kd needs", "--mt_disable_operation=1:0: soft labels"]
    assert len(told) == 5
    assert all(any(line.startswith(word) for line in told) for word in words)


def test_a_combiner_of_ones_own(monkeypatch):
    """The whole contract: parameters, per-sample losses, a teacher's hard loss, a term, state."""

    class Own(Combiner):
        needs_teacher_loss = True

        def __init__(self, run, args, shape):
            super().__init__(run, args, shape)
            self.scale = nn.Parameter(torch.ones(len(run.teachers)))

        @property
        def per_sample(self):
            return True, True

        def weigh(self, answer, made):
            assert answer.pre_loss.shape == answer.hard_loss.shape == (4,)
            return (self.scale[answer.t_no] * answer.pre_loss).mean()

        def total(self, losses, answers, made):
            made.log("own/number", float(len(losses)))
            return sum(losses)

    monkeypatch.setitem(COMBINERS, "avg", Own)
    step = step_of(*KD)
    output = take(step, batch_of("finetune"))
    assert output.terms["own/number"] == 2
    key = "student.multi_teacher_model.scale"
    assert key in step.student.module.state_dict()
    assert step.comparison.combiner.scale.grad.shape == (2,)
