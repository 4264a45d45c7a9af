"""The rank runner itself: a test that cannot fail on a rank tests nothing."""

import gc
import os
import signal
import sys
import threading
import time

import pytest
import torch
import torch.distributed as dist

from tests.ranks import RankError, run_ranks


def _sum(rank, size, x):
    total = x * (rank + 1)
    dist.all_reduce(total)
    return total


def test_results_come_in_rank_order():
    assert run_ranks(3, _who) == [(0, 3), (1, 3), (2, 3)]


def _who(rank, size):
    return rank, size


def test_tensors_travel_both_ways():
    x = torch.tensor([1.0, 2.0])
    for total in run_ranks(2, _sum, x):
        assert torch.equal(total, 3 * x)


def _environment(rank, size):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS")
    values = {name: int(os.environ[name]) for name in names}
    return values, os.environ["DS_ACCELERATOR"], os.environ.get("EXTRA"), torch.get_num_threads()


def test_environment_of_a_rank():
    results = run_ranks(2, _environment, environment={"EXTRA": "yes"})
    for rank, (values, accelerator, extra, threads) in enumerate(results):
        assert values == {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": 2,
            "LOCAL_WORLD_SIZE": 2,
            "OMP_NUM_THREADS": 1,
        }
        assert (accelerator, extra, threads) == ("cpu", "yes", 1)
    assert "EXTRA" not in os.environ


def _fail(rank, size):
    print("rank", rank, "was here", flush=True)
    if rank == 1:
        raise KeyError("boom")
    dist.barrier()


def test_an_exception_comes_back_with_its_traceback():
    with pytest.raises(RankError, match="KeyError: 'boom'") as error:
        run_ranks(2, _fail)
    assert "in _fail" in error.value.tracebacks[1]
    assert "rank 1 was here" in error.value.logs[1]
    assert str(error.value).index("rank 1") < str(error.value).index("rank 0")


def _die(rank, size):
    if rank == 1:
        os._exit(3)
    dist.barrier()


def test_a_dead_rank_is_an_error():
    with pytest.raises(RankError) as error:
        run_ranks(2, _die)
    assert "ended without a result" in error.value.tracebacks[1]


def _sleep(rank, size):
    if rank == 1:
        time.sleep(60)
    dist.barrier()


def test_a_stuck_rank_is_stopped_and_its_stack_shown():
    start = time.monotonic()
    with pytest.raises(RankError, match="no result after 1 s") as error:
        run_ranks(2, _sleep, timeout=1)
    assert time.monotonic() - start < 10
    assert "in _sleep" in error.value.tracebacks[1]
    assert run_ranks(2, _who) == [(0, 2), (1, 2)]  # the server lives on


def test_an_interrupted_call_leaves_nothing_to_the_next():
    class Interrupted(Exception):  # noqa: N818 - as KeyboardInterrupt
        pass

    def interrupt(number, frame):
        raise Interrupted

    before = signal.signal(signal.SIGUSR2, interrupt)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGUSR2))
    timer.start()
    try:
        with pytest.raises(Interrupted):
            run_ranks(2, _sleep)
    finally:
        timer.join()
        signal.signal(signal.SIGUSR2, before)
    assert run_ranks(2, _who) == [(0, 2), (1, 2)]


def _uninitialised(rank, size):
    return dist.is_initialized()


def test_a_run_without_a_process_group():
    assert run_ranks(2, _uninitialised, process_group=False) == [False, False]


def _absent(rank, size):
    pass


def test_a_module_that_ranks_cannot_import(monkeypatch):
    monkeypatch.setitem(sys.modules, "tests.absent", sys.modules[__name__])
    monkeypatch.setattr(_absent, "__module__", "tests.absent")
    with pytest.raises(RankError, match="No module named 'tests.absent'") as error:
        run_ranks(2, _absent)
    assert set(error.value.tracebacks) == {0, 1}
    assert run_ranks(2, _who) == [(0, 2), (1, 2)]  # the server lives on


def _process(rank, size):
    return len(os.listdir(f"/proc/{os.getppid()}/task")), gc.get_freeze_count()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells of threads")
@pytest.mark.parametrize("preload", ["torch", "deepspeed"])
def test_servers_have_one_thread_and_hide_what_they_imported(preload):
    for threads, frozen in run_ranks(2, _process, preload=preload):
        assert threads == 1
        assert frozen > 100_000


def test_functions_that_ranks_cannot_import():
    with pytest.raises(ValueError, match="top level"):
        run_ranks(1, lambda rank, size: None)


def test_an_unknown_server():
    with pytest.raises(ValueError, match=r"preload='other': one of \['deepspeed', 'torch'\]"):
        run_ranks(1, _who, preload="other")
