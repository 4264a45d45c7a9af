"""MixMT: a sum of combiners, each as it is alone, over one forward of each teacher."""

import pytest
import torch

from tests.distill.runs import grads_of, take, toy_run, toy_step
from tests.distill.teachers.several import KD, PKD, THREE, batch_of, problems, step_of, task_of

MIX = "--multi_teacher_model=mixmt"
FLAGS = ["--rl_kd_semantic_model=1", "--distill_hard_rate=0.5", "--avgmt_teacher_survival_p=0.6"]
ALONE = {"Uncertainty": "uncertainty", "RL_KD": "rl_kd", "AvgTeacher": "avg", "MT_BERT": "mt_bert"}


def step_three(*flags, program="finetune"):
    return toy_step(toy_run(*THREE, *KD, *FLAGS, *flags, program=program), task_of(program))


def copied(step, name):
    """A step with one of the combiners alone, its weights those of the mix's part."""
    alone = step_three(f"--multi_teacher_model={ALONE[name]}")
    state, prefix = step.student.module.state_dict(), "student.multi_teacher_model."
    own = {k: v for k, v in state.items() if not k.startswith(prefix)}
    part = f"{prefix}mixed.{name}."
    own |= {prefix + k.removeprefix(part): v for k, v in state.items() if k.startswith(part)}
    alone.student.module.load_state_dict(own)
    return alone


@pytest.mark.parametrize(
    "names", ["Uncertainty,AvgTeacher", "RL_KD,Uncertainty", "MT_BERT,RL_KD,AvgTeacher"]
)
def test_the_sum_of_its_parts(names):
    words, batch = names.split(","), batch_of("finetune")
    step = step_three(MIX, f"--mixmt_model={names}")
    alone = {word: copied(step, word) for word in words}
    for _ in range(2):  # RL-KD's policy comes with the second
        output = take(step, batch)
        grads, outputs = (
            grads_of(step.student.module),
            {w: take(s, batch) for w, s in alone.items()},
        )
        torch.testing.assert_close(output.loss, sum(o.loss for o in outputs.values()))
        expected = {}
        for word, other in alone.items():
            told = float(output.terms[f"multi_teacher_model/{word}"])
            assert told == pytest.approx(float(outputs[word].loss.detach()), rel=1e-5)
            for key, grad in grads_of(other.student.module).items():
                key = key.replace("multi_teacher_model.", f"multi_teacher_model.mixed.{word}.")
                expected[key] = expected.get(key, 0) + grad
        assert expected.keys() == grads.keys()
        for key, grad in expected.items():
            torch.testing.assert_close(grads[key], grad, rtol=1e-4, atol=1e-5, msg=key)


def test_each_teacher_runs_once_and_terms_of_parts_are_told_apart():
    step, ran = step_three(MIX, "--mixmt_model=Uncertainty,RL_KD"), []
    for number, teacher in enumerate(step.teachers):
        teacher.module.register_forward_hook(lambda *_, number=number: ran.append(number))
    terms = take(step, batch_of("finetune")).terms
    assert ran == [0, 1, 2]
    names = {name for name in terms if name.startswith("teacher_loss")}
    assert names == {f"teacher_loss/teacher_{k}_t{k}" for k in range(3)} | {
        f"teacher_loss/teacher_{k}_t{k}_RLKD" for k in (0, 2)
    }


def test_a_teacher_that_nobody_needs_does_not_run():
    step, ran = step_three(MIX, "--mixmt_model=AvgTeacher,RL_KD", "--rl_kd_only_avg"), []
    step.comparison.combiner.parts[0].draw_survival = lambda n: [0.9] * n
    for number, teacher in enumerate(step.teachers):
        teacher.module.register_forward_hook(lambda *_, number=number: ran.append(number))
    take(step, batch_of("finetune"))
    assert ran == [0, 2]


def test_parts_are_in_the_order_of_the_flag():
    for names in ("Uncertainty,AvgTeacher", "avg , uncertainty"):
        combiner = step_of(*KD, MIX, f"--mixmt_model={names}").comparison.combiner
        assert list(combiner.mixed) == [word.strip() for word in names.split(",")]
        assert combiner.names == tuple(combiner.mixed)


def test_logits_of_all_positions_if_one_part_needs_them():
    flags = [*KD, MIX, "--mixmt_model=Uncertainty,avg"]
    assert step_of(*flags, program="pretrain").comparison.needs_targets_only
    every = [*flags, "--uncertainty_only_mask_pad"]
    assert not step_of(*every, program="pretrain").comparison.needs_targets_only


def test_the_state_of_each_part():
    step = step_three(MIX, "--mixmt_model=AvgTeacher,RL_KD")
    take(step, batch_of("finetune"))
    state = step.comparison.combiner.combiner_state()
    assert list(state) == ["AvgTeacher", "RL_KD"]
    assert state["AvgTeacher"] == {}
    other = step_three(MIX, "--mixmt_model=AvgTeacher,RL_KD")
    other.comparison.combiner.load_combiner_state(state)
    last = other.comparison.combiner.mixed["RL_KD"]._last
    assert all(torch.equal(last[k], v) for k, v in state["RL_KD"]["ranks"][0].items())


def test_what_it_needs():
    def told(names, *flags):
        return problems(*KD, MIX, f"--mixmt_model={names}", *flags)

    assert told("Uncertainty,AvgTeacher") == []
    (line,) = problems(*KD, MIX)
    assert line.startswith("--mixmt_model: missing")
    (line,) = told(" , ")
    assert line.startswith("--mixmt_model: missing")
    (line,) = told("avg,uncertainty,tmkd")
    assert line == "--mixmt_model=avg,uncertainty,tmkd: names a combiner twice; name it once"
    (line,) = told("avg,mixmt")
    assert "mixmt is no part of itself" in line
    (line,) = told("avg,rl_kd")
    assert line.startswith("--rl_kd_semantic_model: missing")
    (line,) = told("mt_bert,uncertainty", "--distill_ft_hard", "--mt_bert_wo_hard")
    assert "uncertainty adds the hard loss itself" in line


def test_states_are_projected_if_all_parts_do():
    def told(names):
        return problems(*PKD, MIX, f"--mixmt_model={names}")

    assert told("mt_bert") == []
    (line,) = told("mt_bert,avg")
    assert line.startswith("--hidden-size=16: pkd compares hidden states as they are")
