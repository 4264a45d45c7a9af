"""Groups of devices: on each of them one run at a time. GPUs by number, or slots of the CPU."""

import os
import random
import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from config import ConfigError

VISIBLE = "CUDA_VISIBLE_DEVICES"
PORTS = (10000, 60000)


@dataclass(frozen=True)
class Group:
    """Devices of one run. `gpus`: their numbers; none on the CPU."""

    name: str  # gpu 0,1 or cpu 0
    gpus: tuple[str, ...] = ()

    @property
    def processes(self) -> int:
        """Of a run: one a GPU."""
        return max(1, len(self.gpus))

    def environment(self, groups: int) -> dict[str, str]:
        """For programs: which devices they see; their share of the cores."""
        shared = environment(groups * self.processes)
        return shared | {VISIBLE: ",".join(self.gpus)}


def environment(processes: int) -> dict[str, str]:
    """For programs of which so many processes run at the same time: their share of the cores."""
    threads = max(1, min(8, num_cores() // processes))
    # glibc: keep freed memory. By default each large tensor is a new mapping, and page faults
    # take up to a quarter of a step.
    memory = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
    own = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    return memory | os.environ | own


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def groups_of(gpus: str | None, slots: int, variables: Mapping[str, str]) -> list[Group]:
    """`--gpus=0,1;2,3` -> two groups; none given: every visible GPU by itself, or CPU slots.

    ConfigError: a GPU that does not exist or is in two groups, groups of unequal size.
    """
    if gpus is None and variables.get(VISIBLE):
        gpus = ";".join(variables[VISIBLE].split(","))
    if not gpus:
        return [Group(f"cpu {number}") for number in range(slots)]
    groups = [Group(f"gpu {text}", tuple(text.split(","))) for text in device_groups(gpus)]
    every = [gpu for group in groups for gpu in group.gpus]
    there = visible_gpus(variables)
    problems = [
        f"--gpus={gpus}: there is no GPU {gpu}; there are {', '.join(there) or 'none'}"
        for gpu in dict.fromkeys(every)
        if gpu not in there
    ]
    if len(set(every)) < len(every):
        problems.append(f"--gpus={gpus}: a GPU is named twice")
    if len({group.processes for group in groups}) > 1:
        problems.append(f"--gpus={gpus}: groups must have the same number of GPUs")
    if problems:
        raise ConfigError(problems)
    return groups


def visible_gpus(variables: Mapping[str, str]) -> Sequence[str]:
    """Names of the GPUs that may be used: those of CUDA_VISIBLE_DEVICES, or all, by number."""
    if VISIBLE in variables:
        return [gpu for gpu in variables[VISIBLE].split(",") if gpu]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def device_groups(gpus: str) -> list[str]:
    """`0,1;2,3` -> ["0,1", "2,3"]."""
    return [group for group in gpus.split(";") if group]


def number_of_gpus(group: str) -> int:
    """GPUs of one group; `host:0,1@host2:0` counts all hosts."""
    return sum(len(part.split(":")[-1].split(",")) for part in group.split("@"))


def free_port() -> int:
    """A port of this machine that nobody uses at the moment."""
    for _ in range(100):
        port = random.randint(*PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port between {PORTS[0]} and {PORTS[1]}")


def launcher(group: Group, flags: Collection[str]) -> tuple[str, ...]:
    """How a run is started on a group.

    DeepSpeed's launcher is told the GPUs by name: with a number of them it takes the first ones,
    whatever CUDA_VISIBLE_DEVICES says.
    """
    number = group.processes
    if "--deepspeed" in flags:
        named = f"--include=localhost:{','.join(group.gpus)}"
        devices = (named,) if group.gpus else ("--num_gpus", "1")
        return ("deepspeed", *devices, f"--master_port={free_port()}")
    if number > 1:
        return (
            "python",
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={number}",
        )
    return ("python",)
