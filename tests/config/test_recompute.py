"""The JSON's block activation_checkpointing and the flags that it needs."""

import json

import pytest

from config.recompute import Recomputation, recomputation
from tests.config.common import PRETRAIN, pretrain, problems

FLAGS = ["--checkpoint-activations", "--deepspeed-activation-checkpointing"]
BOTH = {"partition_activations": True, "cpu_checkpointing": True}


@pytest.fixture
def words(tmp_path):
    """The flags of a run with this block."""

    def write(block: object) -> list[str]:
        file = tmp_path / "ds.json"
        file.write_text(json.dumps({"activation_checkpointing": block}))
        return ["--deepspeed", f"--deepspeed_config={file}"]

    return write


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({}, Recomputation()),
        ({"partition_activations": False}, Recomputation()),
        ({"partition_activations": True}, Recomputation(partition=True)),
        ({"cpu_checkpointing": True}, Recomputation(on_cpu=True)),
        (BOTH, Recomputation(partition=True, on_cpu=True)),
    ],
)
def test_where_inputs_are_kept(words, block, expected, caplog):
    assert recomputation(pretrain(*words(block), *FLAGS)) == expected
    assert caplog.messages == []


@pytest.mark.parametrize("given", FLAGS)
def test_without_one_of_the_flags_it_is_told(words, given, caplog):
    assert recomputation(pretrain(*words(BOTH), given)) == Recomputation()
    (missing,) = set(FLAGS) - {given}
    expected = f"partition_activations, cpu_checkpointing: no effect without {missing}"
    assert any(message.endswith(expected) for message in caplog.messages)


def test_what_arranges_deepspeeds_own_memory_is_told(words, caplog):
    pretrain(*words({"contiguous_memory_optimization": True, "number_checkpoints": 4}), *FLAGS)
    told = [message.split(": ")[1] for message in caplog.messages]
    assert [t.split(".")[1] for t in told] == [
        "contiguous_memory_optimization",
        "number_checkpoints",
    ]


def test_without_deepspeed_nothing_is_asked():
    assert recomputation(pretrain("--checkpoint-activations")) == Recomputation()


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ([], "activation_checkpointing must be a json object"),
        ({"partition_activations": 1}, "partition_activations=1: must be true or false"),
        ({"partition": True}, "activation_checkpointing.partition: is no such option; known are"),
    ],
)
def test_bad_blocks(words, block, expected):
    (problem,) = problems([*PRETRAIN, *words(block)])
    assert expected in problem
