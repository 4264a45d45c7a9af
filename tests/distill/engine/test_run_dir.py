"""An output folder that holds another run is safe from mistakes."""

import os

import pytest
import torch

from config import CheckpointArgs, ConfigError, RunArgs, TeacherArgs, TrainArgs
from distill.engine import files
from distill.engine.run_dir import check_run_dir, open_run_dir
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
