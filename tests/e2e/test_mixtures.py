"""A user's own method, mixtures and repeated passes through the programs, and on resuming."""

import json
import re

import pytest

from distill import finetune, pretrain
from distill.engine.files import read_tensors
from distill.registry import METHODS
from tests.e2e import world as w

METHOD = """
from dataclasses import dataclass
from torch import nn
from config import ArgGroup, flag
from distill.capture import output
from distill.student import GLMStudent

@dataclass(frozen=True, kw_only=True)
class OwnArgs(ArgGroup):
    own_rate: float = flag(1.0, "a factor")

class Own(GLMStudent):
    Args = OwnArgs

    def __init__(self, language_model, args):
        super().__init__(language_model, args)
        self.fit = nn.Linear(16, 16, bias=False)
        nn.init.eye_(self.fit.weight)

    def pairs(self, t_no):
        yield "output", output(), output()

    def loss(self, name, point, student, teacher, ctx):
        student = self.fit(student)
        return self.args.method.own_rate * super().loss(name, point, student, teacher, ctx)
"""
NAME = "my_methods/own.py:Own"
SOFT = ["--distill_pt_soft", "--distill_pt_hard", "--distill_temperature=2"]
AGAIN = ["--forward_repeat_num=1", "--distill_random_data=replace", "--distill_random_data_n=1"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The small world with a teacher of four layers, as the working folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in w.LAUNCHER_VARIABLES:
            patch.delenv(name, raising=False)
        folder = w.make_world(tmp_path_factory.mktemp("world"))
        (folder / "my_methods").mkdir()
        (folder / "my_methods" / "own.py").write_text(METHOD)
        patch.chdir(folder)
        known = dict(METHODS)
        steps = ["--train-iters=2", "--experiment-name=teacher"]
        pretrain.main([*w.pretraining(folder, layers=4), *steps])
        yield folder
        METHODS.clear()
        METHODS.update(known)


def pretraining(world, name: str, steps: int, *flags: str) -> list[str]:
    """A command that logs and saves every step, with dropout."""
    words = [f for f in w.pretraining(world, layers=2) if "--log-interval" not in f]
    words += ["--log-interval=1", "--save-interval=3", "--lr-decay-iters=6", "--eval-iters=1"]
    words += w.teacher(world / "runs" / "teacher", layers=4)
    return [*words, f"--train-iters={steps}", f"--experiment-name={name}", *flags]


def rows(world, name: str) -> list[dict]:
    lines = (world / "runs" / name / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    times = ("Train/elapsed_time", "Train/tokens_per_second")
    return [{k: v for k, v in row.items() if k not in times} for row in found]


def weights(world, name: str, tag: int):
    file = world / "runs" / name / str(tag) / "mp_rank_00_model_states.pt"
    return read_tensors(file)["module"]


RUNS = {
    "own": [f"--student_model={NAME}", "--own_rate=3", *SOFT],
    "kd twice": ["--student_model=kd", *SOFT, *AGAIN],
    "mix": [
        "--student_model=mixbaseline",
        f"--mixbaseline_inter_bl={NAME},TinyBERT,SID,MGSKD",
        "--mixbaseline_pre_bl_pt_soft=KD",
        "--mixbaseline_weights=1,0.5,2,1,1",
        "--own_rate=2",
        "--mgskd_multi_heads=2",
        "--tinybert_random_layers",
        "--tinybert_random_e=0",
        "--tinybert_random_i=2",
        *SOFT,
        *AGAIN,
        "--distill_random_data_method=sample",
        "--gradient-accumulation-steps=2",
    ],
}


@pytest.mark.parametrize("name", RUNS)
def test_resuming_is_invisible(world, name):
    flags, run = RUNS[name], name.replace(" ", "-")
    pretrain.main(pretraining(world, run, 6, *flags))
    load = f"--load={world / 'runs' / run / '3'}"
    pretrain.main(pretraining(world, f"{run}-again", 6, *flags, load))
    whole, rest = ([r for r in rows(world, n) if "Train/lr" in r] for n in (run, f"{run}-again"))
    assert [r["iteration"] for r in rest] == [4, 5, 6]
    assert rest == whole[3:]
    expected, actual = (weights(world, n, 6) for n in (run, f"{run}-again"))
    assert expected.keys() == actual.keys()
    assert all(value.equal(actual[key]) for key, value in expected.items())


def test_terms_of_a_mix_and_of_its_passes_are_in_the_log(world):
    (*_, last) = [row for row in rows(world, "mix") if "Train/lr" in row]
    labels = ("Own", "TinyBERT", "SID", "MGSKD")
    for suffix in ("_t0", "_t0_repeat1"):
        assert {f"inter_loss/{label}{suffix}" for label in labels} <= last.keys()
        assert f"pre_loss/KD/pt_hard{suffix}" in last
    assert last["inter_loss/Own_t0"] == pytest.approx(last["inter_loss/Own/output_t0"])
    own = weights(world, "mix", 6)
    assert {"student.Own.fit.weight", "student.TinyBERT.fit_dense.bias"} <= own.keys()


def test_an_own_method_goes_on_by_its_saved_arguments(world):
    config = json.loads((world / "runs" / "own" / "config.json").read_text())
    assert config["distill"]["student_model"] == NAME
    assert config["method"] == {"own_rate": 3.0}
    METHODS.pop(NAME)  # as in a new process
    file = f"--args_file={world / 'runs' / 'own' / 'config.json'}"
    pretrain.main([file, "--experiment-name=again", "--train-iters=3"])
    assert rows(world, "again")[0] == rows(world, "own")[0]


def test_an_own_method_is_fine_tuned_and_analysed(world):
    flags = [*w.finetuning(world, layers=2), *w.teacher(world / "runs" / "teacher", layers=4)]
    flags += [f"--load-pretrained={world / 'runs' / 'own'}", f"--student_model={NAME}"]
    flags += ["--distill_ft_soft", "--distil_analysis_inter", "--experiment-name=tuned"]
    finetune.main(flags)
    told = [row for row in rows(world, "tuned") if "Train/lr" in row]
    assert all(row["inter_loss/output_t0"] > 0 for row in told)
    assert len(told) == 5  # 40 mirrored examples, 4 a step, logged every second step
    for row in told:
        assert row["analysis/hidden_states.2/mse_t0"] > 0
        assert row["analysis/attention_scores.1/kl_T10_t0"] > 0
    summary = json.loads((world / "runs" / "tuned" / "summary.json").read_text())
    assert 0 <= summary["val"]["accuracy"] <= 100


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--student_model=my_methods/gone.py:Own"], "there is no file"),
        (["--student_model=my_methods/own.py:Gone"], "Gone is not in that file; there are Own"),
        (["--student_model=own.pi:Own"], "path/to/file.py:ClassName"),
        (["--student_model=mixbaseline", "--mixbaseline_inter_bl=PKD,x"], "'x' is no method"),
        (
            ["--student_model=mixbaseline", "--mixbaseline_inter_bl=PKD,CKD"]
            + ["--mixbaseline_weights=1"],
            "has 1 values, .* name 2 methods",
        ),
    ],
)
def test_mistakes_end_the_program_with_one_message(world, capsys, flags, words):
    with pytest.raises(SystemExit) as ended:
        pretrain.main(pretraining(world, "bad", 2, *flags))
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert told.count("error: ") == 1
    assert re.search(words, told), told
