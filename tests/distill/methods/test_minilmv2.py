"""MiniLMv2 against its formula: every relation head by a slice of columns, rows without padding."""

import dataclasses

import pytest
import torch
from torch import Tensor

from config import ConfigError, RunArgs
from distill.methods.minilmv2 import MiniLMv2, MiniLMv2Args
from distill.registry import METHODS
from model.build import HeadSpec
from tests.distill.methods.seen import Seen, kl_rows, mean_over_tokens, seen
from tests.distill.runs import take, toy_run, toy_step
from tests.toy import toy_cloze_batch, toy_lm_batch

NAMES = ("query", "key", "value")
ASKED = ("--student_model=minilmv2", "--minilmv2_relation_heads=4", "--minilmv2_teacher_layer=3")


def step_of(*flags: str, program: str = "pretrain"):
    return toy_step(toy_run(*ASKED, *flags, program=program))


def relation_of(x: Tensor, head: int, heads: int) -> Tensor:
    """Relation of one head: [s, h] -> [s, s]"""
    width = x.size(-1) // heads
    mine = x[:, head * width : (head + 1) * width]
    return torch.einsum("id,jd->ij", mine, mine) / width**0.5


def expected(batch, student: Seen, teacher: Seen, layer: int, heads: int) -> dict[str, float]:
    """The three terms."""

    def rows(name: str):
        def of(i: int, n: int) -> Tensor:
            s, t = (
                x.layer(k, f"mixed_{name}_layer")[i, :n]
                for x, k in ((student, 2), (teacher, layer))
            )
            each = [
                kl_rows(relation_of(s, r, heads), relation_of(t, r, heads)) for r in range(heads)
            ]
            return sum(each) / heads

        return of

    return {name: float(mean_over_tokens(batch, rows(name))) for name in NAMES}


def check(step, batch, layer: int, heads: int, t_no: int = 0) -> None:
    """Each term, and their sum."""
    output = take(step, batch)
    with torch.no_grad():
        terms = expected(batch, *seen(step, batch, t_no), layer, heads)
    for name, value in terms.items():
        actual = float(output.terms[f"inter_loss/{name}_relation_t{t_no}"])
        assert actual == pytest.approx(value, rel=1e-4), name
    actual = float(output.terms[f"teacher_loss/teacher_{t_no}_t{t_no}"])
    assert actual == pytest.approx(sum(terms.values()), rel=1e-4)


BATCHES = {
    "pretrain": toy_lm_batch(3, pad_to=30),
    "finetune": toy_cloze_batch(3, choices=3, variable=True, pad_to=30),
}


@pytest.mark.parametrize("program", BATCHES)
def test_relations_of_the_last_layer_with_a_chosen_one(program):
    check(step_of(program=program), BATCHES[program], layer=3, heads=4)


@pytest.mark.parametrize(("flag", "layer"), [("-1", 4), ("-4", 1), ("2", 2)])
def test_layers_are_counted_from_one_or_from_the_end(flag, layer):
    check(step_of(f"--minilmv2_teacher_layer={flag}"), BATCHES["pretrain"], layer, heads=4)


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_relation_heads_need_not_be_the_models(heads):
    step = step_of(f"--minilmv2_relation_heads={heads}")
    check(step, BATCHES["pretrain"], layer=3, heads=heads)


def test_heads_of_student_and_teacher_may_differ():
    step = step_of("--teacher_num_attention_heads=6", "--num-attention-heads=2")
    check(step, BATCHES["pretrain"], layer=3, heads=4)


def test_a_bottleneck_has_queries_of_its_inner_width():
    flags = ["--inverted_bottleneck_mode", "--ib_hidden_size=8", "--ib_ffn_num=1"]
    step = step_of(*flags, "--minilmv2_relation_heads=8")
    assert problems(step.run) == []
    check(step, BATCHES["pretrain"], layer=3, heads=8)


def two_teachers(*flags: str) -> RunArgs:
    run = toy_run(*ASKED, *flags)
    (first,) = run.teachers
    second = dataclasses.replace(first, num_layers=3, hidden_size=32)
    return dataclasses.replace(run, teachers=(first, second))


@pytest.mark.parametrize(
    ("flags", "heads"),
    [
        ([], (4, 4)),
        (["--minilmv2_relation_heads_mt=2"], (2, 2)),
        (["--minilmv2_relation_heads_mt=8, 2"], (8, 2)),
    ],
)
def test_relation_heads_of_several_teachers(flags, heads):
    run = two_teachers(*flags)
    assert problems(run) == []
    for t_no, number in enumerate(heads):
        check(toy_step(run), BATCHES["pretrain"], layer=3, heads=number, t_no=t_no)


def test_the_seed_counts_padding():
    step, batch = step_of("--compat=D3"), BATCHES["pretrain"]
    actual = float(take(step, batch).terms["inter_loss/key_relation_t0"])
    with torch.no_grad():
        student, teacher = seen(step, batch)
        pairs = [
            [
                relation_of(x.layer(k, "mixed_key_layer")[i], r, 4)
                for i in range(3)
                for r in range(4)
            ]
            for x, k in ((student, 2), (teacher, 3))
        ]
    expected = torch.stack([kl_rows(s, t) for s, t in zip(*pairs, strict=True)]).mean()
    assert actual == pytest.approx(float(expected), rel=1e-4)


def test_without_relations_nothing_is_captured():
    step = step_of("--minilmv2_wo_inter", "--distill_ft_hard", program="finetune")
    assert step.method.get_student_hook() == {} == step.method.get_teacher_hook(t_no=0)
    output = take(step, BATCHES["finetune"])
    assert not [name for name in output.terms if name.startswith("inter_loss")]


def problems(run: RunArgs) -> list[str]:
    return list(MiniLMv2.problems(run, HeadSpec("lm")))


@pytest.mark.parametrize(
    ("flag", "line", "number"),
    [
        ("--minilmv2_relation_heads=3", "--minilmv2_relation_heads=3: does not divide", 1),
        ("--minilmv2_relation_heads=5", "--minilmv2_relation_heads=5: does not divide", 2),
        ("--minilmv2_relation_heads_mt=5", "--minilmv2_relation_heads_mt=5: does not divide", 2),
        ("--minilmv2_relation_heads_mt=4,4", "--minilmv2_relation_heads_mt=4,4: has 2 numbers", 1),
        ("--minilmv2_teacher_layer=5", "--minilmv2_teacher_layer=5: teacher 0 has 4 layers", 1),
        ("--minilmv2_teacher_layer=0", "--minilmv2_teacher_layer=0: teacher 0", 1),
        ("--minilmv2_teacher_layer=-5", "--minilmv2_teacher_layer=-5: teacher 0", 1),
        ("--mt_disable_operation=1", "--mt_disable_operation=1", 1),
    ],
)
def test_what_it_needs(flag, line, number):
    run = toy_run(*ASKED, flag)
    assert len(problems(run)) == number
    assert problems(run)[-1].startswith(line)
    assert problems(toy_run(*ASKED, flag, "--minilmv2_wo_inter")) == []


def test_the_published_settings_fit():
    sizes = ["--hidden-size=384", "--teacher_hidden_size=768", "--teacher_num_layers=12"]
    assert problems(toy_run("--student_model=minilmv2", *sizes)) == []
    assert METHODS["MiniLMv2"] is METHODS["minilmv2"]


@pytest.mark.parametrize(
    "flags",
    [
        {"minilmv2_relation_heads": 0},
        {"minilmv2_relation_heads_mt": "4,x"},
        {"minilmv2_relation_heads_mt": "4,0"},
        {"minilmv2_relation_heads_mt": "4,,4"},
    ],
)
def test_numbers_of_heads_are_positive(flags):
    with pytest.raises(ConfigError, match="--minilmv2_relation_heads"):
        MiniLMv2Args(**flags)
