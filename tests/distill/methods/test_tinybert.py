"""TinyBERT against its formula, row by row without padding; every flag."""

import dataclasses

import pytest
import torch
from torch import Tensor

import mpu
from config import ConfigError, RunArgs
from distill.context import Clock
from distill.layer_maps import uniform
from distill.methods.tinybert import TinyBERT, TinyBERTArgs
from distill.registry import METHODS
from model.build import HeadSpec
from tests.distill.methods.seen import Seen, mean_over_tokens, seen
from tests.distill.runs import take, toy_run, toy_step
from tests.toy import toy_cloze_batch, toy_lm_batch
from tests.vector_checks.choices import use_choices

ASKED = ("--student_model=tinybert", "--num-layers=3", "--teacher_num_layers=5")
MAP = [2, 4, 5]  # 5 layers for 3
BATCHES = {
    "pretrain": toy_lm_batch(3, pad_to=30),
    "finetune": toy_cloze_batch(3, choices=3, variable=True, pad_to=30),
}


def step_of(*flags: str, program: str = "pretrain"):
    return toy_step(toy_run(*ASKED, *flags, program=program))


def hidden_term(batch, student: Tensor, teacher: Tensor, dense: torch.nn.Linear) -> float:
    """Mean squared error after the projection, over tokens and entries."""
    weight, bias = dense.weight.detach(), dense.bias.detach()

    def rows(i: int, n: int) -> Tensor:
        mapped = torch.einsum("oh,sh->so", weight, student[i, :n]) + bias
        return (mapped - teacher[i, :n]).square().mean(1)

    return float(mean_over_tokens(batch, rows))


def score_term(batch, student: Tensor, teacher: Tensor) -> float:
    """Mean squared error of scores, over queries, heads and keys that are tokens."""

    def rows(i: int, n: int) -> Tensor:
        return (student[i, :, :n, :n] - teacher[i, :, :n, :n]).square().mean((0, 2))

    return float(mean_over_tokens(batch, rows))


def check(step, batch, scores: list, states: list, t_no: int = 0) -> dict[str, float]:
    """The terms of pairs (student, teacher) of blocks and of states; exactly these."""
    result = take(step, batch)
    with torch.no_grad():
        student, teacher = seen(step, batch, t_no)
        expected = expected_terms(step, batch, student, teacher, scores, states, t_no)
    ending = f"_t{t_no}"
    actual = {
        name.removesuffix(ending): float(value)
        for name, value in result.terms.items()
        if name.startswith("inter_loss/") and name.endswith(ending)
    }
    assert actual == pytest.approx(expected, rel=1e-4)
    assert list(actual) == list(expected)
    total = float(result.terms[f"teacher_loss/teacher_{t_no}{ending}"])
    assert total == pytest.approx(sum(expected.values()), rel=1e-4)
    return actual


def expected_terms(
    step, batch, student: Seen, teacher: Seen, scores: list, states: list, t_no: int
) -> dict[str, float]:
    dense = step.method.projection(t_no)
    terms = {}
    for k, (i, e) in enumerate(scores):
        pair = student.layer(i, "attention_scores"), teacher.layer(e, "attention_scores")
        terms[f"inter_loss/attention_scores.{k}"] = score_term(batch, *pair)
    for k, (i, e) in enumerate(states):
        pair = student.state(i), teacher.state(e)
        terms[f"inter_loss/hidden_states.{k}"] = hidden_term(batch, *pair, dense)
    return terms


SCORES = list(enumerate(MAP, 1))
STATES = [(0, 0), *SCORES]


@pytest.mark.parametrize("program", BATCHES)
def test_all_layers(program):
    check(step_of(program=program), BATCHES[program], SCORES, STATES)


@pytest.mark.parametrize(
    ("flags", "scores", "states"),
    [
        (["wo_att"], [], STATES),
        (["wo_emb"], SCORES, STATES[1:]),
        (["wo_final"], SCORES, STATES[:-1]),
        (["wo_emb", "wo_final", "wo_att"], [], STATES[1:-1]),
        (["inter_final"], [], [(3, 5)]),
        (["inter_final", "custom_final=2"], [], [(2, 4)]),
        (["only_emb_final"], [], [(0, 0), (3, 5)]),
        (["only_emb_final", "custom_final=3"], [], [(0, 0), (1, 3)]),
        (["only_emb_final", "custom_final=4"], [], [(0, 0), (0, 2)]),
        (["only_emb_final", "wo_emb"], [], [(3, 5)]),
        (["only_emb"], [], [(0, 0)]),
        (["custom_final=2"], SCORES, STATES),
    ],
)
def test_flags_choose_what_is_compared(flags, scores, states):
    step = step_of(*(f"--tinybert_{flag}" for flag in flags))
    check(step, BATCHES["pretrain"], scores, states)


def test_layers_of_equal_depth_go_one_to_one():
    step = step_of("--teacher_num_layers=3")
    pairs = [(i, i) for i in range(4)]
    check(step, BATCHES["pretrain"], pairs[1:], pairs)
    step = step_of(
        "--teacher_num_layers=3", "--tinybert_only_emb_final", "--tinybert_custom_final=4"
    )
    check(step, BATCHES["pretrain"], [], [(0, 0)])


def test_one_student_layer_learns_the_teachers_last():
    step = step_of("--num-layers=1")
    check(step, BATCHES["pretrain"], [(1, 5)], [(0, 0), (1, 5)])


def test_without_layers_there_are_soft_labels_only():
    flags = ["--tinybert_wo_inter", "--tinybert_inter_final", "--tinybert_custom_final=2"]
    step = step_of(*flags, "--distill_ft_soft", program="finetune")
    assert step.method.get_student_hook() == {} == step.method.get_teacher_hook(t_no=0)
    result = take(step, BATCHES["finetune"])
    assert [name for name in result.terms if "loss/" in name and "_t0" in name] == [
        "pre_loss/ft_soft_t0",
        "teacher_loss/teacher_0_t0",
    ]
    assert {"student.fit_dense.weight", "student.fit_dense.bias"} <= set(
        step.student.module.state_dict()
    )


def test_the_seed_counts_padding():
    step, batch = step_of("--compat=D3"), BATCHES["pretrain"]
    result = take(step, batch)
    with torch.no_grad():
        student, teacher = seen(step, batch)
        states = step.method.fit_dense(student.state(3)) - teacher.state(5)
        scores = student.layer(1, "attention_scores") - teacher.layer(2, "attention_scores")
    for name, difference in (("hidden_states.3", states), ("attention_scores.0", scores)):
        actual = float(result.terms[f"inter_loss/{name}_t0"])
        assert actual == pytest.approx(float(difference.square().mean()), rel=1e-4)


def two_teachers(*flags: str, **second) -> RunArgs:
    run = toy_run(*ASKED, *flags)
    (first,) = run.teachers
    return dataclasses.replace(run, teachers=(first, dataclasses.replace(first, **second)))


def test_a_projection_for_each_teacher():
    run = two_teachers("--tinybert_fit_compatible_mt", num_layers=4, hidden_size=32)
    step = toy_step(run)
    own = {k: v.shape[0] for k, v in step.student.module.state_dict().items() if "student." in k}
    assert own == {
        f"student.fit_dense_{t_no}.{part}": width
        for t_no, width in ((0, 24), (1, 32))
        for part in ("weight", "bias")
    }
    check(step, BATCHES["pretrain"], SCORES, STATES)
    second = list(enumerate(uniform(3, 4), 1))
    check(step, BATCHES["pretrain"], second, [(0, 0), *second], t_no=1)


def test_one_projection_for_teachers_of_one_width():
    step = toy_step(two_teachers(num_layers=4))
    own = [k for k in step.student.module.state_dict() if "student." in k]
    assert own == ["student.fit_dense.weight", "student.fit_dense.bias"]
    second = list(enumerate(uniform(3, 4), 1))
    check(step, BATCHES["pretrain"], second, [(0, 0), *second], t_no=1)


def test_the_start_of_the_projection():
    sizes = ["--hidden-size=64", "--teacher_hidden_size=256"]
    plain, xavier = (
        TinyBERT(torch.nn.Identity(), toy_run(*ASKED, *sizes, *flags)).fit_dense
        for flags in ([], ["--tinybert_fit_parallel"])
    )
    assert float(plain.weight.detach().abs().max()) <= 64**-0.5
    assert plain.bias.any()
    assert float(xavier.weight.detach().std()) == pytest.approx((2 / 320) ** 0.5, rel=0.03)
    assert not xavier.bias.any()


def test_random_layers_are_what_is_compared():
    step = step_of("--tinybert_random_layers", program="finetune")
    for epoch in range(4):
        step.state.epoch = epoch
        step.method.begin_pass(Clock(epoch=epoch))
        drawn = step.method.draw_layers(0)
        assert len(drawn) == 2
        scores = list(enumerate([*drawn, 5], 1))
        check(step, BATCHES["finetune"], scores, [(0, 0), *scores])


def test_recorded_layers_can_be_put_in_their_place():
    for recorded in ([1, 2], [0, 1, 2, 5]):
        step = step_of("--tinybert_random_layers")
        use_choices(step, {"teacher_layers": [recorded]}, {})
        scores = [(1, 1), (2, 2), (3, 5)]
        check(step, BATCHES["pretrain"], scores, [(0, 0), *scores])


def test_random_layers_change_when_the_flags_say():
    def periods(*flags: str, word: str, program: str) -> list[int]:
        method = step_of("--tinybert_random_layers", *flags, program=program).method
        draws = []
        for i in range(60):
            method.begin_pass(Clock(**{word: i}))
            draws.append([str(teacher) for _, _, teacher in method.pairs(0)])
        return [i for i in range(1, 60) if draws[i] != draws[i - 1]]

    for flags, word, program, length in (
        ([], "epoch", "finetune", 1),
        (["--tinybert_random_e=6"], "epoch", "finetune", 6),
        (["--tinybert_random_e=0", "--tinybert_random_i=5"], "iteration", "finetune", 5),
        (["--tinybert_random_i=5"], "iteration", "pretrain", 5),
    ):
        starts = periods(*flags, word=word, program=program)
        assert starts
        assert all(start % length == 0 for start in starts)


def test_the_projection_trains_and_captures_stay_as_they_are():
    step, batch = step_of(), BATCHES["pretrain"]
    take(step, batch)
    assert step.method.fit_dense.weight.grad.any()
    assert step.method.fit_dense.bias.grad.any()
    captured: list[Tensor] = []
    hook = step.method.get_student_hook()
    mpu.hook_model(hook, captured, step.student.module, *step.task.inputs(batch))
    assert {x.size(-1) for x in captured} == {16, batch.tokens.size(-1)}


def problems(*flags: str, **second) -> list[str]:
    run = two_teachers(*flags, **second) if second else toy_run(*ASKED, *flags)
    return list(TinyBERT.problems(run, HeadSpec("lm")))


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--teacher_num_layers=2"], "--num-layers=3"),
        (["--teacher_num_attention_heads=2"], "--num-attention-heads=4"),
        (["--tinybert_inter_final", "--tinybert_custom_final=5"], "--tinybert_custom_final"),
        (["--mt_disable_operation=1"], "--mt_disable_operation=1"),
    ],
)
def test_what_it_needs(flags, line):
    (problem,) = problems(*flags)
    assert problem.startswith(line)
    assert problems(*flags, "--tinybert_wo_inter") == []


def test_what_it_does_not_need():
    assert METHODS["tinybert"] is METHODS["TinyBERT"] is TinyBERT
    assert problems() == []
    assert problems("--teacher_num_attention_heads=2", "--tinybert_wo_att") == []
    shallow = ["--teacher_num_layers=2", "--teacher_num_attention_heads=2"]
    assert problems(*shallow, "--tinybert_only_emb_final", "--tinybert_custom_final=3") == []


def test_teachers_of_several_widths_need_projections_of_their_own():
    (problem,) = problems(hidden_size=32)
    assert problem.startswith("--tinybert_fit_compatible_mt")
    assert problems("--tinybert_fit_compatible_mt", hidden_size=32) == []
    assert problems(num_layers=4) == []


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        ({"tinybert_custom_final": 0}, "--tinybert_custom_final=0"),
        ({"tinybert_random_e": -1}, "--tinybert_random_e=-1"),
        ({"tinybert_random_i": 0}, "--tinybert_random_i=0"),
        (
            {"tinybert_only_emb": True, "tinybert_inter_final": True},
            "--tinybert_inter_final, --tinybert_only_emb: choose one",
        ),
    ],
)
def test_values_that_make_no_sense(values, flag):
    with pytest.raises(ConfigError, match=flag):
        TinyBERTArgs(**values)


def test_flags_of_random_layers_do_nothing_alone():
    flags = {f"--tinybert_random_{name}" for name in ("e", "i", "show")}
    assert set(TinyBERTArgs.needs) == flags <= set(TinyBERTArgs.flags())
    assert set(TinyBERTArgs.needs.values()) == {"--tinybert_random_layers"}
