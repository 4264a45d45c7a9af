"""RunArgs: the tree, the seed's flat names, json, names of runs."""

import copy
import dataclasses
import pickle
import re
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path

import pytest

from config import ArgGroup, ConfigError, NoArgs, RunArgs, flag, parse_args
from tests.config.common import DISTIL, METHODS, PRETRAIN, finetune, pretrain, problems


@dataclass(frozen=True, kw_only=True)
class ToyArgs(ArgGroup):
    """Flags of a method."""

    title = "toy"
    toy_weight: float = flag(1.0, "weight")
    toy_layers: tuple[int, ...] | None = flag(None, "layers")

    def __post_init__(self):
        if self.toy_weight < 0:
            raise ConfigError(f"--toy_weight={self.toy_weight}: must not be negative")


TOY = METHODS | {"toy": ToyArgs}


def full_run() -> RunArgs:
    words = ["--student_model=toy", "--toy_weight=2", "--toy_layers", "1", "2", "--num-layers=2"]
    words += ["--hidden-size=32", "--num-attention-heads=4", "--teacher_hidden_size=64"]
    words += ["--teacher_random_para", "--compat=D2", "--save=out", "--experiment-name=e"]
    return pretrain(*words, methods=TOY)


def test_the_tree():
    run = full_run()
    assert (run.model.num_layers, run.model.hidden_size) == (2, 32)
    assert run.teachers[0].hidden_size == 64
    assert run.teachers[0].num_layers == 24
    assert run.method == ToyArgs(toy_weight=2.0, toy_layers=(1, 2))
    assert "D2" in run.compat
    assert "D3" not in run.compat
    assert run.run_dir == Path("out/e")
    assert run.deepspeed is None


def test_without_a_method_there_is_no_teacher():
    run = pretrain()
    assert run.teachers == ()
    assert run.method == NoArgs()
    assert run.run_dir is None


def test_flat_names_of_the_seed():
    run = full_run()
    expected = {
        "num_layers": 2,
        "teacher_hidden_size": 64,
        "distill_temperature": 1.0,
        "toy_weight": 2.0,
        "student_model": "toy",
        "model_parallel_size": 1,
        "block_lm": True,
        "finetune": False,
    }
    assert {name: getattr(run, name) for name in expected} == expected
    assert finetune().finetune
    assert pretrain().teacher_hidden_size == 1024  # as in the seed, without a teacher too


@pytest.mark.parametrize("name", ["no_such_thing", "__deepcopy__", "__wrapped__", "_x", "tinybert"])
def test_unknown_names_are_attribute_errors(name):
    with pytest.raises(AttributeError, match=name):
        getattr(full_run(), name)


def test_everything_is_frozen():
    run = full_run()
    with pytest.raises(FrozenInstanceError):
        run.program = "finetune"
    with pytest.raises(FrozenInstanceError):
        run.model.num_layers = 3
    with pytest.raises(FrozenInstanceError):
        run.num_layers = 3


def test_copies_are_equal():
    run = full_run()
    assert pickle.loads(pickle.dumps(run)) == run
    assert copy.deepcopy(run) == run
    changed = dataclasses.replace(run, model=dataclasses.replace(run.model, vocab_size=64))
    assert (changed.model.vocab_size, changed.train) == (64, run.train)
    assert dataclasses.asdict(run)["model"]["num_layers"] == 2


@pytest.mark.parametrize("words", [[], DISTIL, ["--deepspeed", "--deepspeed_config=config/x"]])
def test_json_round_trip(words, tmp_path):
    config = tmp_path / "ds.json"
    config.write_text('{"train_micro_batch_size_per_gpu": 3, "optimizer": {"params": {}}}')
    words = [word.replace("config/x", str(config)) for word in words]
    run = pretrain(*words)
    assert RunArgs.from_json(run.to_json(), METHODS) == run
    assert RunArgs.from_json(run.to_dict()) == run


def test_json_of_a_method_with_flags():
    run = full_run()
    assert RunArgs.from_json(run.to_json(), TOY) == run
    assert RunArgs.from_json(run.to_json()).method == NoArgs()  # where the method is not known


def test_json_of_a_later_version():
    tree = pretrain().to_dict()
    tree["model"]["future"] = 1
    tree["future"] = {}
    assert RunArgs.from_json(tree) == pretrain()


def test_problems_of_all_groups_come_at_once():
    argv = ["--num-layers=0", "--attention-dropout=2", "--student_model=toy", "--toy_weight=-1"]
    found = "\n".join(problems([*argv, "--pretrained-bert"], methods=TOY))
    for flag_ in ("--num-layers=0", "--attention-dropout=2.0", "--toy_weight=-1.0"):
        assert flag_ in found
    assert "--pretrained-bert" in found


OWN = "a class of your own is path/to/file.py:ClassName"


def test_an_unknown_method_lists_the_known():
    argv = [*PRETRAIN, "--teacher_random_para", "--student_model=kdd"]
    expected = f"--student_model=kdd: is no method; known are kd, toy; {OWN}"
    assert problems(argv, methods=TOY) == (expected,)


@pytest.mark.parametrize("mark", ["{time}", "\u81ea\u52a8\u65f6\u95f4"])
def test_the_time_in_a_name(mark):
    name = pretrain(f"--experiment-name=a-{mark}-b").train.experiment_name
    assert re.fullmatch(r"a-\d{6}_\d{6}-b", name)


@pytest.mark.parametrize(
    ("load", "words", "expected"),
    [
        ("run1", [], "run1"),
        ("run1/7", [], "run1"),
        ("run1", ["--experiment-name={time}"], "run1"),
        ("run1", ["--experiment-name=other"], "other"),
        ("run1", ["--new-save-directory"], "gpt-345M"),
    ],
)
def test_a_resumed_run_goes_on_in_its_folder(tmp_path, load, words, expected):
    (tmp_path / "run1/7").mkdir(parents=True)
    (tmp_path / "run1/latest_checkpointed_iteration.txt").write_text("7")
    run = pretrain(f"--load={tmp_path / load}", f"--save={tmp_path}", *words)
    assert run.run_dir == tmp_path / expected


def test_check_can_be_left_out():
    run = parse_args(
        ["--deepspeed", "--num-layers=2"], program="pretrain", methods=METHODS, check=False
    )
    assert run.model.num_layers == 2
    with pytest.raises(ConfigError):
        parse_args(["--num-layers=0"], program="pretrain", methods=METHODS, check=False)
