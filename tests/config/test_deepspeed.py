"""DeepSpeed's JSON against the command line."""

import json

import pytest

from config import ConfigError, RunArgs, check_hardware
from config.deepspeed import SETTINGS
from tests.config.common import PRETRAIN, finetune, pretrain, problems
from tests.house import ROOT

JSON = {
    "train_micro_batch_size_per_gpu": 8,
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 0.5,
    "fp16": {"enabled": False},
    "zero_optimization": {"stage": 2, "reduce_bucket_size": 1000},
    "optimizer": {
        "type": "Adam",
        "params": {"lr": 4e-4, "betas": [0.8, 0.98], "eps": 1e-6, "weight_decay": 0.1},
    },
    "wall_clock_breakdown": False,
}


@pytest.fixture
def run_with(tmp_path):
    """Parse a pretraining command with this JSON."""

    def parse(content: dict, *flags: str) -> RunArgs:
        file = tmp_path / "ds.json"
        file.write_text(json.dumps(content))
        return pretrain("--deepspeed", f"--deepspeed_config={file}", *flags)

    return parse


@pytest.fixture
def mistakes(tmp_path):
    """Problems of a pretraining command with this JSON, given as text or as an object."""

    def find(content: dict | str, *flags: str) -> tuple[str, ...]:
        file = tmp_path / "ds.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return problems([*PRETRAIN, "--deepspeed", f"--deepspeed_config={file}", *flags])

    return find


def effective(run: RunArgs) -> list:
    return [getattr(getattr(run, s.group), s.field) for s in SETTINGS]


def in_dict(run: RunArgs) -> list:
    config, adam = run.deepspeed, run.deepspeed["optimizer"]["params"]
    loss_scale = config["fp16"].get("loss_scale") or None
    return [
        config["train_micro_batch_size_per_gpu"],
        config["gradient_accumulation_steps"],
        config["gradient_clipping"],
        adam["lr"],
        adam["weight_decay"],
        *adam["betas"],
        adam["eps"],
        loss_scale,
        config["zero_optimization"]["stage"],
    ]


def test_the_json_wins(run_with, caplog):
    run = run_with(JSON)
    assert effective(run) == [8, 2, 0.5, 4e-4, 0.1, 0.8, 0.98, 1e-6, None, 2]
    assert in_dict(run) == effective(run)
    assert run.deepspeed["zero_optimization"]["reduce_bucket_size"] == 1000
    assert run.deepspeed["wall_clock_breakdown"] is False
    assert caplog.records == []


def test_the_dict_is_complete(run_with):
    run = run_with({})
    assert run.deepspeed == {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 1.0,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": 1e-4,
                "betas": [0.9, 0.999],
                "eps": 1e-8,
                "weight_decay": 0.01,
                "torch_adam": True,
            },
        },
        "fp16": {"enabled": False},
        "bf16": {"enabled": False},
        "zero_optimization": {"stage": 0},
        "steps_per_print": 10**9,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


GIVEN = ["--batch-size=3", "--gradient-accumulation-steps=5", "--clip-grad=2", "--lr=1e-3"]
GIVEN += ["--weight-decay=0.3", "--adam-beta1=0.7", "--adam-beta2=0.9", "--adam-eps=1e-5"]
GIVEN += ["--zero_stage=1"]


def test_flags_that_say_something_else_are_told_once(run_with, caplog):
    run = run_with(JSON, *GIVEN, "--fp16")
    assert effective(run) == effective(run_with(JSON))
    assert not run.precision.fp16
    told = [record.message for record in caplog.records]
    assert [m.split("=")[0] for m in told] == [f.split("=")[0] for f in [*GIVEN, "--fp16"]]
    assert all("the file wins" in message for message in told)
    assert "--lr=0.001" in told[3]
    assert "optimizer.params.lr=0.0004" in told[3]


def test_flags_that_agree_are_not_told(run_with, caplog):
    run_with(JSON, "--batch-size=8", "--lr=0.0004", "--weight-decay=0.1", "--zero_stage=2")
    assert caplog.records == []


def test_flags_count_where_the_json_is_silent(run_with, caplog):
    run = run_with({"optimizer": {"params": {"lr": "auto"}}}, *GIVEN)
    assert effective(run) == [3, 1, 2.0, 1e-3, 0.3, 0.7, 0.9, 1e-5, None, 1]
    assert in_dict(run) == effective(run)
    (told,) = caplog.records  # accumulation is 1 without the key, as in the seed
    assert told.message.startswith("--gradient-accumulation-steps=5")


def test_auto_accumulation_is_the_command_lines(run_with, caplog):
    flag = "--gradient-accumulation-steps=8"
    run = run_with({"gradient_accumulation_steps": "auto"}, flag)
    assert run.train.gradient_accumulation_steps == 8
    assert run.deepspeed["gradient_accumulation_steps"] == 8
    assert caplog.records == []


def test_nan_checks_cannot_be_switched_off(run_with, caplog):
    content = {
        "bf16": {"enabled": True, "check_grad_overflow": False},
        "zero_optimization": {"stage": 2, "compute_grad_norm": False},
    }
    run = run_with(content)
    assert run.deepspeed["bf16"] == {"enabled": True, "check_grad_overflow": True}
    assert run.deepspeed["zero_optimization"] == {"stage": 2, "compute_grad_norm": True}
    assert [m.split(": ")[1].split("=")[0] for m in caplog.messages] == [
        "bf16.check_grad_overflow",
        "zero_optimization.compute_grad_norm",
    ]


def test_ranges_name_who_gave_the_value(mistakes):
    stage = {"zero_optimization": {"stage": 4}}
    (problem,) = mistakes(stage)
    assert problem.startswith("--deepspeed_config=")
    assert "ds.json: zero_optimization.stage=4: must be 0, 1, 2 or 3" in problem
    assert mistakes(stage, "--zero_stage=1") == (problem,)
    (problem,) = mistakes(stage, "--zero_stage=5", "--args_to_ds_config")
    assert problem.startswith("--zero_stage=5: must be")
    (problem,) = mistakes({}, "--zero_stage=4")
    assert problem.startswith("--zero_stage=4: must be")


def test_args_to_ds_config(run_with, caplog):
    run = run_with(JSON, *GIVEN, "--args_to_ds_config")
    assert effective(run) == [3, 5, 2.0, 1e-3, 0.3, 0.7, 0.9, 1e-5, None, 1]
    assert in_dict(run) == effective(run)
    assert len(caplog.records) == len(GIVEN)
    assert all("the command line wins" in record.message for record in caplog.records)


def test_args_to_ds_config_keeps_what_was_not_given(run_with):
    run = run_with(JSON, "--lr=1e-3", "--args_to_ds_config")
    assert (run.train.batch_size, run.optim.lr, run.optim.weight_decay) == (8, 1e-3, 0.1)


@pytest.mark.parametrize(
    ("content", "flags", "expected"),
    [
        ({}, [], "fp32"),
        ({}, ["--fp16"], "fp16"),
        ({}, ["--bf16"], "bf16"),
        ({"fp16": {"enabled": True}}, [], "fp16"),
        ({"fp16": {"enabled": True}}, ["--bf16"], "fp16"),
        ({"fp16": {"enabled": True}}, ["--bf16", "--args_to_ds_config"], "bf16"),
        ({"fp16": {"enabled": True}}, ["--args_to_ds_config"], "fp32"),
        ({"fp16": {"enabled": False}}, ["--fp16"], "fp32"),
        ({"fp16": {"enabled": False}}, ["--bf16"], "bf16"),
        ({"bf16": {"enabled": True}}, ["--fp16"], "bf16"),
        ({"fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"}}, ["--fp16"], "fp16"),
        ({"fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"}}, ["--bf16"], "bf16"),
        ({"fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"}}, [], "fp32"),
    ],
)
def test_precision(run_with, content, flags, expected):
    run = run_with(content, *flags)
    fp16, bf16 = expected == "fp16", expected == "bf16"
    assert (run.precision.fp16, run.precision.bf16) == (fp16, bf16)
    blocks = run.deepspeed["fp16"]["enabled"], run.deepspeed["bf16"]["enabled"]
    assert blocks == (fp16, bf16)
    assert run.parallel.zero_stage == (1 if bf16 else 0)


def test_a_given_stage_stays_with_bf16(run_with):
    assert run_with({"zero_optimization": {"stage": 0}}, "--bf16").parallel.zero_stage == 0
    assert run_with({}, "--bf16", "--zero_stage=0").parallel.zero_stage == 0
    assert run_with({}, "--bf16", "--zero_stage=2").deepspeed["zero_optimization"]["stage"] == 2


@pytest.mark.parametrize(
    ("block", "flags", "expected"),
    [
        ({}, [], None),
        ({"loss_scale": 0}, [], None),
        ({"loss_scale": 64}, [], 64.0),
        ({}, ["--loss-scale=8"], 8.0),
        ({"loss_scale": 0}, ["--loss-scale=8"], None),
        ({"loss_scale": 64}, ["--loss-scale=8", "--args_to_ds_config", "--fp16"], 8.0),
    ],
)
def test_loss_scale(run_with, block, flags, expected):
    run = run_with({"fp16": block | {"enabled": True, "hysteresis": 2}}, *flags)
    assert run.precision.loss_scale == expected
    expected_block = {"enabled": True, "loss_scale": expected or 0, "hysteresis": 2}
    assert run.deepspeed["fp16"] == expected_block


@pytest.mark.parametrize(
    ("content", "flags"),
    [
        ({}, ["--cpu_offload"]),
        ({"zero_optimization": {"cpu_offload": True}}, []),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, []),
    ],
)
def test_offload(run_with, content, flags):
    run = run_with(content, *flags)
    assert run.parallel.cpu_offload
    expected = {"stage": 0, "offload_optimizer": {"device": "cpu"}}
    assert run.deepspeed["zero_optimization"] == expected


def test_offload_without_zero_is_told(run_with, caplog):
    run_with({}, "--cpu_offload")
    assert caplog.messages == [
        "--cpu_offload: has no effect with ZeRO stage 0; --args_to_ds_config --zero_stage=1 for one"
    ]


def test_quantised_communication_needs_a_gpu(run_with):
    run = run_with({"zero_optimization": {"stage": 3, "zero_quantized_weights": True}})
    with pytest.raises(ConfigError, match="zero_quantized_weights: needs a GPU; leave it out"):
        check_hardware(run, cuda=False, world_size=2)
    check_hardware(run, cuda=True, world_size=2)


def test_blocks_without_effect_are_told_and_left_out(run_with, caplog):
    content = JSON | {"train_batch_size": 64, "scheduler": {"type": "WarmupLR"}}
    run = run_with(content)
    assert not {"train_batch_size", "scheduler"} & set(run.deepspeed)
    assert [r.message.split(": ")[1].split()[0] for r in caplog.records] == [
        "train_batch_size",
        "scheduler",
    ]


def test_torch_adam_of_the_json_stays(run_with):
    run = run_with({"optimizer": {"params": {"torch_adam": False}}})
    assert run.deepspeed["optimizer"]["params"]["torch_adam"] is False


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{\n"a": 1,\n"b" 2}', "line 3, column 5: Expecting ':' delimiter"),
        ("[]", "must hold one json object"),
        ({"train_micro_batch_size_per_gpu": 0}, "must be an integer of at least 1"),
        ({"train_micro_batch_size_per_gpu": 1.5}, "must be an integer of at least 1"),
        ({"train_micro_batch_size_per_gpu": True}, "must be an integer of at least 1"),
        ({"gradient_accumulation_steps": "2"}, "='2': must be an integer"),
        ({"optimizer": {"params": {"lr": "x"}}}, "optimizer.params.lr='x': must be a number"),
        ({"optimizer": {"params": {"lr": -1}}}, "optimizer.params.lr=-1: must be a number of"),
        ({"optimizer": {"params": {"betas": 0.9}}}, "betas=0.9: must be two numbers"),
        ({"optimizer": {"params": {"momentum": 0.9}}}, "optimizer.params.momentum=0.9: is not"),
        ({"optimizer": {"params": {"adam_w_mode": False}}}, "adam_w_mode=False: is not supported"),
        ({"optimizer": {"type": "Lamb"}}, "optimizer.type='Lamb': is not supported; use AdamW"),
        ({"optimizer": []}, "optimizer must be a json object"),
        ({"fp16": {"enabled": 1}}, "fp16.enabled=1: must be true, false or 'auto'"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "are both enabled"),
        ({"train_batch_size": 8}, "train_batch_size depends on the number of processes"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage=4: must be 0, 1, 2 or 3"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            "zero_optimization.offload_param.device='nvme': is not supported; use 'cpu' or 'none'",
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
            "zero_optimization.offload_param: needs ZeRO stage 3, not 2",
        ),
        (
            {"zero_optimization": {"stage": 1, "offload_optimizer": "cpu"}},
            "zero_optimization.offload_optimizer: must be a json object",
        ),
        (
            {"zero_optimization": {"stage": 3, "mics_shard_size": 2}},
            "zero_optimization.mics_shard_size: is not supported",
        ),
    ],
)
def test_bad_json(mistakes, content, expected):
    (problem,) = mistakes(content)
    assert expected in problem


def test_all_that_is_wrong_in_a_json(mistakes):
    content = {"optimizer": {"type": "SGD", "params": {"lr": -1}}, "gradient_clipping": "x"}
    assert len(mistakes(content, "--lr=-2")) == 4


def test_a_missing_json(tmp_path):
    argv = [*PRETRAIN, "--deepspeed", f"--deepspeed_config={tmp_path}/none.json"]
    (problem,) = problems(argv)
    assert (
        problem
        == f"--deepspeed_config={tmp_path}/none.json: cannot be read (No such file or directory)"
    )


PRESETS = sorted(
    p.relative_to(ROOT).as_posix() for p in (ROOT / "config").rglob("config_block*.json")
)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("precision", ["fp16", "bf16", None])
def test_presets(preset, precision, caplog):
    words = ["--deepspeed", f"--deepspeed_config={preset}"] + [f"--{precision}"] * bool(precision)
    run = finetune(*words) if "tasks/" in preset else pretrain(*words)
    precision = None if "fp32" in preset and precision == "fp16" else precision
    used = [name for name in ("fp16", "bf16") if run.deepspeed[name]["enabled"]]
    assert used == [precision] * bool(precision)
    assert len(caplog.records) == ("fp32" in preset and "--fp16" in words)
    assert "auto" not in json.dumps(run.deepspeed)
    assert in_dict(run) == effective(run)


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("config_block_base", [16, 1, 1.0, 4e-4, 0.1, 0.9, 0.98, 1e-6, None, 0]),
        ("config_block_tiny6", [16, 1, 1.0, 4e-4, 0.1, 0.9, 0.98, 1e-6, None, 0]),
        ("config_block_tiny6_big", [8, 2, 1.0, 4e-4, 0.1, 0.9, 0.98, 1e-6, None, 0]),
        ("config_block_tiny4_fp32", [16, 1, 1.0, 4e-4, 0.1, 0.9, 0.98, 1e-6, None, 0]),
        ("config_block_large", [16, 1, 1.0, 2e-4, 0.1, 0.9, 0.98, 1e-6, None, 0]),
        ("config_block_10B", [21, 1, 1.0, 1e-4, 0.1, 0.9, 0.95, 1e-8, None, 2]),
        ("config_block_10B_longer", [8, 1, 1.0, 3e-5, 0.1, 0.9, 0.95, 1e-8, None, 2]),
        ("config_block_large_chinese", [32, 1, 1.0, 4e-4, 0.01, 0.9, 0.98, 1e-6, None, 0]),
        ("tasks/config_blocklm_tiny6", [16, 1, 1.0, 1e-5, 0.1, 0.9, 0.999, 1e-8, None, 0]),
        ("tasks/config_blocklm_large", [16, 1, 1000.0, 1e-5, 0.1, 0.9, 0.999, 1e-8, None, 0]),
        ("tasks/config_blocklm_10B", [4, 2, 1.0, 5e-6, 0.01, 0.9, 0.95, 1e-8, None, 2]),
        ("tasks/config_blocklm_10B_cnndm", [4, 1, 1.0, 5e-6, 0.01, 0.9, 0.95, 1e-8, None, 2]),
    ],
)
def test_presets_have_the_seeds_values(preset, expected):
    run = pretrain("--deepspeed", f"--deepspeed_config=config/{preset}.json")
    assert effective(run) == expected


@pytest.mark.parametrize(
    "name", ["config/config_block_base.json", "config_tasks/config_blocklm_base.json"]
)
def test_presets_are_found_from_elsewhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pretrain("--deepspeed", f"--deepspeed_config={name}").train.batch_size == 16
    (problem,) = problems([*PRETRAIN, "--deepspeed", "--deepspeed_config=x/config_block_base.json"])
    assert "cannot be read" in problem
