"""An output folder that holds another run is safe from mistakes."""

import os
from dataclasses import replace

import pytest
import torch

from config import CheckpointArgs, ConfigError, RunArgs, TeacherArgs, TokenizerArgs, TrainArgs
from distill.engine import files
from distill.engine.run_dir import check_run_dir, keep_vocabulary, open_run_dir
from tests.distill.engine.small import runtime


def run(folder, **options):
    teachers = options.pop("teachers", ())
    return RunArgs(
        program="pretrain",
        train=TrainArgs(experiment_name="exp"),
        checkpoint=CheckpointArgs(save=str(folder), **options),
        teachers=teachers,
    )


@pytest.fixture
def held(tmp_path):
    """<save>/exp with an earlier run, and something that is not a run's."""
    folder = tmp_path / "exp"
    weights = {"module": {"w": torch.ones(1)}}
    for tag in ("5", "best"):
        files.write_tensors(folder / tag / "mp_rank_00_model_states.pt", weights)
    files.write_text(folder / "latest_checkpointed_iteration.txt", "5")
    for name in ("config.json", "metrics.jsonl", "predictions-val.jsonl", "thesis.tex"):
        files.write_text(folder / name, "{}")
    files.write_text(folder / "tensorboard" / "events", "")
    files.write_text(folder / "data" / "important.txt", "")
    return folder


def test_without_save_there_is_nothing_to_check():
    check_run_dir(RunArgs(program="pretrain"))


def test_a_new_or_foreign_folder_is_fine(tmp_path):
    check_run_dir(run(tmp_path))
    files.write_text(tmp_path / "exp" / "notes.txt", "mine")
    check_run_dir(run(tmp_path))


def test_another_run_is_not_touched(tmp_path, held):
    with pytest.raises(ConfigError, match=r"holds another run \(config.json\).*--overwrite"):
        check_run_dir(run(tmp_path))


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "exp").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        check_run_dir(run(tmp_path))


def test_overwrite_removes_the_run_and_nothing_else(tmp_path, held):
    again = run(tmp_path, overwrite=True)
    check_run_dir(again)
    open_run_dir(again, runtime(run_dir=held))
    assert sorted(os.listdir(held)) == ["data", "thesis.tex"]


@pytest.mark.parametrize("tag", ["", "5"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_resuming_keeps_everything(tmp_path, held, tag, overwrite):
    files.write_text(held / ".6.tmp" / "half", "")
    before = set(os.listdir(held)) - {".6.tmp"}
    resumed = run(tmp_path, load=str(held / tag), overwrite=overwrite)
    check_run_dir(resumed)
    open_run_dir(resumed, runtime(run_dir=held))
    assert set(os.listdir(held)) == before


@pytest.mark.parametrize("how", ["load_pretrained", "teacher"])
def test_overwrite_does_not_remove_what_the_run_reads(tmp_path, held, how):
    source = str(held / "best")
    options = (
        {"load_pretrained": source}
        if how == "load_pretrained"
        else {"teachers": (TeacherArgs(load_pretrained=source),)}
    )
    with pytest.raises(ConfigError, match="would remove .*best"):
        check_run_dir(run(tmp_path, overwrite=True, **options))


def test_loading_another_run_does_not_excuse(tmp_path, held):
    files.write_text(tmp_path / "other" / "latest_checkpointed_iteration.txt", "5")
    with pytest.raises(ConfigError, match="holds another run"):
        check_run_dir(run(tmp_path, load=str(tmp_path / "other")))


@pytest.mark.parametrize("save", ["file", "file/below", "/proc/nope"])
def test_what_cannot_be_written_is_found_first(tmp_path, save):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--save=.*(is not a folder|cannot be written)"):
        check_run_dir(run(tmp_path / save))
    assert os.listdir(tmp_path) == ["file"]


def test_looking_leaves_nothing_behind(tmp_path):
    check_run_dir(run(tmp_path / "a" / "b"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("given", ["words.txt", "in"])
def test_the_run_keeps_its_vocabulary(tmp_path, given):
    for file in (tmp_path / "words.txt", tmp_path / "in" / "vocab.txt"):
        files.write_text(file, "[PAD]\n")
    folder = tmp_path / "run"
    asked = replace(run(tmp_path), tokenizer=TokenizerArgs(tokenizer_path=str(tmp_path / given)))
    keep_vocabulary(asked, runtime(run_dir=folder))
    assert (folder / "vocab.txt").read_text() == "[PAD]\n"
    again = replace(asked, tokenizer=TokenizerArgs(tokenizer_path=str(folder / "vocab.txt")))
    keep_vocabulary(again, runtime(run_dir=folder))
    assert (folder / "vocab.txt").read_text() == "[PAD]\n"


def test_a_vocabulary_that_ships_is_not_kept(tmp_path):
    keep_vocabulary(run(tmp_path), runtime(run_dir=tmp_path))
    assert os.listdir(tmp_path) == []
