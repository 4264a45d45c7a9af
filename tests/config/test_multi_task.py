"""Flags of labelled tasks in pretraining."""

import pytest

from config.multi_task import MULTI_TASKS, multi_task_name
from tests.config.common import PRETRAIN, finetune, pretrain, problems

GIVEN = ["--multi-task-ratio=0.5", "--data-dir=x"]


def test_the_recipe_of_the_large_model_is_a_run():
    run = pretrain(*GIVEN, "--multi-task-data", *MULTI_TASKS, "--multi-seq-length=256")
    assert run.data.multi_task_data == tuple(MULTI_TASKS)
    assert (run.data.multi_seq_length, run.data.multi_batch_size) == (256, None)


def test_names_in_other_spellings():
    assert multi_task_name("SST-2") == "sst2"
    assert multi_task_name("yelp_full") == "yelp-full"
    assert multi_task_name("copa") is None


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (GIVEN, "--multi-task-ratio=0.5: of which tasks? give --multi-task-data"),
        (
            ["--multi-task-ratio=0.5", "--multi-task-data=mnli"],
            "--multi-task-data: needs --data-dir",
        ),
        ([*GIVEN, "--multi-task-data", "mnli", "copa"], "--multi-task-data=copa: unknown task"),
        ([*GIVEN, "--multi-task-data", "sst2", "SST-2"], "--multi-task-data=SST-2: is named twice"),
        ([*GIVEN, "--multi-task-data=mnli", "--masked-lm"], "--multi-task-data: answers are"),
        (
            [*GIVEN, "--multi-task-data=mnli", "--transformer-xl"],
            "--multi-task-data: --transformer-xl reads text alone",
        ),
        (["--multi-task-ratio=1.5"], "--multi-task-ratio=1.5: must be in [0, 1]"),
        (["--multi-seq-length=600"], "--multi-seq-length=600: is longer than"),
        (["--multi-batch-size=0"], "--multi-batch-size=0: must be at least 1"),
    ],
)
def test_mistakes_are_named(flags, said):
    found = problems([*PRETRAIN, *flags])
    assert any(problem.startswith(said) for problem in found), found


def test_flags_without_effect(caplog):
    pretrain("--multi-task-data=mnli", "--multi-batch-size=2")
    (record,) = caplog.records
    assert record.message == (
        "--multi-task-data, --multi-batch-size: have no effect without --multi-task-ratio above 0"
    )
    caplog.clear()
    finetune(*GIVEN[:1], "--multi-task-data=mnli")
    (record,) = caplog.records
    assert "have no effect on fine-tuning" in record.message
