"""The seed's command line: what belongs to which prefix, and every mistake at once."""

import pytest

from config import ConfigError
from distill.tune.seed_args import as_json, read


def problems(*words: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(words)
    return list(caught.value.problems)


def test_the_defaults_are_the_seeds():
    tune = read([]).tune
    assert (tune.py_file, tune.gpus, tune.model) == ("finetune_glm.py", "6", "block_tiny6")
    assert tune.tasks == "copa,wsc_generative,cb,rte,boolq,wic,wsc,multirc,record"
    assert (tune.epoch_type, tune.epoch_rate, tune.rate_arg_epochs) == ("EPOCH_SINGLE", 1, 1)
    assert (tune.mask_ratio, tune.big_task, tune.big_task_dsc_suffix) == (
        0.1,
        "record",
        "_big_task",
    )
    assert read([]).program == "distill/finetune.py"


def test_prefixes_are_told_apart():
    given = read(
        ["--tasks=copa,rte", "--task_t_load=base", "--ds_optimizer__params__lr=1e-5;2e-5"]
        + ["--rate_ds_optimizer__params__lr=0.5", "--copa_model_path=a=b", "--again_2__lr", "3"]
        + ["--again_2__task_t_load=large", "--train-data", "x", "y", "--seed", "-1"]
    )
    assert given.ds_values(1) == {"optimizer__params__lr": ("2e-5", 0.5)}
    assert given.model_paths == {"copa": "a=b"}
    assert given.again == {2: {"--lr": "3"}}
    assert given.stage_teachers == {2: "large"}
    assert given.passed == {"--train-data": ("x", "y"), "--seed": "-1"}


def test_a_single_value_is_that_of_all_tasks():
    given = read(["--tasks=copa,rte", "--ds_gradient_accumulation_steps=2"])
    assert [given.ds_values(i)["gradient_accumulation_steps"][0] for i in (0, 1)] == ["2", "2"]


def test_every_mistake_is_told_at_once():
    found = problems(
        *("--model=tiny", "--tasks=copa,cola,seq_xsum", "--epoch_type=NONE", "--retries=-1"),
        *("--ds_train_batch_size=1;2", "--again_1__lr=1", "--rate_ds_lr=2"),
    )
    assert [line.split(":")[0] for line in found] == [
        "--epoch_type=NONE",
        "--model=tiny",
        "--tasks=cola",
        "--tasks=seq_xsum",
        "--ds_train_batch_size=1;2",
        "--rate_ds_lr=2",
        "--again_N__...",
        "--retries=-1",
    ]
    assert "2 values for 3 tasks" in found[4]


def test_a_flag_without_effect_says_so(caplog):
    read(["--fix_module_parameters_mp=a;b"])
    assert "--fix_module_parameters_mp: has no effect" in caplog.text


@pytest.mark.parametrize(
    ("old", "text", "expected"),
    [(True, "false", False), (4, "8", 8), (1e-5, "2e-5", 2e-5), ("auto", "x", "x")],
)
def test_texts_become_values_of_the_same_type(old, text, expected):
    assert as_json(old, text) == expected


@pytest.mark.parametrize(("old", "text"), [(True, "1"), (4, "1.5"), (0.1, "x")])
def test_texts_of_another_type_are_refused(old, text):
    with pytest.raises(ValueError):
        as_json(old, text)
