"""Which weights a fine-tuning run keeps, wherever its training ends."""

import json

import pytest

from distill import finetune as program
from tests.e2e import world as w

EPOCH = 10  # steps: 40 mirrored examples, 4 a step


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in w.LAUNCHER_VARIABLES:
            patch.delenv(name, raising=False)
        yield w.make_world(tmp_path_factory.mktemp("world"))


def tune(world, name, *length):
    """Run the program; (iterations that were evaluated, folder of the run)."""
    flags = [flag for flag in w.finetuning(world) if not flag.startswith("--epochs")]
    program.main([*flags, *length, f"--experiment-name={name}"])
    folder = world / "runs" / name
    history = json.loads((folder / "results.json").read_text())["history"]
    return [row["iteration"] for row in history], folder


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (["--epochs=3", "--eval-epoch=2"], [2 * EPOCH, 3 * EPOCH]),
        (["--epochs=2", "--eval-epoch=2"], [2 * EPOCH]),
        (["--train-iters=3"], [3]),
        (["--train-iters=13"], [EPOCH, 13]),
    ],
)
def test_the_last_weights_compete(world, length, expected):
    evaluated, folder = tune(world, "-".join(length), *length)
    assert evaluated == expected
    assert (folder / "best" / "mp_rank_00_model_states.pt").is_file()
    assert (folder / "latest_checkpointed_iteration.txt").is_file()


def test_nothing_competes_where_nothing_is_trained(world):
    evaluated, folder = tune(world, "none", "--epochs=0")
    assert evaluated == [0]
    assert not (folder / "best").exists()


def test_a_run_that_lacks_its_end_only_is_not_evaluated_twice(world):
    length = ["--train-iters=13", "--save-interval=13"]
    evaluated, folder = tune(world, "done", *length)
    (folder / "summary.json").unlink()
    again, _ = tune(world, "done", *length, f"--load={folder}")
    assert again == evaluated == [EPOCH, 13]
