"""Lists over the teachers become one typed group each; what is wrong names list and entry."""

import json

import pytest

from config import ConfigError, TeacherArgs, check_hardware
from config.saved import changes
from config.teachers import MultiTeacherArgs
from distill.registry import method_args
from tests.config.common import DISTIL, PRETRAIN, finetune, pretrain, problems

TWO = [*DISTIL, "--mt_num_layers=12:6"]
TRACKER = "latest_checkpointed_iteration.txt"


def teachers(*flags):
    return pretrain(*DISTIL, *flags).teachers


# Values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "field", "expected"),
    [
        ("--mt_num_attention_heads=8:4:2", "num_attention_heads", [8, 4, 2]),
        ("--mt_hidden_size=64:32", "hidden_size", [64, 32]),
        ("--mt_num_layers=12:6", "num_layers", [12, 6]),
        ("--mt_max_position_embeddings=600:700", "max_position_embeddings", [600, 700]),
        ("--mt_load_pretrained=a/b:c", "load_pretrained", ["a/b", "c"]),
        ("--mt_ib_hidden_size=32:64", "ib_hidden_size", [32, 64]),
        ("--mt_ib_ffn_num=1:4", "ib_ffn_num", [1, 4]),
        ("--mt_ib_word_emb=0:16", "ib_word_emb", [0, 16]),
        ("--mt_compress_word_emb=0:128", "compress_word_emb", [0, 128]),
        ("--mt_fp16=0:1", "fp16", [False, True]),
        ("--mt_bf16=1:0", "bf16", [True, False]),
        ("--mt_inverted_bottleneck_mode=0:1", "inverted_bottleneck_mode", [False, True]),
        ("--mt_cross_layer_parameter_sharing=1:0", "cross_layer_parameter_sharing", [True, False]),
    ],
)
def test_every_list(flag, field, expected):
    shapes = ["--teacher_hidden_size=64", "--teacher_num_attention_heads=2"]
    found = [getattr(t, field) for t in teachers(*shapes, flag)]
    assert found == expected
    assert [type(x) for x in found] == [type(x) for x in expected]


def test_every_field_of_a_teacher_has_a_list_but_random_weights():
    lists = {name.removeprefix("--mt_") for name in MultiTeacherArgs.flags()}
    shared = {name.removeprefix("--teacher_") for name in TeacherArgs.flags()}
    assert shared - lists == {"random_para"}


def test_empty_entries_are_the_shared_value_and_single_ones_are_for_all():
    shared = ["--teacher_hidden_size=32", "--teacher_num_layers=7", "--teacher_bf16"]
    lists = ["--mt_hidden_size=:64:", "--mt_num_attention_heads=2", "--mt_bf16=0::1"]
    found = teachers(*shared, *lists)
    assert [t.hidden_size for t in found] == [32, 64, 32]
    assert [t.num_attention_heads for t in found] == [2, 2, 2]
    assert [t.num_layers for t in found] == [7, 7, 7]
    assert [t.bf16 for t in found] == [False, True, True]


def test_blanks_around_entries_do_not_matter():
    assert [t.num_layers for t in teachers("--mt_num_layers= 3 : 4 ")] == [3, 4]


def test_without_lists_there_is_one():
    assert len(teachers()) == 1
    assert teachers("--mt_num_layers=")[0].num_layers == 24
    assert teachers("--mt_num_layers=3")[0].num_layers == 3
    assert teachers("--mt_num_layers=:")[1].num_layers == 24


@pytest.mark.parametrize(
    ("text", "expected"), [("0", [1, 1]), ("1", [0, 0]), ("0:1", [1, 0]), ("1:0", [0, 1])]
)
def test_a_forward_that_is_not_computed(text, expected):
    found = teachers("--mt_num_layers=2:3", f"--mt_disable_operation={text}")
    assert [t.runs for t in found] == [bool(x) for x in expected]


def test_a_run_reads_back():
    run = pretrain(*TWO, "--mt_disable_operation=0:1", "--teacher_bf16")
    again = type(run).from_json(run.to_json())
    assert again.teachers == run.teachers
    assert again.multi_teacher == run.multi_teacher


# Mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            "--mt_num_layers=2:3 --mt_hidden_size=32:32:32",
            "the --mt_ lists differ in length: --mt_hidden_size has 3, --mt_num_layers has 2; give "
            "one value a teacher",
        ),
        ("--mt_num_layers=2:x", "--mt_num_layers=2:x: 'x' must be an integer"),
        ("--mt_num_layers=2:1.5", "--mt_num_layers=2:1.5: '1.5' must be an integer"),
        ("--mt_fp16=0:yes", "--mt_fp16=0:yes: 'yes' must be 0 or 1"),
        ("--mt_bf16=2", "--mt_bf16=2: '2' must be 0 or 1"),
        ("--mt_disable_operation=2", "--mt_disable_operation=2: each entry must be 0 or 1"),
        ("--mt_disable_operation=", "--mt_disable_operation=: each entry must be 0 or 1"),
        (
            "--mt_num_layers=2:3 --mt_disable_operation=0:1:0",
            "--mt_disable_operation=0:1:0: has 3 entries for 2 teacher(s)",
        ),
    ],
)
def test_lists_that_do_not_read(flags, expected):
    assert problems([*DISTIL, *flags.split()]) == (expected,)


def test_all_that_is_wrong_comes_at_once():
    found = problems([*DISTIL, "--mt_num_layers=a:2", "--mt_fp16=0:b", "--lr=-1"])
    assert [line.split("=")[0] for line in found] == [
        "--mt_num_layers",
        "--mt_fp16",
        "--lr",
    ]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--mt_num_layers=2:0", "--mt_num_layers[1]=0: must be positive"),
        ("--mt_num_layers=0", "--mt_num_layers=0: must be positive"),
        (
            "--mt_hidden_size=32:40",
            "--mt_hidden_size[1]=40: is not a multiple of --teacher_num_attention_heads=16",
        ),
        (
            "--mt_hidden_size=:40 --mt_num_attention_heads=16:3",
            "--mt_hidden_size[1]=40: is not a multiple of --mt_num_attention_heads[1]=3",
        ),
        ("--mt_ib_word_emb=0:4 --mem-length=2", "--mt_ib_word_emb[1]=4: needs whole samples"),
        ("--mt_fp16=0:1 --teacher_bf16", "--mt_fp16[1] and --teacher_bf16: choose one"),
        (
            "--mt_max_position_embeddings=512:100 --seq-length=200",
            "--seq-length=200: is longer than the teacher's --mt_max_position_embeddings[1]=100;",
        ),
    ],
)
def test_messages_name_the_entry(flags, expected):
    (problem,) = problems([*DISTIL, *flags.split()])
    assert problem.startswith(expected)


def test_weights_of_every_teacher():
    alone = [word for word in DISTIL if word != "--teacher_random_para"]
    (problem,) = problems([*alone, "--mt_num_layers=2:3"])
    assert problem.startswith("--teacher_load_pretrained: missing; give the teacher's checkpoint")
    (problem,) = problems([*alone, "--mt_load_pretrained=a:"])
    assert problem.startswith("--mt_load_pretrained=a:: entry 1 is empty; give the teacher's")
    assert pretrain(*alone, "--mt_load_pretrained=a:", "--teacher_load_pretrained=b").teachers
    assert pretrain(*alone, "--mt_load_from_s=a").teachers


def test_hardware():
    run = pretrain(*DISTIL, "--mt_fp16=1:0:1", "--mt_num_attention_heads=8:4:2")
    with pytest.raises(ConfigError) as caught:
        check_hardware(run, cuda=False, world_size=4)
    assert caught.value.problems == (
        "--mt_fp16[0]: needs a GPU; use --mt_bf16, or leave both out for fp32",
        "--mt_fp16[2]: needs a GPU; use --mt_bf16, or leave both out for fp32",
    )
    run = pretrain(*DISTIL, "--mt_num_attention_heads=8:2", "--model-parallel-size=4")
    with pytest.raises(ConfigError) as caught:
        check_hardware(run, cuda=True, world_size=4)
    (problem,) = caught.value.problems
    assert problem == "--model-parallel-size=4: does not divide --mt_num_attention_heads[1]=2"


def test_one_line_for_what_all_teachers_share():
    run = pretrain(*TWO, "--teacher_fp16")
    with pytest.raises(ConfigError) as caught:
        check_hardware(run, cuda=False, world_size=1)
    assert len(caught.value.problems) == 1


# Teachers that are trained ------------------------------------------------------------------------

LIVE = ["--mt_has_grad", "--mt_has_loss"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--teacher_bf16", "--teacher_bf16: a teacher that is trained (--mt_has_grad) has the run"),
        ("--mt_fp16=0:1", "--mt_fp16[1]: a teacher that is trained"),
        ("--mt_disable_operation=0:1", "--mt_disable_operation=0:1: teacher 1 is trained"),
        ("--teacher_offload=cpu", "--teacher_offload=cpu: teachers that are trained"),
    ],
)
def test_what_trained_teachers_cannot_be(flags, expected):
    (problem,) = problems([*TWO, *LIVE, flags])
    assert problem.startswith(expected)
    assert pretrain(*TWO, flags).teachers


EMPTY = "--student_use_empty_glm"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], f"{EMPTY}: nothing would be trained; add --mt_has_grad and --mt_has_loss"),
        (LIVE[:1], f"{EMPTY}: nothing would be trained"),
        ([*LIVE, "--distill_logits_parallel"], "--distill_logits_parallel: there is no student"),
        ([*LIVE, "--distil_analysis_inter"], "--distil_analysis_inter: there is no student"),
        ([*LIVE, "--student_truncate_tn=0"], "--student_truncate_tn=0: there is no student to"),
        ([*LIVE, "--load-pretrained=none"], "--load-pretrained=none: there is no student to load"),
    ],
)
def test_what_a_run_without_a_student_needs(flags, expected):
    base = [word for word in TWO if word != "--distill_pt_soft"]
    (problem,) = problems([*base, "--distill_pt_hard", EMPTY, *flags])
    assert problem.startswith(expected)


def test_soft_labels_of_no_student():
    (problem,) = problems([*TWO, EMPTY, *LIVE])
    assert problem.startswith("--distill_pt_soft: there is no student to compare")


def test_teachers_alone_need_no_loss_of_the_student():
    kd = ["--student_model=kd", "--teacher_random_para", *LIVE]
    assert pretrain(*kd, EMPTY).multi_teacher.student_use_empty_glm
    assert finetune(*kd).teachers
    (problem,) = problems([*PRETRAIN, *kd[:-1]])
    assert "no loss is on" in problem


# Checkpoints --------------------------------------------------------------------------------------


def saved(folder, *flags):
    folder.mkdir()
    (folder / TRACKER).write_text("7")
    (folder / "config.json").write_text(pretrain(*flags).to_json())
    return str(folder)


def sizes(run):
    return [(t.num_layers, t.hidden_size, t.num_attention_heads) for t in run.teachers]


@pytest.fixture
def two(tmp_path):
    """Checkpoints of two shapes."""
    heads = "--num-attention-heads"
    return (
        saved(tmp_path / "a", "--num-layers=3", "--hidden-size=48", f"{heads}=6"),
        saved(
            tmp_path / "b", "--num-layers=5", "--hidden-size=64", f"{heads}=8", "--ib_word_emb=9"
        ),
    )


KD = ["--student_model=kd", "--distill_pt_soft"]


def test_each_teacher_is_what_its_checkpoint_is(two):
    run = pretrain(*KD, f"--mt_load_pretrained={two[0]}:{two[1]}:{two[0]}")
    assert sizes(run) == [(3, 48, 6), (5, 64, 8), (3, 48, 6)]
    assert [t.ib_word_emb for t in run.teachers] == [0, 9, 0]
    run = pretrain(*KD, f"--mt_load_pretrained={two[1]}:", f"--teacher_load_pretrained={two[0]}")
    assert sizes(run) == [(5, 64, 8), (3, 48, 6)]


def test_given_entries_and_shared_flags_win(two):
    paths = f"--mt_load_pretrained={two[0]}:{two[1]}"
    run = pretrain(*KD, paths, "--mt_num_layers=:4")
    assert [t.num_layers for t in run.teachers] == [3, 4]
    run = pretrain(*KD, paths, "--teacher_num_layers=2")
    assert [t.num_layers for t in run.teachers] == [2, 2]
    run = pretrain(*KD, paths, "--teacher_num_layers=2", "--mt_num_layers=:9")
    assert [t.num_layers for t in run.teachers] == [2, 9]


def test_another_number_of_heads_names_the_entry(two):
    paths = f"--mt_load_pretrained={two[0]}:{two[1]}"
    (problem,) = problems([*PRETRAIN, *KD, paths, "--mt_num_attention_heads=:4"])
    assert problem == f"--mt_num_attention_heads[1]=4: the checkpoint {two[1]} has 8"


def test_random_teachers_read_no_checkpoint(two):
    run = pretrain(*DISTIL, f"--mt_load_pretrained={two[0]}:{two[1]}")
    assert sizes(run) == [(24, 1024, 16)] * 2


def test_a_joint_checkpoint_knows_its_teachers(two, tmp_path):
    joint = saved(tmp_path / "s", *KD, f"--mt_load_pretrained={two[0]}:{two[1]}")
    run = pretrain(*KD, f"--mt_load_from_s={joint}")
    assert sizes(run) == [(3, 48, 6), (5, 64, 8)]
    run = pretrain(*KD, f"--mt_load_from_s={joint}", "--mt_num_layers=7:")
    assert sizes(run) == [(7, 48, 6), (5, 64, 8)]


def test_a_torn_config_names_the_entry(two):
    with open(two[1] + "/config.json", "w") as file:
        file.write('{"model": ')
    (problem,) = problems([*PRETRAIN, *KD, f"--mt_load_pretrained={two[0]}:{two[1]}"])
    assert "--mt_load_pretrained[1]" in problem


def test_what_has_changed_on_resuming():
    before = pretrain(*TWO, "--mt_hidden_size=32:64").to_dict()
    assert changes(pretrain(*TWO, "--mt_hidden_size=32:64"), json.loads(json.dumps(before))) == []
    after = pretrain(*TWO, "--mt_hidden_size=32:48", "--mt_has_loss", "--mt_has_grad")
    assert changes(after, before) == [
        "--mt_has_loss: was False, now True",
        "--mt_has_grad: was False, now True",
        "--mt_hidden_size[1]: was 64, now 48",
    ]
    (line,) = changes(
        pretrain(*DISTIL, "--mt_num_layers=12:6:3", "--mt_hidden_size=32:64:32"), before
    )
    assert line == "--mt_ lists: were 2 teachers, now 3"


# Without effect -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--mt_num_layers=2:3"], "--mt_num_layers: has no effect without --student_model"),
        (["--mt_has_grad"], "--mt_has_grad: has no effect without --student_model"),
        (["--teacher_offload=cpu"], "--teacher_offload: has no effect without --student_model"),
        (
            [*TWO, "--teacher_num_layers=3"],
            "--teacher_num_layers: has no effect with --mt_num_layers, which has a value for every "
            "teacher",
        ),
        (
            [*DISTIL, "--mt_load_from_s=a", "--mt_load_pretrained=b"],
            "--mt_load_pretrained: has no effect with --mt_load_from_s",
        ),
    ],
)
def test_flags_without_effect(caplog, words, expected):
    pretrain(*words)
    assert caplog.messages == [expected]


def test_flags_with_effect(caplog):
    pretrain(*TWO, "--teacher_hidden_size=32", "--teacher_ib_word_emb=3", "--mt_hidden_size=:64")
    pretrain(*KD, "--mt_load_from_s=none", methods=method_args())
    assert caplog.messages == []
