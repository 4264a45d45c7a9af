"""Teachers cut over the data-parallel ranks: the same answers and captures, a part of the memory."""

import dataclasses

import pytest
import torch

import mpu
from config import ConfigError, parse_args
from distill.capture import attention_scores, hidden, logits, to_hook
from distill.losses import soft_cross_entropy
from distill.registry import method_args
from distill.step import check_needs
from distill.teacher import build_teachers
from distill.warm_start import warm_start
from tests.distill.runs import SIZES, cloze_task, lm_task, toy_run
from tests.distill.test_frozen import save
from tests.distill.test_teacher import run_with
from tests.ranks import run_ranks
from tests.toy import toy_glm, toy_lm_batch, toy_teacher_args

POINTS = [hidden(2, 4), hidden(4, 4), attention_scores(3), logits()]


def answers(teacher) -> list[torch.Tensor]:
    """Three forwards: with captures, of some rows only, and with logits that a loss computes."""
    batch = toy_lm_batch(2)
    inputs = batch.tokens, batch.position_ids, batch.attention_mask
    hook = to_hook(POINTS)
    output = teacher(inputs, hook)
    rows = teacher(inputs, output_rows=torch.tensor([1, 5])).logits
    lazy = teacher(inputs, to_hook(POINTS), lazy_logits=True)
    in_parts = soft_cross_entropy(lazy.logits, lazy.logits, layout=logits().layout)
    return [output.logits, *output.captured, rows, lazy.logits.dense(), in_parts]


def cut(run):
    group = dataclasses.replace(run.multi_teacher, teacher_zero_stage=3)
    return dataclasses.replace(run, multi_teacher=group)


def on_rank(rank, world_size, path, model_parallel, flag, truncate):
    mpu.initialize_model_parallel(model_parallel)
    run = run_with(path, *(["--student_truncate_tn=0"] if truncate else []))
    if flag:
        run = dataclasses.replace(
            run, teachers=(dataclasses.replace(run.teachers[0], **{flag: True}),)
        )
    (plain,) = build_teachers(run, lm_task(), "cpu")
    (teacher,) = build_teachers(cut(run), lm_task(), "cpu")
    expected, actual = answers(plain), answers(teacher)
    again = answers(teacher)
    equal = [
        torch.equal(a, b) and torch.equal(a, c)
        for a, b, c in zip(actual, expected, again, strict=True)
    ]
    held = sum(p.ds_tensor.numel() for p in teacher.module.parameters())
    own = sum(p.numel() for p in teacher.module.parameters())  # whole ones left on the rank
    total = sum(p.numel() for p in plain.module.parameters())
    kinds = {p.ds_tensor.dtype for p in teacher.module.parameters()}
    started = True
    if truncate:
        students = [toy_glm(seed=4) for _ in range(2)]
        for student, source in zip(students, (plain, teacher), strict=True):
            warm_start(student, [source], run)
        pairs = zip(*(s.state_dict().values() for s in students), strict=True)
        started = all(torch.equal(a, b) for a, b in pairs)
    return equal, held / total, own, kinds, started


@pytest.mark.parametrize(
    ("ranks", "model_parallel", "shards", "flag"), [(2, 1, 1, ""), (2, 1, 2, "bf16"), (4, 2, 1, "")]
)
def test_answers_and_captures_are_those_of_a_whole_teacher(
    tmp_path, ranks, model_parallel, shards, flag
):
    glm = toy_glm(toy_teacher_args(), seed=5)
    path = str(save(tmp_path, glm.state_dict(), shards))
    found = run_ranks(
        ranks, on_rank, path, model_parallel, flag, model_parallel == 1, preload="deepspeed"
    )
    for equal, part, own, kinds, started in found:
        assert all(equal)
        assert part < 0.55
        assert own == 0
        assert kinds == {torch.bfloat16 if flag else torch.float32}
        assert started


def test_one_process_has_nothing_to_cut(caplog):
    (teacher,) = build_teachers(cut(toy_run("--student_model=kd")), lm_task(), "cpu")
    assert not any(hasattr(p, "ds_tensor") for p in teacher.module.parameters())
    assert caplog.messages == [
        "--teacher_zero_stage=3: has no effect with one data-parallel process"
    ]


def random_ones(rank, world_size):
    mpu.initialize_model_parallel(1)
    run = toy_run("--student_model=kd")
    (plain,), (teacher,) = (build_teachers(r, lm_task(), "cpu") for r in (run, cut(run)))
    return [torch.equal(a, b) for a, b in zip(answers(plain), answers(teacher), strict=True)]


def test_random_teachers_are_cut_too():
    assert all(all(equal) for equal in run_ranks(2, random_ones, preload="deepspeed"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--teacher_zero_stage=3: DeepSpeed cuts the teachers; add --deepspeed"),
        (["--teacher_offload=cpu"], "--teacher_zero_stage=3: --teacher_offload=cpu keeps"),
        (["--mt_has_grad"], "--teacher_zero_stage=3: teachers that are trained"),
    ],
)
def test_what_it_cannot_serve(flags, words):
    command = [*SIZES, "--student_model=kd", "--distill_pt_soft", "--teacher_random_para"]
    command += ["--train-data=demo", "--bert-prob=1", "--train-iters=1", "--teacher_zero_stage=3"]
    with pytest.raises(ConfigError, match=words):
        parse_args([*command, *flags], program="pretrain", methods=method_args())


@pytest.mark.parametrize("name", ["theseus", "erdistill"])
def test_methods_that_use_weights_beside_the_forward_are_named(name):
    soft = ["--distill_ft_soft", "--distill_ft_hard", "--teacher_hidden_size=16"]
    run = cut(toy_run(f"--student_model={name}", *soft, program="finetune"))
    with pytest.raises(ConfigError, match=f"--teacher_zero_stage=3: {name} uses weights"):
        check_needs(run, cloze_task().head)
