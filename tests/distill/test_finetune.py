"""The fine-tuning program's own parts."""

import torch

from distill.engine.launch import Runtime
from distill.finetune import load_data
from tests.distill.runs import toy_run


class Encoded:
    """A task in memory, without a test split."""

    collate = staticmethod(list)

    def dataset(self, split):
        return None if split == "test" else [split] * 6


class Hasty(Runtime):
    """A process that must not wait for another."""

    def barrier(self):
        raise AssertionError("waits, though nothing is written that others read")


def test_each_process_encodes_for_itself():
    run = toy_run("--epochs=2", "--batch-size=4", "--eval-batch-size=3", program="finetune")
    loaders = load_data(Encoded(), run, Hasty(torch.device("cpu"), 1, 2, 1))
    assert {split: loader and len(loader) for split, loader in loaders.items()} == {
        "train": 4,
        "val": 2,
        "test": None,
    }
