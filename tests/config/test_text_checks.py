"""Lengths and windows of tasks whose answers are texts, and flags that do nothing there."""

import logging

import pytest

from config import ConfigError, NoArgs, parse_args

SEQ2SEQ = ["--task=xsum", "--data-dir=x", "--epochs=1"]
LENGTHS = ["--src-seq-length=64", "--tgt-seq-length=16"]
LM = ["--task=wikitext", "--valid-data=x.txt", "--epochs=0"]


def parse(*flags):
    return parse_args(flags, program="finetune", methods={"kd": NoArgs})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (SEQ2SEQ, "--src-seq-length: missing"),
        (SEQ2SEQ, "--tgt-seq-length: missing"),
        ([*SEQ2SEQ, "--src-seq-length=3", "--tgt-seq-length=16"], "--src-seq-length=3: must be"),
        ([*SEQ2SEQ, "--src-seq-length=600", "--tgt-seq-length=16"], "=600: is longer than --max"),
        ([*SEQ2SEQ, *LENGTHS, "--min-tgt-length=16"], "--min-tgt-length=16: must be below"),
        ([*SEQ2SEQ, *LENGTHS, "--label-smoothing=1"], r"--label-smoothing=1.0: must be in \[0, 1"),
        ([*SEQ2SEQ, *LENGTHS, "--num-beams=0"], "--num-beams=0: must be at least 1"),
        ([*LM[:2], "--epochs=3"], "--epochs=3: --task=wikitext is evaluated only"),
        ([LM[0], "--epochs=0"], "--valid-data: give the one file"),
        ([*LM, "--overlapping-eval=511"], "--overlapping-eval=511: must be below 511"),
        ([*LM, "--eval-seq-length=600"], "--eval-seq-length=600"),
    ],
)
def test_what_is_wrong_is_named(flags, message):
    with pytest.raises(ConfigError, match=message):
        parse(*flags)


def test_a_teacher_must_have_the_positions_too():
    teacher = ["--student_model=kd", "--distill_ft_soft", "--teacher_random_para"]
    teacher += ["--teacher_max_position_embeddings=32", "--teacher_load_pretrained=x"]
    with pytest.raises(ConfigError, match="--teacher_max_position_embeddings=32"):
        parse(*SEQ2SEQ, *LENGTHS, *teacher)


def test_what_is_right_passes():
    # The default --seq-length=512 says nothing about a task with lengths of its own.
    run = parse(*SEQ2SEQ, *LENGTHS, "--max-position-embeddings=64")
    assert (run.text.src_seq_length, run.text.tgt_seq_length) == (64, 16)
    assert parse(*LM, "--eval-seq-length=64").data.eval_seq_length == 64
    assert parse("--task=LAMBADA", *LM[1:], "--overlapping-eval=9999").finetuning.task == "LAMBADA"


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--task=copa", "--data-dir=x", "--epochs=1", "--num-beams=2"], "--num-beams: has no"),
        ([*SEQ2SEQ, *LENGTHS, "--pattern-id=1"], "--pattern-id: has no effect"),
        ([*SEQ2SEQ, *LENGTHS, "--seq-length=64"], "--seq-length: has no effect"),
        ([*SEQ2SEQ, *LENGTHS, "--blank-maskratio=0.2"], "--blank-maskratio: has no effect"),
        ([*SEQ2SEQ, *LENGTHS, "--select-topk"], "--select-topk: has no effect without --compat"),
        ([*SEQ2SEQ, *LENGTHS, "--top_k=2"], "--top_k: has no effect on training"),
        ([*SEQ2SEQ, *LENGTHS, "--unidirectional"], "--unidirectional: has no effect without"),
        ([*LM, "--data-dir=x"], "--data-dir: has no effect"),
        (["--task=lambda", *LM[1:], "--overlapping-eval=4"], "--overlapping-eval: has no effect"),
    ],
)
def test_flags_without_effect_are_told(flags, told, caplog):
    with caplog.at_level(logging.WARNING):
        parse(*flags)
    assert told in caplog.text


def test_flags_with_effect_are_not_told(caplog):
    with caplog.at_level(logging.WARNING):
        parse(*SEQ2SEQ, *LENGTHS, "--num-beams=2", "--length-penalty=0.7", "--label-smoothing=0.1")
        parse(*LM, "--unidirectional", "--overlapping-eval=4", "--text-key=t")
    assert "no effect" not in caplog.text
