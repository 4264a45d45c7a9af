"""Command lines as users of the seed have them: what --test prints are runs that would start."""

import shlex

import pytest

from distill import auto_tune
from distill.engine import files
from distill.tune import seed_plan
from distill.tune.check import command_problems
from distill.tune.command import Command
from distill.tune.presets import models, tasks
from distill.tune.seed_plan import Clock
from distill.tune.seed_run import Runner
from tests.distill.tune.seed import GLMD, PLAIN, START, flags, jobs
from tests.house import ROOT

#: The three task-specific stages that the seed's README shows, and its plain fine-tuning.
RATES = "--ds_optimizer__params__lr='2E-05;5E-06;2E-05;2E-05;2E-05;2E-05;2E-05;5E-06;2E-05'"
GLMD_2B = """--py_file=distill/finetune.py --gpus=0,1,2,3,4,5,6,7 --model=model_blocklm_10B
    --num-layers=36 --hidden-size=2048 --num-attention-heads=32
    --model_path=checkpoints/distill/glmd-vc_MP4 --model-parallel-size=2 --task_t_load=10b
    --tasks=record --student_model=logitsdistil --distill_temperature=15 --logitsdistil_mask_pad
    --again_1__distill_ft_soft --again_1__distill_temperature=1 --again_1__logitsdistil_wo_inter
    --seed=1234 --ds_train_micro_batch_size_per_gpu=1 --ds_gradient_accumulation_steps=4
    --ds_optimizer__params__lr=1E-05 --eval-batch-size=4"""
TINYBERT = """--py_file=distill/finetune.py --gpus=0,1,2,3,4,5,6,7 --model=block_tiny6
    --model_path=checkpoints/distill/tinybert --task_t_load=large
    --tasks=record,copa,wsc,rte,boolq,wic,cb,multirc,wsc_generative --num-attention-heads=16
    --student_model=tinybert --again_1__distill_ft_soft --again_1__tinybert_wo_inter --seed=6899
    --ds_train_micro_batch_size_per_gpu='32;32;32;32;16;16;16;16;16'
    --ds_gradient_accumulation_steps=1 --rate_ds_train_micro_batch_size_per_gpu=0.125
    --rate_ds_gradient_accumulation_steps=1
    --ds_optimizer__params__lr='1E-05;5E-06;2E-05;1E-05;1E-05;1E-05;2E-05;2E-05;5E-06'"""
STAGES = "--student_model=kd --distill_ft_soft --task_t_load=base_large --again_1__distill_ft_hard"
STAGES += " --again_1__task_t_load=large_ibglm --again_2__lr=3e-5"


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A folder with the presets, in which DeepSpeed's JSON files may be written."""
    (tmp_path / "config").symlink_to(ROOT / "config")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems(text: str) -> list[str]:
    """What the programs would say of all commands."""
    found = []
    for job in jobs(text):
        for stage in job.stages:
            if stage.deepspeed is not None:
                files.write_json(*stage.deepspeed)
            found += command_problems(stage.command)
    return found


def keys(script: str) -> str:
    return ",".join(key for key, task in tasks().items() if task["script"] == script)


@pytest.mark.parametrize(
    ("text", "number"),
    [(f"{GLMD} {RATES}", 18), (GLMD_2B, 2), (TINYBERT, 18), (PLAIN, 9)],
    ids=["GLMD", "2B", "TinyBERT", "plain"],
)
def test_the_seeds_commands_print_runs_that_start(world, text, number):
    assert problems(text) == []
    assert sum(len(job.stages) for job in jobs(text)) == number


def test_every_task_and_every_model_parses(world):
    for script in ("finetune_seq2seq", "finetune_blank", "evaluate_lm"):
        assert problems(f"--script={script} --tasks={keys(script)}") == []
    for model in models():
        assert problems(f"--script=evaluate_lm --tasks=zero_lm --model={model}") == []
    more = "--epoch_type=XXLARGE_EPOCH --del_fp16 --model-parallel-size=2 --gpus=0,1"
    assert problems(f"--tasks=copa,wsc,record --model=model_blocklm_large {more} {STAGES}") == []
    assert problems(f"--script=evaluate_lm --tasks=zero_lm_uni {more}") == []


def test_language_models_are_scored_on_one_file():
    actual = flags("--script=evaluate_lm --tasks=zero_lm_uni")
    assert actual["--valid-data"] == "../GLM/data/english_data/NLG/bert-large-test.txt"
    assert (actual["--overlapping-eval"], actual["--seq-length"]) == ("256", "512")
    assert (actual["--eval-batch-size"], actual["--epochs"]) == ("16", "0")
    assert "--unidirectional" in actual
    assert not {"--data-dir", "--lr", "--batch-size", "--cloze-eval"} & actual.keys()
    assert actual["--save"].endswith("/evaluate_lm/language_model")


def test_summaries_have_positions_for_their_sources():
    text = (
        "--script=finetune_seq2seq --tasks=seq_cnndm_org,seq_xsum,seq_gigaword,seq_cnndm --gpus=0,1"
    )
    first, xsum, gigaword, cnndm = (flags(text, job=n) for n in range(4))
    assert [f["--max-position-embeddings"] for f in (first, gigaword)] == ["608", "512"]
    assert [f["--batch-size"] for f in (first, gigaword)] == ["8", "16"]  # of each GPU
    assert [f["--epochs"] for f in (first, xsum, gigaword, cnndm)] == ["10", "6", "10", "15"]
    assert [f["--lr"] for f in (first, xsum, gigaword, cnndm)] == ["1e-5", "1e-5", "3e-5", "3e-5"]
    assert cnndm["--data-dir"].endswith("NLG/cnn_dm")
    more = "--mt_max_position_embeddings=512:1024 --src-seq-length=700"
    assert flags(f"{text} {more}")["--mt_max_position_embeddings"] == "700:1024"
    blank = flags("--script=finetune_blank --tasks=seq_blank --mask_ratio=0.3")
    assert blank["--blank-maskratio"] == "0.3"
    assert blank["--experiment-name"].startswith("blank-tiny6-blank-0.3-")


def test_what_test_prints_is_what_a_run_starts(world, monkeypatch, capsys):
    words, started = shlex.split(f"{GLMD} {RATES}"), []
    monkeypatch.setattr(seed_plan, "Clock", lambda: Clock(lambda: START))
    auto_tune.run_tasks([*words, "--test"])
    printed = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]

    def attempts(_: Runner, command: Command, name: str) -> bool:
        started.append(shlex.split(command.text))
        return True

    monkeypatch.setattr(Runner, "_attempts", attempts)
    monkeypatch.setattr(Runner, "_collect", lambda *_: None)
    monkeypatch.setattr(Runner, "prepare", lambda _: None)  # the commands are parsed above
    auto_tune.run_tasks(words)
    assert len(printed) == 18
    assert [without_port(line) for line in started] == [without_port(line) for line in printed]


def without_port(words: list[str]) -> list[str]:
    """A command line; a port is drawn anew each time."""
    return [word for word in words if not word.startswith("--master_port=")]
