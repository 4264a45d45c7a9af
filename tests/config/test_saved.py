"""Architecture and vocabulary from a checkpoint's config.json, and what differs from it."""

import json

import pytest

from config.saved import changes, run_folder, saved_config
from distill.registry import method_args
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


# Vocabulary and settings --------------------------------------------------------------------------


@pytest.fixture
def own_vocabulary(folder, tmp_path):
    """The run was trained with --tokenizer-path, and has a copy."""
    recorded = tmp_path / "words.txt"
    flags = [*SAVED, f"--tokenizer-path={recorded}", "--task-mask"]
    (folder / "config.json").write_text(pretrain(*flags).to_json())
    (folder / "vocab.txt").write_text("[PAD]")
    return recorded


@pytest.mark.parametrize("flag", ["--load", "--load-pretrained"])
@pytest.mark.parametrize("below", ["", "7"])
def test_a_checkpoint_brings_its_tokenizer(folder, own_vocabulary, flag, below):
    tokenizer = pretrain(f"{flag}={folder / below}").tokenizer
    assert tokenizer.tokenizer_path == str(folder / "vocab.txt")
    assert tokenizer.task_mask
    (folder / "vocab.txt").unlink()
    assert pretrain(f"{flag}={folder}").tokenizer.tokenizer_path == str(own_vocabulary)


def test_a_given_vocabulary_wins_as_a_whole(folder, own_vocabulary):
    load = f"--load-pretrained={folder}"
    given = pretrain(load, "--tokenizer-path=other.txt").tokenizer
    assert given.tokenizer_path == "other.txt"
    given = pretrain(load, "--tokenizer-model-type=bert-base-uncased").tokenizer
    assert given.tokenizer_path == "tokenizer.model"
    given = pretrain(load, "--tokenizer-type=GPT2BPETokenizer").tokenizer
    assert (given.tokenizer_type, given.tokenizer_path) == ("GPT2BPETokenizer", "tokenizer.model")
    same = pretrain(load, "--tokenizer-type=BertWordPieceTokenizer").tokenizer
    assert same.tokenizer_path == str(folder / "vocab.txt")


def test_the_recorded_path_means_the_copy_when_resuming_or_moved(folder, own_vocabulary):
    given, copy = f"--tokenizer-path={own_vocabulary}", str(folder / "vocab.txt")
    assert pretrain(f"--load-pretrained={folder}", given).tokenizer.tokenizer_path == copy
    own_vocabulary.write_text("[UNK]")
    path = pretrain(f"--load-pretrained={folder}", given).tokenizer.tokenizer_path
    assert path == str(own_vocabulary)
    assert pretrain(f"--load={folder}", given).tokenizer.tokenizer_path == copy


def test_the_vocabulary_that_ships_needs_no_copy(folder):
    (folder / "vocab.txt").write_text("of somebody else")
    assert pretrain(f"--load={folder}").tokenizer.tokenizer_path == "tokenizer.model"


def test_changed_settings_are_listed():
    saved = pretrain("--lr=0.001", "--train-iters=20", "--save=a").to_dict()
    same = pretrain("--lr=0.001", "--train-iters=30", "--save=b", "--log-interval=1")
    assert changes(same, saved) == []
    kd = ["--student_model=kd", "--distill_pt_soft", "--teacher_random_para"]
    other = pretrain("--lr=0.1", "--train-iters=10", "--seed=5", *kd)
    assert set(changes(other, saved)) == {
        "--lr: was 0.001, now 0.1",
        "--train-iters: was 20, now 10",
        "--seed: was 1234, now 5",
        "--student_model: was None, now kd",
        "--distill_pt_soft: was False, now True",
    }


def test_changed_settings_of_a_mixs_methods_are_listed():
    mix = ["--student_model=mixbaseline", "--teacher_random_para"]
    first = ["--mixbaseline_inter_bl=pkd,logitsdistil", "--pkd_beta=3"]
    methods = method_args()
    saved = pretrain(*mix, *first, methods=methods).to_dict()
    assert changes(pretrain(*mix, *first, methods=methods), saved) == []
    second = ["--mixbaseline_inter_bl=pkd,sid", "--pkd_beta=4"]
    assert set(changes(pretrain(*mix, *second, methods=methods), saved)) == {
        "--mixbaseline_inter_bl: was pkd,logitsdistil, now pkd,sid",
        "--pkd_beta: was 3.0, now 4.0",
    }
