"""What the programs share."""

import pytest

from config import ConfigError
from distill.engine import files
from distill.engine.build import check_resumed, with_vocabulary
from tests.distill.runs import toy_run


class Words:
    """A tokenizer of 61 words."""

    def padded_size(self, multiple):
        return -(-61 // multiple) * multiple


@pytest.mark.parametrize(("multiple", "size"), [(64, 64), (5, 65), (3, 63), (13, 65), (62, 62)])
@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_the_padded_vocabulary_is_what_must_divide(multiple, size, ranks):
    flags = [f"--make-vocab-size-divisible-by={multiple}", f"--model-parallel-size={ranks}"]
    run = toy_run(*flags)
    if size % ranks == 0:
        assert with_vocabulary(run, Words()).model.vocab_size == size
        return
    with pytest.raises(ConfigError) as caught:
        with_vocabulary(run, Words())
    message = str(caught.value)
    assert (
        f"--model-parallel-size={ranks}: does not divide the padded vocabulary of {size}" in message
    )
    assert f"--make-vocab-size-divisible-by={multiple * ranks}" in message
    fits = toy_run(f"--make-vocab-size-divisible-by={multiple * ranks}", flags[1])
    assert with_vocabulary(fits, Words()).model.vocab_size % ranks == 0


@pytest.fixture
def ended(tmp_path):
    """A run that has done 10 iterations, 2 epochs, and told so."""
    folder = tmp_path / "run"
    state = {"module": {}, "train_state": {"iteration": 10, "epoch": 2}}
    files.write_tensors(folder / "10" / "mp_rank_00_model_states.pt", state)
    files.write_text(folder / "latest_checkpointed_iteration.txt", "10")
    files.write_json(folder / "config.json", toy_run("--train-iters=10", "--lr=0.5").to_dict())
    files.write_json(folder / "summary.json", {"iterations": 10})
    return folder


def test_a_resumed_run_must_have_something_left_to_do(ended):
    flags = [f"--load={ended}", "--lr=0.5"]
    for iterations in (9, 10):
        with pytest.raises(ConfigError, match=f"--train-iters={iterations}: .* 10 iterations; gi"):
            check_resumed(toy_run(*flags, f"--train-iters={iterations}"))
    with pytest.raises(ConfigError, match=r"--epochs=2: .* 2 epochs; .* --epochs=0"):
        check_resumed(toy_run(*flags, "--epochs=2", program="finetune"))
    check_resumed(toy_run(*flags, "--epochs=3", program="finetune"))
    (ended / "summary.json").unlink()  # ended before its last scores
    check_resumed(toy_run(*flags, "--train-iters=10"))


def test_other_settings_are_told_once(ended, caplog):
    check_resumed(toy_run(f"--load={ended}", "--lr=0.5", "--train-iters=20"))
    assert caplog.text == ""
    check_resumed(toy_run(f"--load={ended}", "--lr=0.1", "--seed=3", "--train-iters=20"))
    (record,) = caplog.records
    assert "--seed: was 1234, now 3; --lr: was 0.5, now 0.1" in record.getMessage()
