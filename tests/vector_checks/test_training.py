"""How a recorded training case becomes a run, a task and a batch."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.vector_checks.training import (
    LAUNCH_ONLY,
    build,
    read_batch,
    read_run,
    read_task,
    without,
)


@pytest.fixture
def altered(vectors: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a case, with more flags."""

    def copy(name: str, *flags: str) -> Path:
        case = Path(shutil.copytree(vectors / name, tmp_path / name))
        args = json.loads((case / "args.json").read_text())
        args["all_flags_in_order"] += flags
        (case / "args.json").write_text(json.dumps(args))
        return case

    return copy


@pytest.mark.parametrize(
    ("name", "flags", "expected"),
    [
        ("plain_ft_copa", [], ("multi_token", 0.0, False, "cross_entropy")),
        ("plain_ft_copa", ["--length-penalty=2"], ("multi_token", 2.0, False, "cross_entropy")),
        ("plain_ft_copa", ["--loss-func=mix"], ("multi_token", 0.0, False, "mix")),
        ("plain_ft_rte", ["--loss-func=hinge"], ("single_token", 0.0, False, "hinge")),
        ("plain_ft_rte", ["--adapet"], ("single_token", 0.0, True, "adapet")),
    ],
)
def test_flags_of_the_head(altered, name, flags, expected):
    task = read_task(altered(name, *flags))
    head = task.head
    assert (head.kind, head.length_penalty, head.take_softmax, task.loss) == expected


def test_a_batch_without_answers_is_classified(altered):
    case = altered("plain_ft_rte", "--pool-token=pad")
    weights, inputs = (load_file(case / f"{n}.safetensors") for n in ("student", "inputs"))
    width = weights["word_embeddings.weight"].size(1)
    weights["pool_layer.weight"], weights["pool_layer.bias"] = torch.eye(width), torch.zeros(width)
    weights["multichoice_head.weight"] = torch.ones(3, width)
    weights["multichoice_head.bias"] = torch.zeros(3)
    save_file(weights, case / "student.safetensors")
    del inputs["target"], inputs["logit_mask"]
    save_file(inputs, case / "inputs.safetensors")
    task, batch = read_task(case), read_batch(case, 0)
    assert (task.head.kind, task.head.num_classes) == ("classification", 3)
    assert task.head.pool_token == "pad"
    module, _ = build(case, read_run(case), task)
    assert module(*task.inputs(batch))[0].shape == (len(batch), 3)


def test_launchers_flags_are_left_out(altered):
    launch = ["--deepspeed_config=no/such.json", "--local_rank", "1"]
    assert read_run(altered("plain_pt", *launch)).parallel.deepspeed_config is None
    words = ["--lr=1", "--local_rank", "1", "--deepspeed", "--bf16", "--deepspeed_config=x", "--x"]
    assert without(words, LAUNCH_ONLY) == ["--lr=1", "--bf16", "--x"]
