"""Every scheme of several teachers through the programs: two real tiny teachers, six steps."""

import json
import re

import pytest

from distill import finetune, pretrain
from distill.engine.files import read_tensors
from tests.e2e import world as w

SOFT = ["--student_model=kd", "--distill_ft_soft", "--distill_pt_soft", "--distill_temperature=2"]
PKD = ["--student_model=pkd", "--distill_ft_soft", "--pkd_alpha=1", "--pkd_beta=1"]
SCHEMES = {
    "avg": ["--multi_teacher_model=avg", *SOFT, "--distill_ft_hard", "--avgmt_inter_checkpoint"],
    "dgkd": [*SOFT, "--avgmt_sum_loss", "--avgmt_teacher_survival_p=0.5"],
    "mt_bert": ["--multi_teacher_model=mt_bert", *PKD, "--mt_bert_fit_teacher"],
    "uncertainty": ["--multi_teacher_model=uncertainty", *SOFT, "--uncertainty_hard"],
    "rl_kd": ["--multi_teacher_model=rl_kd", *SOFT, "--rl_kd_semantic_model=0"],
    "mixmt": ["--multi_teacher_model=mixmt", "--mixmt_model=Uncertainty,AvgTeacher", *SOFT],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The small world with teachers of 2 and 3 layers, 16 and 24 wide."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in w.LAUNCHER_VARIABLES:
            patch.delenv(name, raising=False)
        folder = w.make_world(tmp_path_factory.mktemp("world"))
        patch.chdir(folder)
        for name, layers, width in (("first", 2, 16), ("second", 3, 24)):
            flags = [f"--hidden-size={width}", f"--experiment-name={name}", "--train-iters=2"]
            pretrain.main([*w.pretraining(folder, layers), *flags])
        yield folder


def teachers(world) -> list[str]:
    runs = world / "runs"
    return [
        f"--mt_load_pretrained={runs / 'first'}:{runs / 'second'}",
        "--mt_num_layers=2:3",
        "--mt_hidden_size=16:24",
        "--mt_num_attention_heads=2:2",
        "--mt_max_position_embeddings=64:64",
    ]


def finetuning(world, name: str, *flags: str) -> list[str]:
    words = [f for f in w.finetuning(world, layers=2) if "--epochs" not in f]
    words = [f for f in words if "--log-interval" not in f]
    steps = ["--train-iters=6", "--log-interval=1", "--save-interval=3", "--seed=5"]
    return [*words, *steps, *teachers(world), f"--experiment-name={name}", *flags]


def rows(world, name: str) -> list[dict]:
    lines = (world / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "Train/lr" in row]


def losses(found: list[dict]) -> list[dict]:
    """What does not depend on time."""
    clocks = ("Train/elapsed_time", "Train/tokens_per_second")
    return [{k: v for k, v in row.items() if k not in clocks} for row in found]


def weights(world, name: str, tag: int):
    return read_tensors(world / "runs" / name / str(tag) / "mp_rank_00_model_states.pt")["module"]


@pytest.mark.parametrize("name", SCHEMES)
def test_fine_tuning_and_resuming(world, name):
    finetune.main(finetuning(world, name, *SCHEMES[name]))
    told = losses(rows(world, name))
    assert [row["iteration"] for row in told] == list(range(1, 7))
    seen = {key for row in told for key in row}
    assert "teacher_loss/teacher_1_t1" in seen
    assert ("teacher_loss/teacher_0_t0" in seen) == (name != "rl_kd")
    load = f"--load={world / 'runs' / name / '3'}"
    finetune.main(finetuning(world, f"{name}-again", *SCHEMES[name], load))
    assert losses(rows(world, f"{name}-again")) == told[3:]
    expected, actual = (weights(world, n, 6) for n in (name, f"{name}-again"))
    assert expected.keys() == actual.keys()
    assert all(value.equal(actual[key]) for key, value in expected.items())


def test_what_combiners_learn_is_in_the_checkpoint(world):
    for name, keys in (
        ("mt_bert", {"fit_dense_0.weight", "fit_dense_1.bias"}),
        ("rl_kd", {"agent_semantic_mt_loss.weight", "agent_mt_soft.weight"}),
    ):
        finetune.main(finetuning(world, f"{name}-saved", *SCHEMES[name]))
        first, last = (weights(world, f"{name}-saved", tag) for tag in (3, 6))
        own = {k.removeprefix("student.multi_teacher_model.") for k in last}
        assert keys <= own
        assert all(
            not first[k].equal(last[k])
            for k in (f"student.multi_teacher_model.{key}" for key in keys)
        )


def test_pretraining_on_two_data_parallel_ranks(world):
    words = [f for f in w.pretraining(world, layers=2) if "--log-interval" not in f]
    words += [*teachers(world), *SOFT, "--distill_pt_hard", "--avgmt_teacher_survival_p=0.7"]
    words += ["--train-iters=6", "--log-interval=1", "--save-interval=3", "--experiment-name=two"]
    w.succeeded(w.torchrun("pretrain", *words, "--batch-size=2"))
    pretrain.main([*words, "--experiment-name=one", "--batch-size=4"])
    both = [rows(world, name) for name in ("two", "one")]
    assert len(both[0]) == len(both[1]) == 6
    one, two = (weights(world, name, 6) for name in ("one", "two"))
    assert one.keys() == two.keys()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--multi_teacher_model=rl_kd", *SOFT], "--rl_kd_semantic_model: missing"),
        (["--multi_teacher_model=mixmt", *SOFT], "--mixmt_model: missing"),
        (["--multi_teacher_model=sum", *SOFT], "--multi_teacher_model=sum: is no combiner"),
        (
            ["--multi_teacher_model=mt_bert", *PKD, "--distill_ft_hard"],
            "mt_bert adds the hard loss itself",
        ),
        (PKD, "pkd compares hidden states as they are"),
    ],
)
def test_mistakes_end_the_program_with_one_message(world, capsys, flags, words):
    with pytest.raises(SystemExit) as ended:
        finetune.main(finetuning(world, "bad", *flags))
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert told.count("error: ") == 1
    assert re.search(words, told), told
