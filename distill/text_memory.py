"""Memories: what student and teachers remember of the text, each its own (--mem-length).

Row r of a micro-batch goes on where it stopped a step before, so its memory is that of the same
micro-batch of the step before. It is a part of the run's state:

    <tag>/text_memory_rank_XX.pt     of data-parallel rank XX
"""

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import mpu
from config import RunArgs
from data_utils.batch import Batch
from distill.engine import files
from distill.teacher import Teacher
from model.carried import Carried, CarriedMemory
from model.glm import GLMModel

log = logging.getLogger(__name__)

FILE = "text_memory_rank_{:02d}.pt"
#: Fields of DataArgs that decide which text there is, and which part of it is read when.
TEXT = ("seq_length", "train_data", "valid_data", "test_data", "split", "load_splits", "text_key")


class Memories:
    """Of all models of a run. Without --mem-length there are none, and nothing here has an effect.

    Not as in the seed: there the teachers are handed the student's memory (D24).
    """

    def __init__(self, run: RunArgs, student: nn.Module, teachers: Sequence[Teacher]):
        """Gives every model a memory of its own, empty."""
        self._text = _text_of(run)
        self._of: dict[str, CarriedMemory] = {}
        if not run.remembers:
            return
        theirs = {id(part) for teacher in teachers for part in teacher.module.modules()}
        own = [part for part in student.modules() if id(part) not in theirs]
        models = {"student": own}
        models |= {f"teacher_{i}": list(t.module.modules()) for i, t in enumerate(teachers)}
        for name, parts in models.items():
            for glm in (part for part in parts if isinstance(part, GLMModel)):
                glm.carried = self._of[name] = CarriedMemory()

    def begin(self, micro_step: int, iteration: int) -> None:
        """The forwards that follow are of this micro-batch."""
        for memory in self._of.values():
            memory.begin(micro_step, iteration)

    def over(self, steps: Iterable[list[Batch]]) -> Iterator[list[Batch]]:
        """Steps of one batch each, for an evaluation: with memories that begin empty.

        Those of the training are back at the end.
        """
        kept = {name: memory.slots for name, memory in self._of.items()}
        for memory in self._of.values():
            memory.slots = {}
        try:
            for number, batches in enumerate(steps):
                self.begin(0, number)
                yield batches
        finally:
            for name, memory in self._of.items():
                memory.slots = kept[name]

    def save(self, folder: Path) -> None:
        """Write those of this data-parallel rank: whole on each of its model-parallel ranks."""
        if not self._of or mpu.get_model_parallel_rank() != 0:
            return
        models = {
            name: {slot: _plain(carried) for slot, carried in memory.slots.items()}
            for name, memory in self._of.items()
        }
        path = folder / FILE.format(mpu.get_data_parallel_rank())
        files.write_tensors(path, {"text": self._text, "models": models})

    def load(self, folder: Path, device: torch.device) -> None:
        """Go on from `save`; where the text is not the same, with empty memories, and tell so."""
        if not self._of:
            return
        path = folder / FILE.format(mpu.get_data_parallel_rank())
        content = files.read_tensors(path) if path.is_file() else {}
        saved = content.get("text", {})
        changed = [
            f"{name} was {saved.get(name)}, is {value}"
            for name, value in self._text.items()
            if saved.get(name) != value
        ]
        if changed:
            why = "; ".join(changed) if content else f"there is no {path.name}"
            log.warning("--load=%s: models begin with an empty memory: %s", folder, why)
            return
        for name, memory in self._of.items():
            slots = content["models"].get(name, {})
            memory.slots = {slot: _carried(values, device) for slot, values in slots.items()}


def _text_of(run: RunArgs) -> dict[str, Any]:
    """What decides which text a row reads, and what a memory of it is made of."""
    return {
        "data_parallel_size": mpu.get_data_parallel_world_size(),
        "batch_size": run.train.batch_size,
        "gradient_accumulation_steps": run.train.gradient_accumulation_steps,
        "mem_length": run.model.mem_length,
        "seed": run.train.seed,
        **{name: getattr(run.data, name) for name in TEXT},
        "teachers": [dataclasses.asdict(teacher) for teacher in run.teachers],
    }


def _plain(carried: Carried) -> dict[str, Any]:
    return {f.name: getattr(carried, f.name) for f in dataclasses.fields(carried)}


def _carried(values: dict[str, Any], device: torch.device) -> Carried:
    """Copies: what was read lies in the file."""
    states = [state.clone().to(device) for state in values["states"]]
    return Carried(values["moment"], states, values["valid"].clone().to(device))
