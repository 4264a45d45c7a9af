"""A checkpoint that cannot be gone on from is refused, and it is said why."""

import shutil
from pathlib import Path

import pytest
import torch

import mpu
from distill.engine import files
from distill.engine.checkpoint import read_config
from distill.engine.resuming import check_resumable, kind_of
from tests.distill.engine import small
from tests.ranks import run_ranks


def saved(folder: Path, *, shards: int = 1, parts: int = 1, kind: str = "plain", **config) -> Path:
    """What a run leaves, with one tensor as its weights."""
    for shard in range(shards):
        content = {"module": {"transformer.final_layernorm.weight": torch.ones(2)}, "iteration": 4}
        files.write_tensors(folder / f"mp_rank_{shard:02d}_model_states.pt", content)
        for part in range(parts):
            name = f"zero_pp_rank_{part}_mp_rank_{shard:02d}_optim_states.pt"
            name = f"mp_rank_{shard:02d}_optim_states.pt" if kind == "plain" else name
            files.write_tensors(folder / name, {"state": torch.ones(2)})
    files.write_json(folder / "config.json", {"engine": kind, "resumable": True, **config})
    return folder


def refused(folder: Path, kind: str = "plain") -> str:
    """The message of check_resumable."""
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        check_resumable(folder, read_config(folder) or {}, kind)
    message = str(error.value)
    assert message.startswith(f"--load={folder}") or str(folder) in message
    return message


def test_what_is_whole_can_be_resumed(tmp_path):
    for kind in ("plain", "deepspeed stage 2"):
        folder = saved(tmp_path / kind, kind=kind, data_parallel_size=1)
        check_resumable(folder, read_config(folder), kind)


def test_another_engine_or_stage(tmp_path):
    folder = saved(tmp_path / "5", kind="deepspeed stage 2")
    message = refused(folder, "deepspeed stage 3")
    assert (
        "was written by the engine 'deepspeed stage 2', this run has 'deepspeed stage 3'" in message
    )
    assert f"--load-pretrained={folder}" in message


def test_an_optimizer_cut_for_another_number_of_processes(tmp_path):
    folder = saved(tmp_path / "5", kind="deepspeed stage 3", parts=2, data_parallel_size=2)
    message = refused(folder, "deepspeed stage 3")
    assert "cut for 2 data-parallel processes, this run has 1; start 2" in message


def test_a_missing_part_of_the_optimizer(tmp_path):
    folder = saved(tmp_path / "5", kind="deepspeed stage 1", parts=2, data_parallel_size=1)
    assert "has 2 files of optimizer states" in refused(folder, "deepspeed stage 1")
    (saved(tmp_path / "6") / "mp_rank_00_optim_states.pt").unlink()
    assert "has 0 files of optimizer states (*optim_states.pt), it needs 1" in refused(
        tmp_path / "6"
    )


@pytest.mark.parametrize("name", ["mp_rank_00_model_states.pt", "mp_rank_00_optim_states.pt"])
def test_a_file_that_was_copied_in_part(tmp_path, name):
    folder = saved(tmp_path / "5")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) - 30])
    assert f"{name} is not whole; resume an earlier checkpoint" in refused(folder)


def on_two(rank: int, world_size: int, folder: Path) -> list[str]:
    """Messages about shards of one checkpoint that are not of one piece."""
    mpu.initialize_model_parallel(2)
    found = []
    for name in ("of other iterations", "one is missing", "of another model"):
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            check_resumable(folder / name, read_config(folder / name), "plain")
        found.append(str(error.value))
    check_resumable(folder / "whole", read_config(folder / "whole"), "plain")
    return found


def test_shards_that_are_not_of_one_piece(tmp_path):
    whole = saved(tmp_path / "whole", shards=2)
    for name, content in (
        ("of other iterations", {"module": {"a": torch.ones(2)}, "iteration": 8}),
        ("of another model", {"module": {"b": torch.ones(2)}, "iteration": 4}),
    ):
        shutil.copytree(whole, tmp_path / name)
        for shard in range(2):
            other = content if shard else {"module": {"a": torch.ones(2)}, "iteration": 4}
            files.write_tensors(tmp_path / name / f"mp_rank_{shard:02d}_model_states.pt", other)
    shutil.copytree(whole, tmp_path / "one is missing")
    for name in ("model", "optim"):
        shards = tmp_path / "one is missing"
        (shards / f"mp_rank_01_{name}_states.pt").rename(shards / f"mp_rank_02_{name}_states.pt")
    for iterations, missing, model in run_ranks(2, on_two, tmp_path):
        assert "is of iteration 8, mp_rank_00_model_states.pt of 4" in iterations
        assert "shard(s) 1 of 3 are missing" in missing
        assert "is of another model than mp_rank_00_model_states.pt" in model


def test_the_engine_of_a_run():
    assert kind_of(small.make_run()) == "plain"


def another_layout(rank: int, world_size: int, folder: Path) -> list[str]:
    """ZeRO-3 on two data-parallel ranks wrote it; what two model-parallel ranks are told."""
    found = []
    for p in (1, 2):
        mpu.destroy_model_parallel()
        mpu.initialize_model_parallel(p)
        if p == 1:
            run = small.make_run(3)
            engine = small.wrap(small.Net(), run, small.runtime(rank, world_size))
            folder.mkdir(exist_ok=True)
            torch.distributed.barrier()
            engine.save(folder, {"iteration": 1})
            torch.distributed.barrier()
        saved = {"engine": "deepspeed stage 3", "resumable": True, "data_parallel_size": 2}
        try:
            check_resumable(folder, saved, "deepspeed stage 3")
        except ValueError as error:
            found.append(str(error))
    return found


def test_a_real_checkpoint_of_zero_3_on_another_layout(tmp_path):
    for (message,) in run_ranks(2, another_layout, tmp_path / "5", preload="deepspeed"):
        assert "cut for 2 data-parallel processes, this run has 1" in message
