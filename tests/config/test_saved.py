"""Architectures from a checkpoint's config.json."""

import json

import pytest

from config.saved import run_folder, saved_config
from tests.config.common import PRETRAIN, pretrain, problems

SAVED = ["--num-layers=3", "--hidden-size=48", "--num-attention-heads=6", "--hidden-dropout=0.3"]
SAVED += ["--max-position-embeddings=1024", "--make-vocab-size-divisible-by=8"]
TRACKER = "latest_checkpointed_iteration.txt"


@pytest.fixture
def folder(tmp_path):
    """A run's folder with the tag 7 and a config.json beside its tracker."""
    (tmp_path / "run/7").mkdir(parents=True)
    (tmp_path / "run" / TRACKER).write_text("7")
    (tmp_path / "run/config.json").write_text(pretrain(*SAVED).to_json())
    return tmp_path / "run"


def shape(args) -> tuple[int, ...]:
    return (
        args.num_layers,
        args.hidden_size,
        args.num_attention_heads,
        args.max_position_embeddings,
    )


@pytest.mark.parametrize("flag", ["--load", "--load-pretrained"])
@pytest.mark.parametrize("below", ["", "7"])
def test_student(folder, flag, below):
    model = pretrain(f"{flag}={folder / below}").model
    assert shape(model) == (3, 48, 6, 1024)
    assert model.make_vocab_size_divisible_by == 8
    assert model.hidden_dropout == 0.1  # no part of the architecture


def test_teacher(folder):
    words = ["--student_model=kd", "--distill_pt_soft", f"--teacher_load_pretrained={folder}"]
    run = pretrain(*words)
    assert shape(run.teachers[0]) == (3, 48, 6, 1024)
    assert shape(run.model) == (24, 1024, 16, 512)
    assert shape(pretrain(*words, "--teacher_random_para").teachers[0]) == (24, 1024, 16, 512)


def test_flags_that_were_given_win(folder):
    model = pretrain(f"--load={folder}", "--num-layers=2", "--max-position-embeddings=2048").model
    assert shape(model) == (2, 48, 6, 2048)


def test_another_number_of_heads_is_an_error(folder):
    (problem,) = problems([*PRETRAIN, f"--load={folder}", "--num-attention-heads=4"])
    assert problem == f"--num-attention-heads=4: the checkpoint {folder} has 6"


ALBERT = ["--num-layers=3", "--cross_layer_parameter_sharing", "--compress_word_emb=64"]
IB = ["--inverted_bottleneck_mode", "--ib_hidden_size=64", "--ib_ffn_num=2", "--ib_word_emb=32"]
EXPECTED_SHAPES = [
    (ALBERT, (3, True, 64, False, 0)),
    (IB, (24, False, 0, True, 32)),
]


def variant(args) -> tuple:
    return (
        args.num_layers,
        args.cross_layer_parameter_sharing,
        args.compress_word_emb,
        args.inverted_bottleneck_mode,
        args.ib_word_emb,
    )


@pytest.mark.parametrize(("words", "expected"), EXPECTED_SHAPES)
def test_other_shapes_need_no_flags_either(folder, words, expected):
    (folder / "config.json").write_text(pretrain(*words).to_json())
    model = pretrain(f"--load={folder}").model
    assert variant(model) == expected
    distil = ["--student_model=kd", "--distill_pt_soft", f"--teacher_load_pretrained={folder}"]
    run = pretrain(*distil)
    (teacher,) = run.teachers
    assert variant(teacher) == expected
    assert variant(run.model) == (24, False, 0, False, 0)
    assert variant(teacher.model_args(run.model)) == expected
    if words is IB:
        assert (model.ib_hidden_size, model.ib_ffn_num) == (64, 2)
        assert (teacher.ib_hidden_size, teacher.ib_ffn_num) == (64, 2)


def test_a_plain_teacher_of_a_student_of_another_shape():
    words = ["--student_model=kd", "--distill_pt_soft", "--teacher_random_para"]
    run = pretrain(*words, *ALBERT, *IB)
    assert variant(run.teachers[0].model_args(run.model)) == (24, False, 0, False, 0)


def test_another_number_of_shared_layers_is_an_error(folder):
    (folder / "config.json").write_text(pretrain(*ALBERT).to_json())
    (problem,) = problems([*PRETRAIN, f"--load={folder}", "--num-layers=4"])
    assert problem == f"--num-layers=4: the checkpoint {folder} has 3"
    pretrain(f"--load={folder}", "--num-layers=3")


def test_the_tags_own_config_comes_first(folder):
    (folder / "7/config.json").write_text(pretrain("--num-layers=5").to_json())
    assert pretrain(f"--load={folder}").model.num_layers == 5
    assert saved_config(folder) == folder / "7/config.json"


def test_a_checkpoint_without_config(folder):
    (folder / "config.json").unlink()
    assert saved_config(folder) is None
    assert shape(pretrain(f"--load={folder}").model) == (24, 1024, 16, 512)


def test_a_missing_checkpoint_is_not_our_business(tmp_path):
    assert pretrain(f"--load={tmp_path / 'none'}").model.num_layers == 24


def test_a_config_of_something_else(folder):
    (folder / "config.json").write_text(json.dumps({"model": {"num_layers": 2, "other": 3}}))
    assert pretrain(f"--load={folder}").model.num_layers == 2
    (folder / "config.json").write_text("{")
    (problem,) = problems([*PRETRAIN, f"--load={folder}"])
    assert f"--load={folder}/config.json: line 1" in problem


def test_run_folder(folder, tmp_path):
    assert run_folder(folder) == folder
    assert run_folder(folder / "7") == folder
    assert run_folder(tmp_path) == tmp_path
