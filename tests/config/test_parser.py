"""Mistakes on the command line, abbreviations, --args_file, --help."""

import json
import subprocess
import sys

import pytest

from config import parse_args
from tests.config.common import METHODS, PRETRAIN, problems
from tests.house import ROOT


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--num-layers=x", "--num-layers=x: must be an integer"),
        ("--lr=fast", "--lr=fast: must be a number"),
        ("--lr", "--lr: needs a value"),
        ("--fp16=true", "--fp16=true: takes no value"),
        (
            "--pool-token=x",
            "--pool-token=x: must be one of 'start', 'pad', 'cls'",
        ),
        ("--num_layers=2", "--num_layers: is not a flag; did you mean --num-layers?"),
        ("--student-model=kd", "--student-model: is not a flag; did you mean --student_model?"),
        ("--num-layer=2", "--num-layer: is not a flag; did you mean --num-layers?"),
        ("--xyzzy", "--xyzzy: is not a flag; see --help"),
        ("stray", "stray: belongs to no flag"),
    ],
)
def test_mistakes(word, expected):
    assert problems([word]) == (expected,)


def test_all_unknown_flags_at_once():
    assert len(problems(["--foo", "--bar=1", "--num_layers=2"])) == 3


def test_all_wrong_values_at_once():
    argv = ["--num-layers=x", "--foo", "--lr=fast", "--pool-token=y", "--num-layers=3"]
    assert problems(argv) == (
        "--num-layers=x: must be an integer",
        "--lr=fast: must be a number",
        "--pool-token=y: must be one of 'start', 'pad', 'cls'",
        "--foo: is not a flag; see --help",
    )
    assert problems(["--num-layers=x", "--lr"]) == (
        "--num-layers=x: must be an integer",
        "--lr: needs a value",
    )


def test_wrong_values_beside_an_args_file_are_told_once(tmp_path):
    (tmp_path / "flags.json").write_text('{"--lr": "x"}')
    found = problems([f"--args_file={tmp_path}/flags.json", "--num-layers=y"])
    assert found == ("--lr=x: must be a number", "--num-layers=y: must be an integer")


def test_args_file(tmp_path):
    file = tmp_path / "flags.json"
    flags = {"--num-layers": 3, "hidden_size": 32, "num_attention_heads": 4, "--bf16": True}
    flags |= {"--train-data": ["a", "b"], "--fp16": False, "--save": None, "--train-iters": 5}
    file.write_text(json.dumps(flags | {"bert_prob": 1}))
    argv = [f"--args_file={file}", "--num-layers=7"]
    run = parse_args(argv, program="pretrain", methods=METHODS)
    assert (run.model.num_layers, run.model.hidden_size) == (7, 32)
    assert run.data.train_data == ("a", "b")
    assert run.precision.bf16
    assert run.flags["--num-layers"] == 7


def test_args_file_takes_the_config_of_a_run(tmp_path):
    argv = [*PRETRAIN, "--num-layers=3", "--no-shuffle-block", "--lr=3e-4", "--local_rank=1"]
    first = parse_args(argv, program="pretrain", methods=METHODS)
    (tmp_path / "config.json").write_text(first.to_json())
    argv = ["--args_file", str(tmp_path / "config.json")]
    second = parse_args(argv, program="pretrain", methods=METHODS)
    assert second.flags == first.flags
    assert second.parallel.local_rank is None
    assert second.model == first.model


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"--lr": 1,\n "x" 2}', "line 2, column 6"),
        ("[1]", "must hold one json object"),
        ('{"flags": 3}', "is not a mapping"),
        ('{"--lrr": 3}', "--lrr: is not a flag; did you mean --lr?"),
        ('{"--lr": "x"}', "--lr=x: must be a number"),
        (None, "cannot be read (No such file"),
    ],
)
def test_bad_args_files(tmp_path, content, expected):
    file = tmp_path / "flags.json"
    if content is not None:
        file.write_text(content)
    (problem,) = problems([*PRETRAIN, f"--args_file={file}"])
    assert expected in problem


def test_help_is_grouped(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_args(["--help"], program="finetune", methods=METHODS)
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(f"\n{title}:" in text for title in ("model", "optimizer", "teacher", "fine-tuning"))
    assert "--pretrained-bert" not in text  # of a feature not built
    assert "--DDP-impl" not in text  # without effect


def test_config_is_light():
    code = "import sys, config, config.run; print(sorted(set(sys.modules) & {'torch', 'numpy'}))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
