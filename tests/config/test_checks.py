"""Checks between groups, of hardware, and warnings of flags without effect."""

import pytest

from config import ConfigError, check_hardware
from config.checks import RANGES
from config.distill import TeacherArgs
from config.not_yet import NOT_YET, Later
from config.run import GROUPS
from distill.methods.glmd import GLMDArgs
from tests.config.common import DISTIL, FINETUNE, PRETRAIN, finetune, pretrain, problems


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--continuous-prompt --num-prompt-tokens=3", "has no pattern; add --cloze-eval"),
        ("--continuous-prompt --cloze-eval", "give --num-prompt-tokens or --prefix-prompt"),
        ("--segment-length=2 --fast-decode --cloze-eval", "leave out --fast-decode"),
        ("--segment-length=-1", "must not be negative"),
        ("--tune-prefix-layers=0 --freeze-transformer", "must be at least 1"),
    ],
)
def test_patterns_that_cannot_work(words, expected):
    with pytest.raises(ConfigError) as caught:
        finetune(*words.split())
    assert expected in str(caught.value)


def test_complete_commands_pass():
    assert pretrain().program == "pretrain"
    assert finetune().program == "finetune"
    assert pretrain(*DISTIL).teachers[0].random_para


def test_random_tokens_are_not_remembered():
    words = ["--transformer-xl", "--distill_random_data=dual"]
    pretrain(*DISTIL, *words)
    (problem,) = problems([*DISTIL, *words, "--mem-length=3"])
    assert problem.startswith(
        "--distill_random_data=dual: what is remembered would not be the text"
    )


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--seq-length=513", "is longer than --max-position-embeddings=512"),
        ("--train-iters=0", "nothing to train"),
        ("--bert-prob=0.5 --gap-sentence-prob=0.6", "are more than 1 together"),
        ("--bert-prob=0.5 --masked-lm", "has no other kinds of samples"),
        ("--masked-lm --random-position", "leave it out"),
        ("--sentinel-token --tokenizer-type=GPT2BPETokenizer", "leave it out"),
        ("--train-data-weights 1 2", "needs one for each of the 1 corpora"),
        ("--train-data-weights 0", "must be positive"),
        ("--eval-seq-length=513", "is longer than --max-position-embeddings=512"),
        (
            "--transformer-xl --block-lm --mem-length=3",
            "--mem-length=3: samples with blanks do not",
        ),
        ("--transformer-xl --masked-lm --mem-length=3", "leave out --block-lm and --masked-lm"),
        (
            "--transformer-xl --ib_word_emb=4",
            "--ib_word_emb=4: looks ahead in a context; give --bl",
        ),
        ("--transformer-xl --train-data-weights 1", "reads all documents from end to end"),
        ("--bert-prob=-1", "must be in [0, 1]"),
        ("--split=1,x,1", "must be proportions"),
        ("--split=0,1,1", "must be proportions"),
        ("--split=1,2,3,4", "must be proportions"),
        ("--split=1,-2,3", "must be proportions"),
        ("--split=nan,1,1", "must be proportions"),
        ("--fp16 --bf16", "choose one"),
        ("--deepspeed", "needs --deepspeed_config"),
        ("--deepspeed_config=config/config_block_base.json", "needs --deepspeed;"),
        ("--seed=-1", "must be in [0, 2^63)"),
        (f"--seed={2**63}", "must be in [0, 2^63)"),
        ("--warmup=1.5", "must be in [0, 1]"),
        ("--warmup=nan", "--warmup=nan: must be a finite number"),
        ("--lr=inf", "--lr=inf: must be a finite number"),
        ("--lr=nan", "--lr=nan: must be a finite number"),
        ("--lr=-inf", "--lr=-inf: must be a finite number"),
        ("--save_interval_time=inf", "must be a finite number"),
        ("--distill_temperature=inf", "--distill_temperature=inf: must be a finite number"),
        ("--lr=-1", "must not be negative"),
        ("--batch-size=0", "must be at least 1"),
        ("--gradient-accumulation-steps=0", "must be at least 1"),
        ("--adam-beta2=1", "must be in [0, 1)"),
        ("--zero_stage=4", "must be 0, 1, 2 or 3"),
        ("--lr-decay-style=exponential", "use --lr-decay-style=constant"),
        ("--compat=D4", "unknown D4"),
        ("--tokenizer-type=SentencePieceTokenizer", "is not supported yet"),
        ("--hidden-size=30 --num-attention-heads=4", "is not a multiple of"),
        ("--compress_word_emb=-1", "must not be negative"),
        ("--ib_word_emb=1025", "give at most --hidden-size=1024"),
        ("--ib_word_emb=4 --mem-length=3", "--ib_word_emb=4: needs whole samples; give --mem-leng"),
        (
            "--inverted_bottleneck_mode --ib_hidden_size=40",
            "--ib_hidden_size=40: is not a multiple",
        ),
        ("--inverted_bottleneck_mode --ib_ffn_num=0", "--ib_ffn_num=0: must be positive"),
        ("--inverted_bottleneck_mode --ib_hidden_size=0", "--ib_hidden_size=0: must be positive"),
        ("--distill_temperature=0", "must be positive"),
        ("--model-parallel-size=0", "must be at least 1"),
        ("--student_model=kd --distill_pt_soft", "--teacher_load_pretrained: missing"),
        ("--student_model=kd --teacher_random_para", "no loss is on; add --distill_pt_soft"),
    ],
)
def test_each_mistake(flag, expected):
    (problem,) = problems([*PRETRAIN, *flag.split()])
    assert expected in problem


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_every_float_is_finite(value):
    floats = {
        spelling: field
        for group in (*GROUPS.values(), TeacherArgs, GLMDArgs)
        for spelling, field in group.flags().items()
        if field.type in (float, float | None)
    }
    assert {"--lr", "--hidden-dropout", "--loss-scale", "--logitsdistil_top_n"} <= set(floats)
    for flag in floats:
        words = [*DISTIL, "--student_model=logitsdistil", "--fp16", f"{flag}={value}"]
        found = [
            p
            for p in problems(words, methods={"logitsdistil": GLMDArgs})
            if p.startswith(f"{flag}={value}: must be ")
        ]
        assert len(found) == 1, flag


def test_a_float_of_the_json_is_finite(tmp_path):
    file = tmp_path / "ds.json"
    file.write_text('{"optimizer": {"type": "AdamW", "params": {"lr": Infinity}}}')
    (problem,) = problems([*PRETRAIN, "--deepspeed", f"--deepspeed_config={file}"])
    assert problem.endswith("ds.json: optimizer.params.lr=inf: must be a finite number")


def test_teacher_precision():
    (problem,) = problems([*DISTIL, "--teacher_fp16", "--teacher_bf16"])
    assert problem == "--teacher_fp16 and --teacher_bf16: choose one"


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--teacher_num_layers=0", "--teacher_num_layers=0: must be positive"),
        ("--teacher_hidden_size=40", "is not a multiple of --teacher_num_attention_heads=16"),
        ("--teacher_compress_word_emb=-1", "must not be negative"),
        ("--teacher_ib_word_emb=1025", "give at most --teacher_hidden_size=1024"),
        ("--teacher_ib_word_emb=4 --mem-length=3", "--teacher_ib_word_emb=4: needs whole samples"),
        ("--teacher_inverted_bottleneck_mode --teacher_ib_hidden_size=40", "is not a multiple of"),
        ("--teacher_inverted_bottleneck_mode --teacher_ib_ffn_num=0", "must be positive"),
    ],
)
def test_sizes_of_a_teacher(flag, expected):
    (problem,) = problems([*DISTIL, *flag.split()])
    assert problem.startswith("--teacher_")
    assert expected in problem


def test_a_teacher_knows_all_positions():
    run = pretrain(*DISTIL, "--teacher_max_position_embeddings=64", "--seq-length=64")
    assert run.teachers[0].max_position_embeddings == 64
    (problem,) = problems([*DISTIL, "--teacher_max_position_embeddings=63", "--seq-length=64"])
    assert problem.startswith("--seq-length=64: is longer than the teacher's --teacher_max_pos")
    assert "=63;" in problem


def test_the_largest_seed():
    assert pretrain(f"--seed={2**63 - 1}").train.seed == 2**63 - 1


@pytest.mark.parametrize(
    ("words", "on"),
    [
        ("--distill_pt_soft", True),
        ("--distill_pt_soft --distill_soft_rate=0", False),
        ("--distill_pt_soft --distill_hard_rate=0", True),
        ("--distill_pt_hard --distill_hard_rate=0", False),
        ("--distill_pt_hard --distill_soft_rate=0", True),
        ("--distill_ft_soft", False),
        ("--distill_pt_soft --distill_soft_rate=0 --distill_logits_parallel", True),
    ],
)
def test_kd_needs_a_loss_that_weighs_something(words, on):
    argv = ["--student_model=kd", "--teacher_random_para", *words.split()]
    if on:
        assert pretrain(*argv).teachers
    else:
        (problem,) = problems([*PRETRAIN, *argv])
        assert problem.startswith("--student_model=kd: no loss is on")
        assert "--distill_soft_rate" in problem


def test_inner_sizes_do_not_count_without_the_mode():
    run = pretrain("--ib_hidden_size=40", "--ib_ffn_num=0")
    assert run.model.inner_size == 1024
    words = ["--inverted_bottleneck_mode", "--hidden-size=20", "--ib_hidden_size=48"]
    assert pretrain(*words).model.inner_size == 48  # heads divide it, not the width outside


@pytest.mark.parametrize("flag", ["--ib_word_emb", "--teacher_ib_word_emb"])
def test_fast_decoding_needs_own_words(flag):
    words = ["--student_model=kd", "--distill_ft_soft", "--teacher_random_para", f"{flag}=4"]
    words += ["--cloze-eval", "--multi-token"]
    finetune(*words)
    (problem,) = problems([*FINETUNE, *words, "--fast-decode"], "finetune")
    assert problem == f"{flag}=4: needs whole samples; leave out --fast-decode"


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("--task", "--task: missing"),
        ("--data-dir", "--data-dir: missing"),
        ("--epochs", "--epochs"),
    ],
)
def test_fine_tuning_needs(missing, expected):
    argv = [word for word in FINETUNE if not word.startswith(missing)]
    (problem,) = problems(argv, "finetune")
    assert problem.startswith(expected)


def test_fine_tuning_does_not_need():
    run = finetune("--epochs=0", "--load=a", "--load-pretrained=b")
    assert run.train.epochs == 0


def test_pretraining_needs_data():
    found = problems(["--bert-prob=1"])
    assert [p.split(":")[0] for p in found] == ["--train-iters=0", "--train-data"]


def test_everything_at_once():
    argv = "--warmup=2 --fp16 --bf16 --deepspeed --seq-length=999 --student_model=kd --split=x --compat=y"
    assert len(problems(argv.split())) == 11


@pytest.mark.parametrize("key", RANGES)
def test_ranges_name_fields_that_exist(key):
    assert set(RANGES[key]) <= {f.name for f in GROUPS[key].flags().values()}


@pytest.mark.parametrize(
    ("split", "expected"),
    [("1000,1,1", (1000 / 1002, 1 / 1002, 1 / 1002)), ("3/1", (0.75, 0.25, 0)), ("1", (1, 0, 0))],
)
def test_split(split, expected):
    assert pretrain(f"--split={split}").data.shares == pytest.approx(expected)


def hardware_problems(run, **machine) -> str:
    with pytest.raises(ConfigError) as caught:
        check_hardware(run, **machine)
    return str(caught.value)


def test_hardware_passes():
    run = pretrain("--model-parallel-size=2", "--distributed-backend=gloo", "--bf16")
    check_hardware(run, cuda=False, world_size=4)
    check_hardware(pretrain("--fp16", "--distributed-backend=nccl"), cuda=True, world_size=1)


def test_without_a_gpu():
    run = pretrain(*DISTIL, "--fp16", "--teacher_fp16", "--distributed-backend=nccl")
    found = hardware_problems(run, cuda=False, world_size=1).splitlines()
    assert [line.split(":")[0] for line in found] == [
        "--fp16",
        "--teacher_fp16",
        "--distributed-backend=nccl",
    ]
    assert "use --bf16" in found[0]
    assert "--teacher_bf16" in found[1]
    assert "gloo" in found[2]


def test_fp16_of_a_json_without_a_gpu(tmp_path):
    file = tmp_path / "ds.json"
    file.write_text('{"fp16": {"enabled": true}}')
    run = pretrain("--deepspeed", f"--deepspeed_config={file}", "--bf16")
    found = hardware_problems(run, cuda=False, world_size=1)
    assert f"--deepspeed_config={file}: enables fp16" in found
    assert "--args_to_ds_config with --bf16" in found
    words = ["--deepspeed", f"--deepspeed_config={file}", "--bf16", "--args_to_ds_config"]
    check_hardware(pretrain(*words), cuda=False, world_size=1)


def test_model_parallel_size():
    run = pretrain(*DISTIL, "--model-parallel-size=3", "--teacher_num_attention_heads=32")
    found = hardware_problems(run, cuda=True, world_size=4).splitlines()
    assert len(found) == 3
    assert all(line.startswith("--model-parallel-size=3: does not divide") for line in found)
    assert "--num-attention-heads=16" in found[0]
    assert "--teacher_num_attention_heads=32" in found[1]
    assert "the 4 process(es)" in found[2]


def test_a_multiple_of_the_vocabulary_may_be_odd():
    words = ["--model-parallel-size=2", "--make-vocab-size-divisible-by=15"]
    check_hardware(pretrain(*words), cuda=True, world_size=2)  # 30540 = 2036 * 15 is even


def test_model_parallel_size_and_shapes():
    shape = ["inverted_bottleneck_mode", "ib_hidden_size=32", "hidden_size=30"]
    words = [f"--teacher_{word}" for word in [*shape, "compress_word_emb=10"]]
    run = pretrain(*DISTIL, *words, "--compress_word_emb=6", "--model-parallel-size=4")
    found = hardware_problems(run, cuda=True, world_size=4).splitlines()
    assert found == [
        "--model-parallel-size=4: does not divide --compress_word_emb=6",
        "--model-parallel-size=4: does not divide --teacher_hidden_size=30",
        "--model-parallel-size=4: does not divide --teacher_compress_word_emb=10",
    ]


def test_more_model_parallel_than_processes():
    run = pretrain("--model-parallel-size=2")
    assert "the 1 process(es)" in hardware_problems(run, cuda=True, world_size=1)


def test_flags_of_features_not_built_are_errors():
    words = [word for flag in NOT_YET for word in (flag, "17")]
    expected = {f"{flag}: is not supported yet: {NOT_YET[flag].feature}" for flag in NOT_YET}
    assert set(problems([*PRETRAIN, *words])) == expected


def test_a_switch_of_a_feature_not_built_is_an_error():
    (problem,) = problems([*PRETRAIN, "--pretrained-bert"])
    assert problem.startswith("--pretrained-bert: is not supported yet: BERT models")


def test_their_defaults_ask_for_nothing(monkeypatch):
    for flag, default in (("--some-word", "adam"), ("--some-number", "0")):
        monkeypatch.setitem(NOT_YET, flag, Later("some feature", default))
    defaults = {flag: later.default for flag, later in NOT_YET.items() if later.default is not None}
    assert len(defaults) >= 2
    pretrain(*(f"{flag}={default}" for flag, default in defaults.items()))
    (problem,) = problems([*PRETRAIN, "--some-word=sgd", "--some-number=0"])
    assert problem == "--some-word: is not supported yet: some feature"


def test_defaults_are_compared_as_numbers(monkeypatch):
    monkeypatch.setitem(NOT_YET, "--some-number", Later("some feature", "32"))
    pretrain("--some-number=32.00")
    (problem,) = problems([*PRETRAIN, "--some-number=31"])
    assert "some feature" in problem


def test_resuming_in_part_is_an_error():
    (problem,) = problems([*PRETRAIN, "--no-load-optim", "--load=x"])
    assert problem.startswith(
        "--no-load-optim: is not supported with --load; use --load-pretrained"
    )
