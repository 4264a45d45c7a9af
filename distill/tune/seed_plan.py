"""What the seed's command line asks for: for each task its commands, stage after stage.

Stage 0 starts from the model's checkpoint, every further one from the stage before it. (The seed
starts all of them from stage 0.)
"""

import datetime
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from config import ConfigError
from distill.tune.command import Command, Flags, put_after
from distill.tune.convert import convert
from distill.tune.devices import device_groups, free_port, number_of_gpus
from distill.tune.presets import Teachers, as_flags, below, models, tasks
from distill.tune.seed_args import Given
from distill.tune.seed_json import deepspeed_json

NCCL = {"NCCL_DEBUG": "info", "NCCL_IB_DISABLE": "0", "NCCL_NET_GDR_LEVEL": "2"}
BATCH = 16  # samples of a step, over all GPUs
POSITIONS = (
    "--max-position-embeddings",
    "--teacher_max_position_embeddings",
    "--mt_max_position_embeddings",
)


@dataclass(frozen=True)
class Stage:
    """One command, and the DeepSpeed JSON that has to be written before it (None: it is there)."""

    number: int
    command: Command
    result: Path  # of --custom_tmp_result
    deepspeed: tuple[Path, dict[str, Any]] | None = None

    @property
    def run_dir(self) -> str:
        """Where the program writes."""
        return f"{self.command.flags['--save']}/{self.command.flags['--experiment-name']}"


@dataclass(frozen=True)
class Job:
    """All of one task, to be run in order."""

    key: str
    gpus: str
    conversions: tuple[Command, ...]  # of checkpoints to other model-parallel sizes
    stages: tuple[Stage, ...]

    @property
    def commands(self) -> list[Command]:
        """In the order in which they run."""
        return [*self.conversions, *(stage.command for stage in self.stages)]


class Clock:
    """Time stamps for names; never the same twice, however fast they are asked for."""

    def __init__(self, now: Callable[[], datetime.datetime] = datetime.datetime.now):
        self._now = now
        self._last = datetime.datetime.min

    def __call__(self) -> str:
        """`yymmdd_HHMMSS.ffffff`."""
        self._last = max(self._now(), self._last + datetime.timedelta(microseconds=1))
        return self._last.strftime("%y%m%d_%H%M%S.%f")


def jobs_of(given: Given, clock: Clock, port: Callable[[], int] = free_port) -> list[Job]:
    """One job a task. ConfigError: every missing teacher, wrong device group or JSON value."""
    problems: list[str] = []
    found = []
    for place, key in enumerate(given.tasks):
        try:
            found.append(_Planner(given, key, place, clock, port).job())
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(dict.fromkeys(problems))
    return found


def widen_positions(flags: Flags) -> None:
    """As many positions as the longest source has; the new rows of a checkpoint's tables are drawn.

    The seed does so for the student, inside of the program; its teachers fail.
    """
    length = flags.get("--src-seq-length")
    if not (isinstance(length, str) and length.isdecimal()):
        return
    for name in POSITIONS:
        value = flags.get(name)
        if isinstance(value, str):
            wider = [str(max(int(part), int(length))) for part in value.split(":")]
            flags[name] = ":".join(wider)


@dataclass
class _Planner:
    given: Given
    key: str
    place: int
    clock: Clock
    port: Callable[[], int]
    conversions: dict[str, Command] = field(default_factory=dict)  # target -> command

    def __post_init__(self) -> None:
        tune = self.given.tune
        self.task, self.model = tasks()[self.key], models()[tune.model]
        self.big = self.key in tune.big_task.split(",") and tune.big_task_gpus is not None
        gpus = tune.big_task_gpus if self.big else tune.gpus
        groups = device_groups(gpus or "")
        sizes = {number_of_gpus(group) for group in groups}
        if len(sizes) != 1:
            raise ConfigError(f"--gpus={gpus}: groups must have the same number of GPUs")
        self.gpus, (self.num_gpus,) = groups[self.place % len(groups)], sizes

    def job(self) -> Job:
        """All stages of the task."""
        stages = [self.stage(0, None)]
        for number in sorted(self.given.again):
            stages.append(self.stage(number, stages[-1]))
        return Job(self.key, self.gpus, tuple(self.conversions.values()), tuple(stages))

    def stage(self, number: int, before: Stage | None) -> Stage:
        """Flags of one stage: a later value of a flag replaces an earlier one."""
        teachers, passed = self._teachers(number), dict(self.given.passed)
        flags = self._base(before)
        if before is None:
            flags = put_after(flags, [*passed.items(), *teachers.items()])
        else:
            again = self.given.again[number]
            same = [name for name, value in again.items() if passed.get(name, 0) == value]
            passed = {name: value for name, value in passed.items() if name not in same}
            again = {name: value for name, value in again.items() if name not in same}
            flags = put_after(flags, [*teachers.items(), *passed.items(), *again.items()])
            flags["--custom_first_eval"] = None
        self._rates(flags)
        widen_positions(flags)
        deepspeed = self._deepspeed(flags)
        self.conversions |= convert(flags)
        result = Path(self.given.tune.data_root, "tmp", f"result_{self.clock()}.json")
        flags["--custom_tmp_result"] = str(result)
        include = self.gpus if ":" in self.gpus else f"localhost:{self.gpus}"
        launcher = ("deepspeed", f"--master_port={self.port()}", f"--include={include}")
        launcher = (*launcher, "--hostfile=")
        command = Command(self.given.program, flags, launcher, NCCL)
        return Stage(number, command, result, deepspeed)

    def _base(self, before: Stage | None) -> Flags:
        tune, task, model = self.given.tune, self.task, self.model
        if before is None:
            chosen = self.given.model_paths.get(self.key, tune.model_path) or model["path"]
            start = os.path.join(tune.data_root, chosen)
        else:
            start = before.run_dir
        flags: Flags = {"--finetune": None}
        if task["script"] == "finetune_superglue":
            flags["--cloze-eval"] = None
        ratio = f"-{tune.mask_ratio:g}" if task["script"] == "finetune_blank" else ""
        flags["--experiment-name"] = f"{model['type']}-{task['run_name']}{ratio}-{self.clock()}"
        flags["--task"] = task["task"]
        data = "--valid-data" if task["script"] == "evaluate_lm" else "--data-dir"
        flags[data] = below(tune.data_root, f"english_data/{task['data']}")
        flags["--save"] = f"{start}/{self._save_sub()}/{task['task']}"
        if "seq_length" in task:
            flags["--seq-length"] = str(task["seq_length"])
        flags["--checkpoint-activations"] = None
        flags["--eval-batch-size"] = str(task.get("eval_batch_size", 16))
        flags["--save-epoch"] = "100000"
        flags |= as_flags(model["flags"])
        flags["--load-pretrained"] = start
        if model["fp16"]:
            flags["--fp16"] = None
        flags |= self._training()
        for name, dropped in (
            ("--checkpoint-activations", tune.del_checkpoint_activations),
            ("--fp16", tune.del_fp16),
        ):
            if dropped:
                flags.pop(name, None)
        return flags

    def _training(self) -> Flags:
        """How the task is trained; nothing of it where a language model is only scored."""
        task, tune = self.task, self.given.tune
        deepspeed: Flags = {
            "--overwrite": None,
            "--deepspeed-activation-checkpointing": None,
            "--deepspeed": None,
            "--deepspeed_config": self.model["deepspeed_config"],
        }
        if task["script"] == "evaluate_lm":
            return as_flags(task["flags"]) | {"--epochs": "0"} | deepspeed
        is_text = task["script"] in ("finetune_seq2seq", "finetune_blank")
        flags: Flags = {"--lr-decay-style": "linear", "--warmup": "0.06" if is_text else "0.1"}
        flags["--weight-decay"] = "1.0e-1"
        flags |= as_flags(task["flags"])
        if is_text:
            flags["--label-smoothing"] = "0.1"
        if task["script"] == "finetune_blank":
            flags["--blank-maskratio"] = f"{tune.mask_ratio:g}"
        epochs = task["epochs"].get(tune.epoch_type, 0)
        return flags | {
            "--save-interval": "10000",
            "--log-interval": str(task["log_interval"]),
            "--eval-interval": str(task["eval_interval"]),
            "--eval-iters": "100",
            "--batch-size": str(task.get("batch_size") or max(1, BATCH // self.num_gpus)),
            "--epochs": str(math.ceil(epochs * tune.epoch_rate)),
            "--lr": task.get("lr", "1e-5"),
            **deepspeed,
        }

    def _save_sub(self) -> str:
        method = self.given.passed.get("--student_model")
        plain = "finetune" if self.task["script"] == "finetune_superglue" else self.task["script"]
        return self.given.tune.save_sub or (f"ft_{method}" if method else plain)

    def _teachers(self, number: int) -> Flags:
        tune = self.given.tune
        key = self.given.stage_teachers.get(number, tune.task_t_load)
        if key is None:
            return {}
        return Teachers(Path(tune.task_t_load_path)).flags(key, self.key, tune.data_root)

    def _rates(self, flags: Flags) -> None:
        epochs = flags["--epochs"]
        if isinstance(epochs, str) and self.given.tune.rate_arg_epochs != 1:
            flags["--epochs"] = str(int(int(epochs) * self.given.tune.rate_arg_epochs))

    def _deepspeed(self, flags: Flags) -> tuple[Path, dict[str, Any]] | None:
        given = self.given
        path = str(flags["--deepspeed_config"])
        if self.big:
            path = path.removesuffix(".json") + given.tune.big_task_dsc_suffix + ".json"
        flags["--deepspeed_config"] = path
        values = given.ds_values(self.place)
        changed = deepspeed_json(Path(path), values, without_fp16=given.tune.del_fp16)
        if changed is None:
            return None
        patched = Path("tmp_deepspeed_config", f"{self.clock()}.json")
        flags["--deepspeed_config"] = str(patched)
        return patched, changed
