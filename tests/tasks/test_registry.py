"""Tasks by name, and what the command line may get wrong."""

import pytest

from config.compat import Compat
from config.data import DataArgs
from config.errors import ConfigError
from config.tasks import FinetuneArgs
from tasks import TASKS, build_task, register_task, task_name
from tests.tasks.common import SST2, bert, write_lines


def build(tmp_path, **finetuning):
    data = DataArgs(data_dir=str(tmp_path), seq_length=32)
    return build_task(FinetuneArgs(**finetuning), data, bert(), Compat())


@pytest.mark.parametrize(
    ("given", "name"),
    [("SST-2", "sst-2"), ("sst2", "sst-2"), ("COPA", "copa"), ("BoolQ", "boolq"), ("AX_b", "ax-b")],
)
def test_names_are_found_in_any_spelling(given, name):
    assert task_name(given) == name


def test_an_unknown_task_lists_the_known_ones(tmp_path):
    with pytest.raises(ConfigError) as error:
        build(tmp_path, task="sst3")
    assert "--task=sst3" in str(error.value)
    for name in ("boolq", "cb", "copa", "rte", "sst-2", "wic"):
        assert name in str(error.value)


def test_a_missing_task_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="a task is needed"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("task", "last"), [("rte", 4), ("boolq", 5), ("copa", 2), ("wic", 2), ("cb", 4), ("sst2", 1)]
)
def test_a_pattern_out_of_range_names_the_range(tmp_path, task, last):
    build(tmp_path, task=task, pattern_id=last, cloze_eval=True)
    for wrong in (-1, last + 1):
        with pytest.raises(ConfigError, match=rf"--pattern-id={wrong}: .*0 to {last}"):
            build(tmp_path, task=task, pattern_id=wrong)


def test_an_unknown_metric_lists_the_known_ones(tmp_path):
    assert build(tmp_path, task="cb", validation_metric="f1-macro").metric_names[0] == "accuracy"
    with pytest.raises(ConfigError, match="accuracy, f1-macro"):
        build(tmp_path, task="cb", validation_metric="rouge")


def test_a_second_registration_of_a_name_names_both_classes():
    with pytest.raises(ValueError, match="RTE and Mine"):

        @register_task("R-T-E")
        class Mine:
            pass

    assert "R-T-E" not in TASKS


def test_build_task_passes_everything_on(tmp_path):
    write_lines(tmp_path / "train.jsonl", SST2)
    task = build(
        tmp_path,
        task="SST-2",
        cloze_eval=True,
        multi_token=True,
        length_penalty=1.0,
        loss_func="hinge",
    )
    assert task.head.kind == "multi_token"
    assert task.head.length_penalty == 1.0
    assert task.loss == "hinge"
    assert build(tmp_path, task="SST-2", cloze_eval=True, adapet=True).head.take_softmax
    assert (
        build(tmp_path, task="SST-2", cloze_eval=True, multi_token=True, fast_decode=True).head.kind
        == "multi_token_fast"
    )
    assert build(tmp_path, task="SST-2", adapet=True).loss == "cross_entropy"  # of cloze heads
    head = build(tmp_path, task="SST-2", pool_token="pad").head
    assert (head.kind, head.num_classes, head.pool_token) == ("classification", 2, "pad")
    assert len(task.dataset("train")) == 3
