"""The program on text that goes on: two processes, a teacher, and a run that is resumed."""

import json

import pytest
import torch

from distill.engine import files
from tests.e2e import world as w

pytestmark = pytest.mark.e2e

BLANKS = ("--block-lm", "--bert-prob=1.0")


def command(world):
    """Distillation from a random teacher, both with a memory."""
    flags = [flag for flag in w.pretraining(world) if flag not in BLANKS]
    flags += ["--transformer-xl", "--mem-length=20", "--gradient-accumulation-steps=2"]
    flags += ["--student_model=kd", "--distill_pt_soft", "--distill_pt_hard"]
    flags += ["--teacher_random_para", "--teacher_num_layers=2", "--teacher_hidden_size=16"]
    flags += ["--teacher_num_attention_heads=2", "--teacher_max_position_embeddings=64"]
    return [*flags, "--train-iters=6", "--save-interval=3", "--eval-interval=3"]


def test_a_resumed_run_is_the_one_that_was_not_broken_off(tmp_path):
    world = w.make_world(tmp_path)
    runs = world / "runs"
    told = w.succeeded(w.torchrun("pretrain", *command(world), "--experiment-name=whole"))
    assert "has no effect" not in told
    again = ["--experiment-name=again", f"--load={runs / 'whole' / '3'}"]
    told = w.succeeded(w.torchrun("pretrain", *command(world), *again))
    assert "goes on at iteration 3" in told
    assert "empty memory" not in told
    whole, resumed = (
        files.read_tensors(runs / name / "6" / "mp_rank_00_model_states.pt")["module"]
        for name in ("whole", "again")
    )
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())
    scores = [json.loads((runs / name / "summary.json").read_text()) for name in ("whole", "again")]
    assert scores[0]["val"] == scores[1]["val"]
    assert set(scores[0]["val"]) == {"loss", "ppl"}
    for rank in range(2):
        content = files.read_tensors(runs / "whole" / "6" / f"text_memory_rank_0{rank}.pt")
        student = content["models"]["student"]
        assert [states["states"][0].shape for states in student.values()] == [(4, 20, 16)] * 2
        assert len(content["models"]["teacher_0"][1]["states"]) == 3
