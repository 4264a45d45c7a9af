"""What methods need: a line for each teacher that does not fit."""

import pytest

from distill import needs
from tests.distill.runs import toy_run


@pytest.mark.parametrize(
    ("check", "fits", "does_not", "flag"),
    [
        (needs.shallower, "--teacher_num_layers=2", "--teacher_num_layers=1", "--num-layers=2"),
        (needs.equal_width, "--teacher_hidden_size=16", "--teacher_hidden_size=8", "--hidden-size"),
        (
            needs.equal_heads,
            "--teacher_num_attention_heads=4",
            "--teacher_num_attention_heads=2",
            "--num-attention-heads=4",
        ),
    ],
)
def test_shapes(check, fits, does_not, flag):
    kd = "--student_model=kd"
    assert list(check("PKD", toy_run(kd, fits))) == []
    (problem,) = check("PKD", toy_run(kd, does_not))
    assert problem.startswith(flag)
    assert "teacher 0 has" in problem


def test_depth_and_program():
    run = toy_run("--student_model=kd", "--num-layers=1", program="finetune")
    assert list(needs.several_layers("RAIL-KD", run)) == [
        "--num-layers=1: RAIL-KD needs at least 2 student layers"
    ]
    assert list(needs.several_layers("RAIL-KD", run, least=1)) == []
    assert list(needs.program("diito", run, "finetune")) == []
    (problem,) = needs.program("diito", run, "pretrain")
    assert "distill/pretrain.py" in problem


@pytest.mark.parametrize(("program", "stage"), [("pretrain", "pt"), ("finetune", "ft")])
def test_labels(program, stage):
    def problems(check, *flags):
        return list(check("sid", toy_run("--student_model=kd", *flags, program=program)))

    soft, hard = f"--distill_{stage}_soft", f"--distill_{stage}_hard"
    (problem,) = problems(needs.labels)
    assert problem.startswith("--student_model=sid: ")
    assert soft in problem
    assert problems(needs.labels, soft) == problems(needs.labels, hard) == []
    assert len(problems(needs.labels, soft, "--distill_soft_rate=0")) == 1
    (problem,) = problems(needs.squared_soft_labels, soft)
    assert problem.endswith(f"add {soft}_mse")
    assert problems(needs.squared_soft_labels, hard) == []
    assert problems(needs.squared_soft_labels, soft, f"{soft}_mse") == []


TWO = ["--student_model=kd", "--mt_hidden_size=24:8", "--mt_num_attention_heads=4:2"]


def test_only_teachers_that_are_compared_count():
    rl_kd = ["--multi_teacher_model=rl_kd", "--rl_kd_semantic_model=1"]
    for check in (needs.equal_width, needs.equal_heads):
        assert sum("teacher 1 has" in line for line in check("PKD", toy_run(*TWO))) == 1
        assert all("teacher 1" not in line for line in check("PKD", toy_run(*TWO, *rl_kd)))
    assert [number for number, _ in needs.learned_from(toy_run(*TWO, *rl_kd))] == [0]
    assert [number for number, _ in needs.learned_from(toy_run(*TWO))] == [0, 1]


def test_a_combiner_may_convert_the_width():
    def lines(*flags):
        return len(list(needs.equal_width("PKD", toy_run(*TWO, *flags))))

    assert lines() == lines("--multi_teacher_model=avg") == 2
    assert lines("--multi_teacher_model=mt_bert") == 0
    assert lines("--multi_teacher_model=mt_bert", "--mt_bert_wo_convert_layer") == 2
    mix = "--multi_teacher_model=mixmt"
    assert lines(mix, "--mixmt_model=mt_bert") == 0
    assert lines(mix, "--mixmt_model=mt_bert,avg") == lines(mix) == 2


def test_hard_labels_count_once():
    for program, stage in (("pretrain", "pt"), ("finetune", "ft")):
        flag = f"--distill_{stage}_hard"
        run = toy_run("--student_model=kd", flag, program=program)
        (line,) = needs.hard_once("mt_bert", run, True)
        assert line.startswith(f"{flag}: mt_bert adds the hard loss itself")
        assert line.endswith("--mt_bert_wo_hard")
        assert list(needs.hard_once("mt_bert", run, False)) == []
        assert list(needs.hard_once("mt_bert", toy_run("--student_model=kd"), True)) == []
