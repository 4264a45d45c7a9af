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
