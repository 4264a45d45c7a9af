"""Warnings of flags without effect."""

import pytest

from config.idle import IDLE
from config.not_yet import IGNORED
from config.run import GROUPS
from distill.registry import method_args
from tests.config.common import DISTIL, finetune, pretrain
from tests.config.test_run import TOY


def test_idle_flags_exist():
    declared = {flag for kind in GROUPS.values() for flag in kind.flags()}
    idle = {flag for flags, _, _ in IDLE for flag in flags if not flag.startswith("--teacher_")}
    assert idle <= declared


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["--zero_stage=1"], "--zero_stage"),
        (["--vocab-size=64"], "--vocab-size"),
        (["--loss-scale=128"], "--loss-scale"),
        (["--epochs=3"], "--epochs"),
        (["--pattern-id=1"], "--pattern-id"),
        (["--distill_ft_soft", *DISTIL], "--distill_ft_soft"),
        (["--distill_temperature=3"], "--distill_temperature"),
        (["--teacher_num_layers=3"], "--teacher_num_layers"),
        (["--lr-decay-style=constant", "--lr-decay-ratio=0.5"], "--lr-decay-ratio"),
        (["--checkpoint-num-layers=2"], "--checkpoint-num-layers"),
        (["--ib_ffn_num=2"], "--ib_ffn_num"),
        ([*DISTIL, "--teacher_ib_hidden_size=64"], "--teacher_ib_hidden_size"),
        (["--gap-sentence-ratio=0.3"], "--gap-sentence-ratio"),
        (["--gpt-min-ratio=0.3"], "--gpt-min-ratio"),
        (["--mem-length=3"], "--mem-length"),
        (["--fix-command-token"], "--fix-command-token"),
        (["--masked-lm", "--no-shuffle-block"], "--no-shuffle-block"),
        (["--custom_first_eval"], "--custom_first_eval"),
        (["--custom_tmp_result=x"], "--custom_tmp_result"),
        (["--DDP-impl=local"], "--DDP-impl"),
        (["--half-lazy-loader"], "--half-lazy-loader"),
    ],
)
def test_a_flag_without_effect_warns_once(caplog, words, flag):
    pretrain(*words)
    assert [r.message.split(":")[0] for r in caplog.records] == [flag]
    assert "has no effect" in caplog.text


def test_flags_of_blanks_have_no_effect_on_text_that_is_read_on(caplog):
    words = ["--transformer-xl", "--mem-length=3", "--gpt-min-ratio=0.3", "--sample-one-document"]
    run = pretrain(*words)
    assert (run.reads_text, run.remembers, run.blocks.block_lm) == (True, True, False)
    (record,) = caplog.records
    assert record.message == (
        "--bert-prob, --gpt-min-ratio, --sample-one-document: have no effect on text that is read "
        "from left to right (--transformer-xl without --block-lm)"
    )
    for other in (pretrain("--transformer-xl", "--block-lm"), pretrain("--mem-length=3")):
        assert (other.reads_text, other.blocks.block_lm) == (False, True)


def test_flags_of_fine_tuning_without_effect(caplog):
    finetune("--train-data=x", "--pattern-id=1", "--train-iters=3", "--finetune", "--block-lm")
    assert [r.message.split(":")[0] for r in caplog.records] == [
        "--pattern-id",
        "--train-iters",
        "--train-data",
    ]


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["--num-prompt-tokens=3"], "--num-prompt-tokens"),
        (["--tune-prefix-layers=1"], "--tune-prefix-layers"),
        (["--cloze-eval", "--wsc-negative"], "--wsc-negative"),
        (["--segment-length=2"], "--segment-length"),
        (["--no-validation", "--custom_first_eval"], "--custom_first_eval"),
    ],
)
def test_a_flag_of_tasks_without_effect_warns(caplog, words, flag):
    finetune(*words)
    assert [r.message.split(":")[0] for r in caplog.records] == [flag]


@pytest.mark.parametrize(
    "word",
    ["--eval-interval=7", "--eval-iters=7", "--num-workers=1", "--text-key=x", "--cache-dir=x"]
    + ["--sample-one-document", "--non-sentence-start=0.5"],
)
def test_flags_of_corpora_do_nothing_for_tasks(caplog, word):
    finetune(word)
    assert caplog.messages == [f"{word.split('=')[0]}: has no effect on fine-tuning"]
    caplog.clear()
    pretrain(word)
    assert caplog.messages == []


def test_one_line_for_each_reason(caplog):
    finetune("--eval-interval=7", "--eval-iters=7", "--num-workers=1", "--vocab-size=9")
    assert caplog.messages == [
        "--vocab-size: has no effect on a run with a tokenizer, which decides",
        "--eval-interval, --eval-iters, --num-workers: have no effect on fine-tuning",
    ]


def test_adapet_has_a_loss_of_its_own(caplog):
    finetune("--cloze-eval", "--adapet", "--loss-func=hinge")
    assert caplog.messages == ["--loss-func: has no effect with --adapet, a loss of its own"]


def test_a_flag_that_needs_another_one(caplog):
    words = ["--student_model=logitsdistil", "--teacher_random_para", "--logitsdistil_teacher_min"]
    pretrain(*words, methods=method_args())
    assert caplog.messages == [
        "--logitsdistil_teacher_min: has no effect without --logitsdistil_top_n"
    ]
    caplog.clear()
    pretrain(*words, "--logitsdistil_top_n=5", methods=method_args())
    assert caplog.messages == []


def test_flags_that_others_need_exist():
    for kind in method_args().values():
        assert {*kind.needs, *kind.needs.values()} <= set(kind.flags())


def test_a_flag_of_another_method_warns(caplog):
    pretrain(*DISTIL, "--toy_weight=2", methods=TOY)
    assert "--toy_weight: has no effect with --student_model=kd" in caplog.text


def test_ordinary_commands_warn_of_nothing(caplog):
    pretrain(*DISTIL, "--finetune", "--block-lm", "--save=x", "--shuffle", "--bf16")
    finetune("--cloze-eval", "--pattern-id=1", "--finetune")
    assert caplog.records == []


def test_only_the_first_process_warns(caplog, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    pretrain("--DDP-impl=local", "--epochs=3")
    assert caplog.records == []


def test_ignored_flags_warn(caplog):
    pretrain(*IGNORED)
    expected = [f"{flag}: has no effect; {reason}" for flag, reason in IGNORED.items()]
    assert [record.message for record in caplog.records] == expected
