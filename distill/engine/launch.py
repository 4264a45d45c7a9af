"""The processes of a run: who we are, the device, process groups, logs, and how a run ends.

`torchrun`, the `deepspeed` launcher and plain `python` start the same programs. The first two tell
each process its place in the environment (RANK, LOCAL_RANK, WORLD_SIZE, ...); without them there is
one process, which needs no process group unless DeepSpeed wants one.
"""

import contextlib
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType

import torch
import torch.distributed as dist

import mpu
from config import ConfigError, RunArgs, check_hardware

log = logging.getLogger(__name__)

PACKAGES = ("config", "mpu", "data_utils", "model", "tasks", "distill")
TIMEOUT = timedelta(hours=3)  # others wait while the first process builds the caches of a corpus
USER_ERROR = 2  # exit code
_WAIT_FOR_FIRST = 5.0  # seconds in which a launcher has ended us if the first process failed too


class TrainingError(RuntimeError):
    """The run cannot go on, and the message says why; no traceback is needed."""


@dataclass(frozen=True)
class Runtime:
    """This process among its peers."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    run_dir: Path | None = None  # the first process's: its clock names the experiment

    @property
    def is_main(self) -> bool:
        """Whether this process logs and writes what is written once."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()

    @contextlib.contextmanager
    def local_main_first(self) -> Iterator[None]:
        """The first process of each machine goes ahead (builds a cache); the others follow."""
        if self.local_rank != 0:
            self.barrier()
        yield
        if self.local_rank == 0:
            self.barrier()


def launch(run: RunArgs) -> Runtime:
    """Device, threads, process groups and seeds of this process.

    ConfigError, before any process group, where this machine cannot do what was asked.
    """
    rank, world_size = _from_env("RANK", 0), _from_env("WORLD_SIZE", 1)
    local_rank = _from_env("LOCAL_RANK", run.parallel.local_rank or 0)
    cuda = torch.cuda.is_available()
    check_hardware(run, cuda=cuda, world_size=world_size)
    _log_level(main=rank == 0)
    device = _device(local_rank, cuda)
    _init_process_group(run, rank, world_size, cuda)
    mpu.initialize_model_parallel(run.parallel.model_parallel_size)
    torch.manual_seed(run.train.seed)
    run_dir = _broadcast(run.run_dir) if world_size > 1 else run.run_dir
    return Runtime(device, rank, world_size, local_rank, run_dir)


def _from_env(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


def _device(local_rank: int, cuda: bool) -> torch.device:
    if not cuda:
        if "OMP_NUM_THREADS" not in os.environ:
            beside = _from_env("LOCAL_WORLD_SIZE", _from_env("LOCAL_SIZE", 1))
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // beside))
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"--local_rank={local_rank}: this machine has {torch.cuda.device_count()} GPUs; "
            "start one process a GPU"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _init_process_group(run: RunArgs, rank: int, world_size: int, cuda: bool) -> None:
    if dist.is_initialized() or (world_size == 1 and not run.parallel.deepspeed):
        return
    backend = run.parallel.distributed_backend or ("nccl" if cuda else "gloo")
    backend = "cpu:gloo,cuda:nccl" if backend == "nccl" else backend
    if world_size == 1:  # a store in memory: no port, no file
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    else:
        dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=TIMEOUT)


def _broadcast(run_dir: Path | None) -> Path | None:
    names = [run_dir]
    dist.broadcast_object_list(names, src=0)
    return names[0]


def set_up_logging() -> None:
    """Our messages on stderr, once: from the first process all, from the others errors."""
    if not logging.getLogger().handlers:
        logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    _log_level(main=_from_env("RANK", 0) == 0)


def _log_level(*, main: bool) -> None:
    """Every process would give the same warnings."""
    for name in PACKAGES:
        logging.getLogger(name).setLevel(logging.INFO if main else logging.ERROR)


def run_program(main: Callable[[], None]) -> None:
    """Run `main`; a mistake of the user ends every process with one message and exit code 2.

    Other processes wait before they tell theirs: it is the same, or only that a peer is gone, and
    by then their launcher has ended them. If the first process is well, theirs is heard.
    """
    set_up_logging()
    try:
        main()
    except Exception as error:
        if _from_env("RANK", 0) != 0:
            time.sleep(_WAIT_FOR_FIRST)
        if not _explains_itself(error):
            raise
        _say(error)
        _leave(USER_ERROR)
    else:
        shut_down()


def _explains_itself(error: Exception) -> bool:
    """Whether the message alone is enough: an error of our own, or a file that cannot be opened."""
    if isinstance(error, ConfigError | TrainingError):
        return True
    if isinstance(error, OSError) and error.filename is not None:
        return True
    known = isinstance(error, OSError | ValueError)
    return known and _raised_by(error.__traceback__) in PACKAGES


def _raised_by(trace: TracebackType | None) -> str:
    """Top-level package of the function that raised."""
    frames = list(traceback.walk_tb(trace))
    return frames[-1][0].f_globals.get("__name__", "").split(".")[0] if frames else ""


def _say(error: Exception) -> None:
    lines = str(error).splitlines() or [type(error).__name__]
    sys.stderr.write("error: " + "\n       ".join(lines) + "\n")
    sys.stderr.flush()


def _leave(code: int) -> None:
    """Exit; with peers, at once, without waiting for them: they may be inside a collective."""
    sys.stdout.flush()
    if dist.is_initialized() and dist.get_world_size() > 1:
        os._exit(code)
    shut_down()
    sys.exit(code)


def shut_down() -> None:
    """Leave the process groups, all together."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()
    mpu.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
