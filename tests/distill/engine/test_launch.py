"""Processes of a run: environment, groups, logs, and how mistakes end it."""

import logging
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

import mpu
from config import ConfigError, ParallelArgs, PrecisionArgs, RunArgs, TrainArgs
from distill.engine import launch as module
from distill.engine.launch import TrainingError, launch, run_program, set_up_logging, shut_down
from tests.ranks import run_ranks

NO_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE")


@pytest.fixture
def alone(monkeypatch):
    """Plain python: no launcher in the environment; nothing left behind."""
    for name in NO_LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    yield monkeypatch
    shut_down()
    torch.set_num_threads(threads)


def run(**changes):
    return RunArgs(program="pretrain", **changes)


def test_one_process_needs_no_process_group(alone):
    runtime = launch(run())
    assert (runtime.rank, runtime.world_size, runtime.device.type) == (0, 1, "cpu")
    assert runtime.is_main
    assert not dist.is_initialized()
    assert mpu.get_data_parallel_world_size() == 1
    runtime.barrier()
    with runtime.local_main_first():
        pass


def test_deepspeed_gets_a_group_of_one(alone):
    launch(run(parallel=ParallelArgs(deepspeed=True)))
    assert dist.get_world_size() == 1
    assert dist.get_backend() == "gloo"


def test_threads_follow_the_environment(alone):
    alone.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    launch(run())
    assert torch.get_num_threads() == 1
    alone.delenv("OMP_NUM_THREADS")
    alone.setattr(module.os, "sched_getaffinity", lambda _: set(range(6)))
    alone.setenv("LOCAL_WORLD_SIZE", "2")
    launch(run())
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"precision": PrecisionArgs(fp16=True)}, "--fp16: needs a GPU"),
        ({"parallel": ParallelArgs(model_parallel_size=2)}, "does not divide the 1 process"),
        ({"parallel": ParallelArgs(distributed_backend="nccl")}, "needs a GPU"),
    ],
)
def test_what_the_machine_cannot_do_is_said_before_any_group(alone, changes, words):
    with pytest.raises(ConfigError, match=words):
        launch(run(**changes))
    assert not dist.is_initialized()


def two(rank, world_size, folder):
    import os

    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", "0"
    train = TrainArgs(experiment_name=f"run-of-rank-{rank}")
    from config import CheckpointArgs

    runtime = launch(run(train=train, checkpoint=CheckpointArgs(save=str(folder))))
    order = []
    with runtime.local_main_first():
        path = folder / "cache"
        order.append(path.exists())
        path.write_text("built")
    levels = logging.getLogger("distill").level
    found = runtime.rank, runtime.world_size, runtime.is_main, runtime.run_dir.name, order, levels
    shut_down()
    return (*found, dist.is_initialized())


def test_two_processes_share_the_first_ones_folder(tmp_path):
    first, second = run_ranks(2, two, tmp_path)
    assert first[:4] == (0, 2, True, "run-of-rank-0")
    assert second[:4] == (1, 2, False, "run-of-rank-0")
    assert (first[4], second[4]) == ([False], [True])
    assert (first[5], second[5]) == (logging.INFO, logging.ERROR)
    assert not first[6]
    assert not second[6]


# How a run ends -----------------------------------------------------------------------------------


def fails(error):
    def main():
        raise error

    return main


def config_style():
    """A ValueError that our own code raises."""
    from pathlib import Path

    from data_utils.tokenization import read_vocabulary

    read_vocabulary(Path("/no/such/vocabulary.txt"))


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (fails(ConfigError(["--a=1: is wrong", "--b=2: too"])), "error: --a=1: is wrong\n"),
        (fails(TrainingError("10 bad steps")), "error: 10 bad steps\n"),
        (lambda: open("/no/such/file"), "error: [Errno 2] No such file or directory"),  # noqa: SIM115
        (config_style, "/no/such/vocabulary.txt"),
    ],
)
def test_mistakes_of_the_user_end_with_one_message(alone, capsys, main, words):
    with pytest.raises(SystemExit) as caught:
        run_program(main)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert error.count("error:") == 1


@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("a bug"), AssertionError()])
def test_our_own_mistakes_keep_their_traceback(alone, error):
    with pytest.raises(type(error)):
        run_program(fails(error))


def test_other_processes_speak_only_if_the_first_did_not_fail(alone, capsys):
    alone.setenv("RANK", "1")
    waited = []
    alone.setattr(module.time, "sleep", waited.append)
    with pytest.raises(SystemExit):
        run_program(fails(ConfigError("--a=1: is wrong")))
    assert waited == [module._WAIT_FOR_FIRST]
    assert "--a=1" in capsys.readouterr().err


PROGRAM = """
import logging, os, sys
from distill.engine.launch import set_up_logging
set_up_logging(); set_up_logging()
logging.getLogger("distill.engine").info("told once")
logging.getLogger("another.library").info("not ours")
logging.getLogger("config").warning("a warning")
"""


@pytest.mark.parametrize(("rank", "expected"), [("0", ["told once", "a warning"]), ("1", [])])
def test_logs_come_once_and_from_the_first_process(rank, expected, monkeypatch):
    monkeypatch.setenv("RANK", rank)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert [line.split(" ", 1)[1] for line in done.stderr.splitlines()] == expected


def test_logging_is_set_up_without_handlers_of_others(caplog):
    set_up_logging()
    with caplog.at_level(logging.INFO, logger="distill"):
        logging.getLogger("distill").info("seen")
    assert "seen" in caplog.text
