"""MiniLM against its formula, row by row without padding."""

import dataclasses

import pytest
import torch
from torch import Tensor

from config import RunArgs
from distill.methods.minilm import MiniLM
from distill.registry import METHODS
from model.build import HeadSpec
from tests.distill.methods.seen import Seen, kl_rows, mean_over_tokens, seen
from tests.distill.runs import take, toy_run, toy_step
from tests.toy import toy_cloze_batch, toy_lm_batch

HEADS = 4


def step_of(*flags: str, program: str = "pretrain"):
    return toy_step(toy_run("--student_model=minilm", *flags, program=program))


def relation_of(values: Tensor) -> Tensor:
    """[s, d] -> [s, s]"""
    return torch.einsum("id,jd->ij", values, values) / values.size(-1) ** 0.5


def expected(batch, student: Seen, teacher: Seen, last: int, attention: str) -> tuple[float, float]:
    """The two terms."""

    def attention_rows(i: int, n: int) -> Tensor:
        s, t = (x.layer(k, attention)[i, :, :n, :n] for x, k in ((student, 2), (teacher, last)))
        return kl_rows(s, t).mean(0)

    def value_rows(i: int, n: int) -> Tensor:
        rows = []
        for head in range(HEADS):
            s, t = (
                relation_of(x.layer(k, "value_layer")[i, head, :n])
                for x, k in ((student, 2), (teacher, last))
            )
            rows.append(kl_rows(s, t))
        return sum(rows) / HEADS

    return tuple(float(mean_over_tokens(batch, rows)) for rows in (attention_rows, value_rows))


BATCHES = {
    "pretrain": toy_lm_batch(3, pad_to=30),
    "finetune": toy_cloze_batch(3, choices=3, variable=True, pad_to=30),
}


@pytest.mark.parametrize("program", BATCHES)
def test_attention_and_values_of_the_last_layers(program):
    step, batch = step_of(program=program), BATCHES[program]
    output = take(step, batch)
    with torch.no_grad():
        attention, values = expected(batch, *seen(step, batch), 4, "attention_scores")
    assert float(output.terms["inter_loss/attention_t0"]) == pytest.approx(attention, rel=1e-4)
    assert float(output.terms["inter_loss/value_relation_t0"]) == pytest.approx(values, rel=1e-4)
    assert float(output.loss.detach()) == pytest.approx(attention + values, rel=1e-4)


def test_the_seed_takes_the_softmax_of_probabilities():
    step, batch = step_of("--compat=D27"), BATCHES["pretrain"]
    actual = float(take(step, batch).terms["inter_loss/attention_t0"])
    with torch.no_grad():
        attention, _ = expected(batch, *seen(step, batch), 4, "attention_probs")
        right, _ = expected(batch, *seen(step, batch), 4, "attention_scores")
    assert actual == pytest.approx(attention, rel=1e-4)
    assert actual < right / 20  # it nearly vanishes


def test_the_seed_counts_padding():
    step, batch = step_of("--compat=D3"), BATCHES["pretrain"]
    actual = float(take(step, batch).terms["inter_loss/value_relation_t0"])
    with torch.no_grad():
        student, teacher = seen(step, batch)
        pair = [x.layer(k, "value_layer") for x, k in ((student, 2), (teacher, 4))]
        relations = [x @ x.transpose(-1, -2) / x.size(-1) ** 0.5 for x in pair]
    assert actual == pytest.approx(float(kl_rows(*relations).mean()), rel=1e-4)


def test_every_teacher_has_a_last_layer_of_its_own():
    run = toy_run("--student_model=minilm")
    (first,) = run.teachers
    second = dataclasses.replace(first, num_layers=3, hidden_size=32)
    step, batch = toy_step(dataclasses.replace(run, teachers=(first, second))), toy_lm_batch(2)
    output = take(step, batch)
    for t_no, last in ((0, 4), (1, 3)):
        with torch.no_grad():
            terms = expected(batch, *seen(step, batch, t_no), last, "attention_scores")
        assert float(output.terms[f"inter_loss/attention_t{t_no}"]) == pytest.approx(
            terms[0], rel=1e-4
        )
        assert float(output.terms[f"inter_loss/value_relation_t{t_no}"]) == pytest.approx(
            terms[1], rel=1e-4
        )


def test_the_scores_are_captured_in_the_last_layer_alone():
    method = step_of().method
    assert method.get_student_hook() == {
        "transformer": {"layers": {1: {"attention_scores": None, "value_layer": None}}}
    }


def problems(run: RunArgs) -> list[str]:
    return list(MiniLM.problems(run, HeadSpec("lm")))


def test_what_it_needs():
    assert METHODS["minilm"] is METHODS["MiniLM"] is MiniLM
    assert problems(toy_run("--student_model=minilm")) == []
    (line,) = problems(toy_run("--student_model=minilm", "--teacher_num_attention_heads=2"))
    assert line.startswith("--num-attention-heads=4")
    (line,) = problems(toy_run("--student_model=minilm", "--mt_disable_operation=1"))
    assert line.startswith("--mt_disable_operation=1")
