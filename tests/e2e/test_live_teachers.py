"""Programs with teachers that are trained: alone first, then with a student, resumed, restored."""

import json

import pytest
import torch

from tests.e2e import world as w

TWO = ["--mt_num_layers=2:1", "--teacher_hidden_size=16", "--teacher_num_attention_heads=2"]
TWO += ["--teacher_max_position_embeddings=64", "--student_model=kd"]
LIVE = ["--mt_has_grad", "--mt_has_loss"]
SOFT = ["--distill_ft_soft", "--distill_ft_hard"]
WEIGHTS = "mp_rank_00_model_states.pt"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two teachers that were fine-tuned together, without a student, by two processes."""
    folder = w.make_world(tmp_path_factory.mktemp("world"))
    flags = [*w.finetuning(folder), *TWO, "--teacher_random_para", *LIVE, "--epochs=3"]
    w.forked(2, "finetune", *flags, "--student_use_empty_glm", "--experiment-name=co")
    return folder


def weights(folder, name, tag="best"):
    return torch.load(folder / "runs" / name / tag / WEIGHTS, weights_only=True)["module"]


def log(folder, name):
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_teachers_alone(world):
    kept = weights(world, "co")
    assert all(name.startswith("student.teacher_model_") for name in kept)
    for t_no in (0, 1):
        name = f"teacher_loss/hard_t{t_no}"
        losses = [row[name] / row["Train/hard_loss"] for row in log(world, "co") if name in row]
        assert losses[-1] < 0.95 * losses[0], "relative to a constant answer"
    state = torch.load(world / "runs/co/best" / WEIGHTS, weights_only=True)
    assert state["iteration"] == 15, "the last weights"


def test_a_student_learns_from_them_and_trains_them_on(world):
    joint = f"--mt_load_from_s={world / 'runs/co'}"
    rate = ["--lr-decay-style=constant", "--warmup=0"]  # the same, however long a run is
    base = [*w.finetuning(world), "--student_model=kd", *SOFT, joint, *LIVE, *rate]
    w.forked(1, "finetune", *base, "--experiment-name=s", "--save-epoch=1", "--epochs=2")
    before, after = weights(world, "co"), weights(world, "s")
    assert {k for k in after if k.startswith("student.")} == set(before)
    assert all(not torch.equal(after[k], before[k]) for k in before)
    half = [*base, "--experiment-name=h", "--save-epoch=1"]
    w.forked(1, "finetune", *half, "--epochs=1")
    resumed = [*half, "--epochs=2", f"--load={world / 'runs/h'}"]
    w.forked(1, "finetune", *resumed)
    one, other = (weights(world, name, "10") for name in "sh")
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_frozen_ones_stay(world):
    joint = f"--mt_load_from_s={world / 'runs/co'}"
    flags = [*w.finetuning(world), "--student_model=kd", *SOFT, joint, "--teacher_offload=cpu"]
    told = w.forked(1, "finetune", *flags, "--experiment-name=f")
    assert "--teacher_offload=cpu: has no effect on a CPU" in told
    assert not any(key.startswith("student.") for key in weights(world, "f"))
