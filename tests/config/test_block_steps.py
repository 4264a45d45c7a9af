"""--block-lm-ratio."""

import pytest

from tests.config.common import FINETUNE, finetune, problems

GIVEN = ["--cloze-eval", "--block-lm-ratio=0.5"]


def test_blanks_are_as_asked_for_and_have_an_effect(caplog):
    run = finetune(*GIVEN, "--bert-prob=0.7", "--avg-block-length=4")
    assert (run.finetuning.block_lm_ratio, run.blocks.bert_prob) == (0.5, 0.7)
    assert caplog.records == []
    finetune("--cloze-eval", "--avg-block-length=4")
    assert [r.message for r in caplog.records] == [
        "--avg-block-length: has no effect on fine-tuning without --block-lm-ratio"
    ]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--block-lm-ratio=0.5"], "a classification head predicts no words"),
        ([*GIVEN, "--task=cnn_dm"], "is for tasks that fill a pattern"),
        ([*GIVEN, "--freeze-transformer"], "leave out --freeze-transformer"),
        (
            [*GIVEN, "--student_model=kd", "--distill_ft_hard", "--teacher_random_para"],
            "leave out --student_model=kd",
        ),
        (["--cloze-eval", "--block-lm-ratio=-1"], "must not be negative"),
        ([*GIVEN, "--bert-prob=0.9", "--gap-sentence-prob=0.3"], "are more than 1 together"),
    ],
)
def test_what_cannot_be_combined_is_named(flags, said):
    found = problems([*FINETUNE, *flags], program="finetune")
    assert any(said in problem for problem in found), found
