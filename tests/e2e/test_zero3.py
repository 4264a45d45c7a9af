"""The programs under ZeRO-3 on two processes: everything partitioned, offloaded, recomputed."""

import json

import pytest

from distill.engine import files
from tests.e2e.world import finetuning, forked, make_world, pretraining, teacher, torchrun

pytestmark = pytest.mark.e2e

ZERO = {"stage": 3, "stage3_param_persistence_threshold": 0}
ZERO |= {"offload_optimizer": {"device": "cpu"}}


def engine(world, **zero):
    """The flags of DeepSpeed with its JSON."""
    content = json.loads((world / "deepspeed.json").read_text())
    content |= {"zero_optimization": ZERO | zero}
    content |= {"activation_checkpointing": {"cpu_checkpointing": True}}
    file = world / "zero3.json"
    file.write_text(json.dumps(content))
    flags = ["--deepspeed", f"--deepspeed_config={file}"]
    return [*flags, "--checkpoint-activations", "--deepspeed-activation-checkpointing"]


def test_pretraining_resumes_and_a_student_is_evaluated(tmp_path):
    world = make_world(tmp_path)
    runs, flags = world / "runs", engine(world)
    first = [*pretraining(world, 2), "--experiment-name=t", "--train-iters=4", *flags]
    forked(2, "pretrain", *first)
    weights = files.read_tensors(runs / "t" / "4" / "mp_rank_00_model_states.pt")["module"]
    assert weights["word_embeddings.weight"].shape[1] == 16  # whole, as on every other stage
    again = [*pretraining(world, 2), "--train-iters=6", f"--load={runs / 't'}", *flags]
    told = forked(2, "pretrain", *again)
    assert "goes on at iteration 4" in told
    student = [*finetuning(world), *teacher(runs / "t"), "--experiment-name=s", *flags]
    student += ["--student_model=tinybert", "--distill_ft_soft", "--student_truncate_tn=0"]
    forked(2, "finetune", *student)
    summary = json.loads((runs / "s" / "summary.json").read_text())
    assert summary["engine"] == "deepspeed stage 3"
    saved = files.read_tensors(runs / "s" / "best" / "mp_rank_00_model_states.pt")["module"]
    assert summary["parameters"] == sum(value.numel() for value in saved.values())


def test_another_stage_cannot_go_on_and_nothing_is_written(tmp_path):
    world = make_world(tmp_path)
    first = [*pretraining(world), "--experiment-name=t", "--train-iters=2"]
    forked(2, "pretrain", *first, *engine(world))
    config = (world / "runs" / "t" / "config.json").read_bytes()
    again = [*pretraining(world), f"--load={world / 'runs' / 't'}", "--train-iters=3"]
    done = torchrun("pretrain", *again, *engine(world, stage=2))
    assert done.returncode != 0
    assert (
        "was written by the engine 'deepspeed stage 3', this run has 'deepspeed stage 2'"
        in done.stderr
    )
    assert (world / "runs" / "t" / "config.json").read_bytes() == config
