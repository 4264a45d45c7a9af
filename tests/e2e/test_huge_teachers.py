"""A teacher in shards, cut over two data-parallel processes."""

import json

import pytest

import change_mp
from distill import pretrain
from tests.e2e import world as w

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The small world with a teacher, in one and in two shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in w.LAUNCHER_VARIABLES:
            patch.delenv(name, raising=False)
        folder = w.make_world(tmp_path_factory.mktemp("world"))
        patch.chdir(folder)
        pretrain.main([*w.pretraining(folder, 2), "--experiment-name=t", "--train-iters=2"])
        change_mp.main([str(folder / "runs" / "t"), "2"])
        yield folder


def losses(world, name):
    lines = (world / "runs" / name / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row["Train/train_loss"] for row in rows if "Train/train_loss" in row]


def command(world, name, teacher, *flags):
    soft = ["--student_model=kd", "--distill_pt_soft", "--distill_pt_hard", "--train-iters=4"]
    json_file = ["--deepspeed", f"--deepspeed_config={world / 'deepspeed.json'}"]
    return [
        *w.pretraining(world), *soft, *json_file, *w.teacher(teacher), f"--experiment-name={name}",
        "--log-interval=1", *flags,
    ]  # fmt: skip


def test_a_cut_teacher_teaches_the_same(world):
    whole, cut = world / "runs" / "t", world / "runs" / "t_MP2"
    w.forked(2, "pretrain", *command(world, "whole", whole))
    w.forked(2, "pretrain", *command(world, "cut", cut, "--teacher_zero_stage=3"))
    expected = losses(world, "whole")
    assert len(expected) == 4
    assert losses(world, "cut") == expected
    told = w.python("pretrain", *command(world, "no", cut, f"--load-pretrained={cut}"))
    assert told.returncode == 2
    assert f"'python change_mp.py {cut} 1' and give --load-pretrained={cut}_MP1" in told.stderr
