"""Run a function on several ranks: gloo on CPU, about 0.1 s a call.

    from tests.ranks import run_ranks

    def work(rank, world_size, x):          # at module level, so that a rank can import it
        mpu.initialize_model_parallel(world_size)
        return some_tensor.detach()

    results = run_ranks(2, work, x)         # [result of rank 0, result of rank 1]

How: a server process imports torch once (`preload="deepspeed"`: DeepSpeed too, and what its
initialize imports) and each caller's module, and forks the ranks of each call. It never runs a
tensor operation itself and has one thread, so forking is safe. Its objects are hidden from the
garbage collector of the ranks, which DeepSpeed runs for every engine. Each kind of server starts at
its first use (3 s; 7 s with DeepSpeed) and ends with the process that uses it. Works from pytest,
from scripts and from `python -m`.

A rank starts with RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE, OMP_NUM_THREADS=1,
DS_ACCELERATOR=cpu set, no CUDA, the process group initialised through a file (no ports), torch's
default seed. Arguments and results travel by pickle; return detached tensors.

If a rank raises, dies or is stuck, `run_ranks` raises RankError with every traceback (and what the
ranks printed); the others are killed. RankError.tracebacks maps ranks to text.
"""

import atexit
import contextlib
import faulthandler
import gc
import importlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_TORCH = (
    "torch",
    "torch.distributed",
    "torch.utils.checkpoint",
    "torch._dynamo",  # the first activation checkpoint imports it
    "torch.profiler._cupti_monitor",  # and the first optimizer this
    "numpy",
    "pytest",
)
PRELOAD = {
    "torch": _TORCH,
    "deepspeed": (
        *_TORCH,
        "deepspeed",
        "torch._inductor.lowering",
        "torch._inductor.scheduler",
        "torch.distributed.tensor",
        "torch.distributed.fsdp",
        "deepspeed.module_inject.auto_ep_layer",
        "deepspeed.runtime.superoffload.superoffload_stage3",
        "deepspeed.runtime.zero.muon.muon_optimizer",  # compiles: half of the inductor
    ),
}
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
}
GRACE = 5.0  # seconds the other ranks get to report after one has failed


class RankError(RuntimeError):
    """At least one rank failed. `tracebacks`: rank -> traceback, or how it ended."""

    def __init__(self, tracebacks: dict[int, str], logs: dict[int, str]):
        self.tracebacks, self.logs = tracebacks, logs
        # Ranks that only lost their peer come last.
        ordered = sorted(tracebacks.items(), key=lambda item: "gloo/transport" in item[1])
        parts = [f"--- rank {rank}\n{text.rstrip()}" for rank, text in ordered]
        parts += [f"--- rank {rank} printed\n{text}" for rank, text in logs.items() if text]
        super().__init__("ranks failed\n" + "\n".join(parts))


@dataclass
class _Job:
    """One call, as it travels to the server."""

    world_size: int
    module: str
    name: str
    arguments: bytes
    folder: str
    timeout: float
    process_group: bool
    environment: Mapping[str, str] = field(default_factory=dict)


def run_ranks(
    world_size: int,
    function: Callable[..., Any],
    *args: Any,
    preload: str = "torch",
    timeout: float = 120.0,
    process_group: bool = True,
    environment: Mapping[str, str] | None = None,
) -> list[Any]:
    """`function(rank, world_size, *args)` on every rank; the results in rank order.

    `preload` names the server ("torch" or "deepspeed"). After `timeout` seconds ranks still running
    are stopped and their stacks reported. `process_group=False` leaves torch.distributed to the
    function. `environment` is added to each rank's.
    """
    assert world_size > 0, world_size
    module = sys.modules[function.__module__]
    if function.__module__ == "__main__" and module.__spec__ is not None:
        name = module.__spec__.name  # python -m package.module
    else:
        name = function.__module__
    if "." in function.__qualname__ or name == "__main__":
        raise ValueError(
            f"{name}.{function.__qualname__}: ranks can only import functions of a module's top level"
        )
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        job = _Job(
            world_size,
            name,
            function.__qualname__,
            pickle.dumps(args),
            folder,
            timeout,
            process_group,
            environment or {},
        )
        outcomes = _server(preload).run(job)
        logs = {rank: _tail(Path(folder) / f"{rank}.log") for rank in range(world_size)}
    failed = {rank: text for rank, (ok, text) in outcomes.items() if not ok}
    if failed:
        raise RankError(failed, {r: logs[r] for r in failed})
    return [pickle.loads(outcomes[rank][1]) for rank in range(world_size)]


def _tail(path: Path, characters: int = 4000) -> str:
    return path.read_text(errors="replace")[-characters:] if path.exists() else ""


# The client's end ---------------------------------------------------------------------------------


class _Server:
    """The process that forks ranks, seen from the process that asks."""

    def __init__(self, preload: str):
        ours, theirs = socket.socketpair()
        environment = {**os.environ, **ENVIRONMENT}
        if sys.platform == "linux":
            environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
        code = f"from tests.ranks import serve; serve({theirs.fileno()}, {preload!r})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,  # python -c looks for modules there
            env=environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # an interrupt at the keyboard is the client's to handle
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self.lock = threading.Lock()

    def run(self, job: _Job) -> dict[int, tuple[bool, Any]]:
        """Rank -> (True, pickled result) or (False, text)."""
        with self.lock:
            self.connection.send(job)
            try:
                return self.connection.recv()
            except (
                BaseException
            ):  # interrupted: the next call must not receive what is for this one
                self.close()
                raise

    def close(self) -> None:
        """End the server; it kills ranks that still run."""
        self.connection.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


_servers: dict[tuple[int, str], _Server] = {}


def _server(preload: str) -> _Server:
    if preload not in PRELOAD:
        raise ValueError(f"preload={preload!r}: one of {sorted(PRELOAD)}")
    key = (os.getpid(), preload)  # a forked child needs its own
    if key not in _servers or _servers[key].process.poll() is not None:
        _servers[key] = _Server(preload)
        atexit.register(_servers[key].close)
    return _servers[key]


# The server ---------------------------------------------------------------------------------------


def serve(descriptor: int, preload: str) -> None:
    """Body of the server process: import, then fork ranks for each job until the client is gone."""
    connection = Connection(descriptor)
    for name in PRELOAD[preload]:
        importlib.import_module(name)
    if preload == "deepspeed":
        _no_shm_op()
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        outcomes = _run_job(job, connection)
        if outcomes is None:
            return
        connection.send(outcomes)


def _no_shm_op() -> None:
    """DeepSpeed would compile this op at the first init_distributed: a minute, or a stale lock."""
    import deepspeed

    with contextlib.suppress(AttributeError, TypeError):
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _run_job(job: _Job, client: Connection) -> dict[int, tuple[bool, Any]] | None:
    """Fork the ranks and collect what they report; None when the client has gone."""
    try:
        importlib.import_module(job.module)
    except Exception:
        return dict.fromkeys(range(job.world_size), (False, traceback.format_exc()))
    gc.freeze()
    sys.stdout.flush()
    sys.stderr.flush()
    readers: dict[Connection, int] = {}
    pids: dict[int, int] = {}
    for rank in range(job.world_size):
        reader, writer = Pipe(duplex=False)
        pid = os.fork()
        if pid == 0:
            _rank_main(job, rank, writer)  # does not return
        writer.close()
        readers[reader], pids[rank] = rank, pid
    try:
        return _collect(job, client, readers, pids)
    finally:
        for reader in readers:
            reader.close()
        for pid in pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _collect(
    job: _Job, client: Connection, readers: dict[Connection, int], pids: dict[int, int]
) -> dict[int, tuple[bool, Any]] | None:
    outcomes: dict[int, tuple[bool, Any]] = {}
    pending = dict(readers)
    deadline, reason = time.monotonic() + job.timeout, f"no result after {job.timeout:g} s"
    while pending:
        ready = wait([client, *pending], max(0.0, deadline - time.monotonic()))
        if client in ready:  # it sends nothing while it waits: this is its end
            return None
        if not ready:
            break
        for reader in ready:
            rank = pending.pop(reader)
            try:
                outcomes[rank] = reader.recv()
            except EOFError:
                outcomes[rank] = (False, "the process ended without a result (killed or exited)")
            if not outcomes[rank][0] and "stopped" not in reason:
                deadline = min(deadline, time.monotonic() + GRACE)
                reason = f"stopped, because rank {rank} failed first"
    for rank in pending.values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[rank], signal.SIGUSR1)  # faulthandler prints its stack
    if pending:
        time.sleep(0.3)
    for rank in pending.values():
        stack = _tail(Path(job.folder) / f"{rank}.stack")
        outcomes[rank] = (False, f"{reason}\n{stack}")
    return outcomes


# A rank -------------------------------------------------------------------------------------------


def _rank_main(job: _Job, rank: int, writer: Connection) -> None:
    """Body of a forked rank; ends the process without the server's exit handlers."""
    try:
        log = os.open(Path(job.folder) / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        stack = os.open(Path(job.folder) / f"{rank}.stack", os.O_WRONLY | os.O_CREAT)
        faulthandler.register(signal.SIGUSR1, file=stack, all_threads=True)
        size = str(job.world_size)
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=size)
        os.environ.update(LOCAL_WORLD_SIZE=size, LOCAL_SIZE=size, **job.environment)
        writer.send((True, _call(job, rank)))
        if job.process_group:
            _leave_group()
    except BaseException:
        writer.send((False, traceback.format_exc()))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _call(job: _Job, rank: int) -> bytes:
    import torch

    torch.set_num_threads(1)
    if job.process_group:
        _join_group(job, rank)
    function = getattr(importlib.import_module(job.module), job.name)
    return pickle.dumps(function(rank, job.world_size, *pickle.loads(job.arguments)))


def _join_group(job: _Job, rank: int) -> None:
    options = {
        "init_method": f"file://{job.folder}/store",
        "rank": rank,
        "world_size": job.world_size,
        "timeout": timedelta(seconds=job.timeout + GRACE),
    }
    if "deepspeed" in sys.modules:
        sys.modules["deepspeed"].init_distributed(
            "gloo", auto_mpi_discovery=False, verbose=False, **options
        )
    else:
        import torch.distributed as dist

        dist.init_process_group("gloo", **options)


def _leave_group() -> None:
    """Wait for the others, who may still read from this rank. A failed peer reports itself."""
    import torch.distributed as dist

    with contextlib.suppress(RuntimeError, ValueError):
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()
