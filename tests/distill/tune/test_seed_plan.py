"""Commands of the seed's command line, against those that its published logs hold."""

import json

import pytest

from config import ConfigError
from tests.distill.tune.seed import GLMD, PLAIN, flags, jobs
from tests.house import ROOT

#: What the seed's log of GLMD's first ReCoRD run says of it, but for paths and sizes of batches.
LOGGED = """--finetune --cloze-eval --task=ReCoRD --seq-length=512 --eval-batch-size=16
    --save-epoch=100000 --block-lm --num-layers=6 --hidden-size=768 --num-attention-heads=12
    --max-position-embeddings=512 --tokenizer-model-type=bert-base-uncased
    --tokenizer-type=BertWordPieceTokenizer --fp16 --lr-decay-style=linear --warmup=0.1
    --weight-decay=1.0e-1 --pattern-id=0 --save-interval=10000 --log-interval=50
    --eval-interval=1000 --eval-iters=100 --epochs=5 --lr=1e-5 --overwrite
    --deepspeed-activation-checkpointing --deepspeed --student_model=logitsdistil
    --distill_temperature=15 --map_vocab_size=0.5 --distill_logit_mask_map --unmap_vocab_output
    --logitsdistil_mask_pad --teacher_num_layers=12 --teacher_hidden_size=768
    --teacher_num_attention_heads=12 --teacher_max_position_embeddings=512 --teacher_fp16"""
WSC = {"--loss-func": "mix", "--wsc-negative": None, "--length-penalty": "1", "--pattern-id": "2"}


def words(values: dict) -> set[str]:
    return {name if value is None else f"{name}={value}" for name, value in values.items()}


def test_the_commands_are_the_golden_ones():
    expected = (ROOT / "tests/golden/auto_tune.txt").read_text().splitlines()
    actual = [c.text for text in (GLMD, PLAIN) for job in jobs(text) for c in job.commands]
    assert actual == expected


def test_the_first_stage_is_the_one_of_the_published_log():
    actual = words(flags(GLMD))
    assert set(LOGGED.split()) <= actual
    start = "../GLM/data/checkpoints/distill/glmd"
    assert f"--load-pretrained={start}" in actual
    assert f"--save={start}/ft_logitsdistil/ReCoRD" in actual
    assert "--data-dir=../GLM/data/english_data/superglue/ReCoRD" in actual
    assert "--experiment-name=blank-tiny6-ReCoRD-230113_110015.505218" in actual


def test_a_further_stage_starts_from_the_one_before_it():
    text = GLMD + " --again_2__lr=3e-5"
    first, second, third = (flags(text, stage=n) for n in range(3))
    assert second["--load-pretrained"] == f"{first['--save']}/{first['--experiment-name']}"
    assert third["--load-pretrained"] == f"{second['--save']}/{second['--experiment-name']}"
    assert third["--save"] == f"{third['--load-pretrained']}/ft_logitsdistil/ReCoRD"
    assert second["--distill_temperature"] == "1"
    assert "--custom_first_eval" in second
    assert "--custom_first_eval" not in first
    assert "--distill_ft_soft" not in third


def test_an_again_flag_that_repeats_one_takes_it_away():
    text = "--tasks=copa --task_t_load=base --student_model=kd --distill_ft_hard"
    second = flags(text + " --again_1__distill_ft_hard", stage=1)
    assert "--distill_ft_hard" not in second
    assert second["--student_model"] == "kd"


def test_teachers_win_in_the_first_stage_and_lose_in_later_ones():
    text = "--tasks=copa --task_t_load=base --teacher_num_layers=3 --again_1__lr=1"
    assert [flags(text, stage=n)["--teacher_num_layers"] for n in (0, 1)] == ["12", "3"]


def test_teachers_are_those_of_the_task_and_may_change():
    text = "--tasks=copa,rte --task_t_load=base_large --again_1__task_t_load=large"
    root = "../GLM/data/checkpoints/pretrain/blocklm"
    assert flags(text, job=1)["--mt_load_pretrained"] == (
        f"{root}-base-blank/finetune/rte:{root}-large-blank/finetune/rte"
    )
    assert flags(text, 1, 1)["--teacher_load_pretrained"] == f"{root}-large-blank/finetune/rte"


def test_missing_teachers_are_all_told():
    text = "--tasks=copa,cb,rte --task_t_load=example --again_1__task_t_load=none"
    with pytest.raises(ConfigError) as caught:
        jobs(text)
    assert len(caught.value.problems) == 3
    assert "no checkpoint of example for task cb" in caught.value.problems[1]


def test_wsc_is_two_tasks():
    generative, negative = (flags("--tasks=wsc_generative,wsc", job=n) for n in (0, 1))
    assert WSC.items() <= negative.items()
    assert not WSC.keys() & generative.keys()
    assert [f["--data-dir"].rpartition("/")[2] for f in (generative, negative)] == [
        "WSC",
        "WSC-negative",
    ]
    assert "-WSC_generative-" in generative["--experiment-name"]
    assert generative["--save"].endswith("/finetune/WSC")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("", "50"),
        ("--epoch_type=XXLARGE_EPOCH", "100"),
        ("--epoch_type=EPOCH_0", "0"),
        ("--epoch_rate=0.25", "13"),
        ("--rate_arg_epochs=0.25", "12"),
        ("--epochs=9 --rate_arg_epochs=0.5", "4"),
    ],
)
def test_epochs_are_scaled(more, expected):
    assert flags(f"--tasks=copa {more}")["--epochs"] == expected


def test_the_batch_is_shared_by_the_gpus():
    four = flags("--tasks=copa --gpus=0,1,2,3")
    assert four["--batch-size"] == "4"
    assert flags("--tasks=copa --gpus=a:0,1@b:0,1")["--batch-size"] == "4"
    with pytest.raises(ConfigError, match="same number"):
        jobs("--tasks=copa --gpus=0,1;2")


def test_several_groups_take_turns():
    found = [job.gpus for job in jobs("--tasks=copa,rte,cb '--gpus=0,1;2,3'")]
    assert found == ["0,1", "2,3", "0,1"]


def test_deepspeeds_json_is_patched_for_each_task():
    sizes = [job.stages[1].deepspeed[1] for job in jobs(GLMD)]
    micro = [content["train_micro_batch_size_per_gpu"] for content in sizes]
    assert micro == [4, 4, 8, 4, 4, 4, 8, 4, 8]
    assert {content["gradient_accumulation_steps"] for content in sizes} == {2}
    (job,) = jobs("--tasks=copa --ds_optimizer__params__lr=3e-5 --rate_ds_optimizer__params__lr=2")
    assert job.stages[0].deepspeed[1]["optimizer"]["params"]["lr"] == 6e-5
    assert job.stages[0].command.flags["--deepspeed_config"] == str(job.stages[0].deepspeed[0])


def test_fp16_is_taken_away_on_request_and_never_given():
    preset = json.loads((ROOT / "config/tasks/config_blocklm_tiny6.json").read_text())
    (job,) = jobs("--tasks=copa --del_fp16")
    assert job.stages[0].deepspeed[1]["fp16"] == preset["fp16"] | {"enabled": False}
    assert "--fp16" not in job.stages[0].command.flags
    (job,) = jobs("--tasks=copa --ds_gradient_accumulation_steps=3")
    assert job.stages[0].deepspeed[1]["fp16"] == preset["fp16"]
    (job,) = jobs("--tasks=copa")
    assert job.stages[0].deepspeed is None


def test_a_value_of_the_wrong_type_is_named():
    with pytest.raises(ConfigError, match="--ds_gradient_accumulation_steps=x"):
        jobs("--tasks=copa --ds_gradient_accumulation_steps=x")


def test_big_tasks_have_gpus_and_a_json_of_their_own():
    copa, record = jobs("--tasks=copa,record --gpus=0 --big_task_gpus=1,2")
    assert (copa.gpus, record.gpus) == ("0", "1,2")
    assert record.stages[0].command.flags["--deepspeed_config"] == (
        "config/tasks/config_blocklm_tiny6_big_task.json"
    )


def test_checkpoints_are_converted_to_the_model_parallel_size(tmp_path):
    for name in ("student", "teacher_MP4", "there", "there_MP2"):
        (tmp_path / name).mkdir()
    text = f"--tasks=copa --data_root={tmp_path} --model_path=student --model-parallel-size=2"
    text += f" --again_1__lr=1 --task_t_load=k --task_t_load_path={tmp_path}/t.json"
    rows = [["--mt_load_pretrained", ["teacher_MP4", "there", "missing"]]]
    (tmp_path / "t.json").write_text(json.dumps({"k": {"args": rows}}))
    (job,) = jobs(text)
    assert [command.words for command in job.conversions] == [
        ["python", "change_mp.py", f"{tmp_path}/{old}", "2", f"--out={tmp_path}/{new}"]
        for old, new in (("student", "student_MP2"), ("teacher_MP4", "teacher_MP2"))
    ]
    first, second = (stage.command.flags for stage in job.stages)
    assert first["--load-pretrained"] == f"{tmp_path}/student_MP2"
    assert first["--mt_load_pretrained"] == ":".join(
        f"{tmp_path}/{name}" for name in ("teacher_MP2", "there_MP2", "missing")
    )
    assert "_MP2/" not in second["--load-pretrained"]
