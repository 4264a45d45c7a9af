"""The chain's commands, what it skips, what it refuses, and where it stops; programs of our own."""

import json
import os
import sys
from argparse import ArgumentTypeError
from dataclasses import replace
from pathlib import Path

import pytest

from scripts import chain
from scripts.chain import Model, Size, Stage, main, number_done, occupied, plan, read
from scripts.quickstart import StepError
from scripts.quickstart_plan import FULL
from scripts.recipes import CHAINS, chain_command, command, recipes

SIZES = ["--models", "24x1024", "18x896", "12x768"]
KD = ["--student_model=kd", "--distill_ft_soft"]
TASK = ["--task=COPA", "--data-dir=data/COPA", "--cloze-eval", "--epochs=1", *KD]


def stages_of(*words):
    return plan(*read([*SIZES, "--teacher=runs/large", "--save=out", *words]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("24x1024", (24, 1024, 16)), ("18x896", (18, 896, 14)), ("2x16x4", (2, 16, 4))],
)
def test_a_size_is_read(text, expected):
    assert Size.parse(text).values == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("12", "LAYERSxHIDDEN"), ("12x", "LAYERSxHIDDEN"), ("0x64", "LAYERSxHIDDEN"),
     ("1x2x3x4", "LAYERSxHIDDEN"), ("ax64", "LAYERSxHIDDEN"), ("2x100", "as 2x100x1")],
)  # fmt: skip
def test_what_is_no_size_is_refused(text, expected):
    with pytest.raises(ArgumentTypeError, match=expected):
        Size.parse(text)


def test_each_model_teaches_the_next_one():
    first, second = stages_of("--", *TASK)
    assert first.command == (
        "distill/finetune.py", "--save=out", "--experiment-name=1-18x896",
        "--num-layers=18", "--hidden-size=896", "--num-attention-heads=14",
        "--teacher_load_pretrained=runs/large", "--teacher_num_layers=24",
        "--teacher_hidden_size=1024", "--teacher_num_attention_heads=16", *TASK,
    )  # fmt: skip
    assert second.command[3:10] == (
        "--num-layers=12", "--hidden-size=768", "--num-attention-heads=12",
        "--teacher_load_pretrained=out/1-18x896", "--teacher_num_layers=18",
        "--teacher_hidden_size=896", "--teacher_num_attention_heads=14",
    )  # fmt: skip
    assert second.folder == Path("out/2-12x768")


def test_in_a_dense_chain_all_earlier_models_teach():
    first, second = stages_of("--dense", "--truncate", "--", *TASK)
    assert "--teacher_load_pretrained=runs/large" in first.command
    assert "--student_truncate_tn=0" in first.command
    assert second.command[6:11] == (
        "--mt_load_pretrained=runs/large:out/1-18x896", "--mt_num_layers=24:18",
        "--mt_hidden_size=1024:896", "--mt_num_attention_heads=16:14", "--student_truncate_tn=1",
    )  # fmt: skip


def test_students_start_from_checkpoints_of_their_own():
    first, second = stages_of("--program=pretrain", "--start", "-", "runs/base", "--", *KD)
    assert first.command[0] == second.command[0] == "distill/pretrain.py"
    assert not [word for word in first.command if "--load-pretrained" in word]
    assert "--load-pretrained=runs/base" in second.command


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--", "--save=x"], "--save: is given by the chain; give --save before"),
        (["--", "--num-layers", "2"], "--num-layers: is given by the chain; give --models"),
        (["--", "--mt_hidden_size=2:2"], "--mt_hidden_size: is given by the chain"),
        (["--", "--student_truncate_tn=0"], "give --truncate"),
        (["--start", "a"], "--start: has 1 checkpoints for 2 students"),
        (["--start", "a", "b", "--truncate"], "not allowed with"),
        (["--models", "2x64"], "--models: give the teacher's size and that of a student"),
        (["--models", "2x64", "3y5"], "3y5: must be LAYERSxHIDDEN"),
    ],
)
def test_what_the_chain_gives_itself_is_refused(words, expected, capsys):
    with pytest.raises(SystemExit) as stopped:
        stages_of(*words)
    assert stopped.value.code == 2
    assert expected in capsys.readouterr().err


def test_a_mistake_in_any_flag_ends_it_before_the_first_stage(tmp_path, capsys):
    words = [*SIZES, f"--teacher={tmp_path}/no", f"--save={tmp_path}/out", "--", *TASK]
    assert main([*words, "--distill_tmperature=1", "--epochs=-1"]) == 2
    told = capsys.readouterr().err
    assert told.count("--distill_tmperature") == 1
    assert main(words) == 2
    assert f"--teacher={tmp_path}/no: there is no such checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_prints_the_commands_only(tmp_path, capsys):
    words = [*SIZES, "--teacher=runs/large", f"--save={tmp_path}/out", "--dry-run", "--", *TASK]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["python", "distill/finetune.py"]] * 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("recipe", CHAINS)
def test_the_recipes_are_what_the_chain_runs(recipe):
    """But for names, the order of flags, and that the chain repeats nothing unasked."""

    def comparable(words, names):
        found = set()
        for word in words:
            for old, new in names.items():
                word = word.replace(old, new)
            if not word.startswith(("--save=", "--overwrite", "--experiment-name=")):
                found.add(word.replace("--mt_max_position_embeddings", "--teacher_max_position"))
        return {w.partition(":64")[0] if "max_position" in w else w for w in found}

    script, *words = chain_command(recipe)
    assert script == "scripts/chain.py"
    actual = plan(*read(words))
    own = recipes()[recipe]
    names = {str(a.folder): f"runs/methods/{s.run_name}" for a, s in zip(actual, own, strict=True)}
    for stage, published in zip(actual, own, strict=True):
        expected = comparable(command(published, FULL), {})
        expected = {w.replace("_position_embeddings", "_position") for w in expected}
        found = comparable(stage.command, names)
        assert {w.replace("_position_embeddings", "_position") for w in found} == expected


def stage(out, number, *teachers, code="pass", more=()):
    """A stage that writes what a run does, and its name to a file."""
    name = f"s{number}"
    folder = out / name
    text = (
        "import json, pathlib, sys, shlex\n"
        f"folder = pathlib.Path({str(folder)!r})\n"
        "(folder / 'best').mkdir(parents=True, exist_ok=True)\n"
        f"open({str(out / 'order')!r}, 'a').write({name!r} + chr(10))\n"
        f"{code}\n"
        f"command = json.loads({json.dumps(json.dumps(name))})\n"
        "told = {'command': command, 'weights': str(folder / 'best')}\n"
        "(folder / 'summary.json').write_text(json.dumps(told))\n"
    )
    size = Size(1, 16, 2)
    models = tuple(Model(str(out / f"s{t}"), size) for t in teachers)
    log = out / "logs" / f"{name}.log"
    return Named(name, Model(str(folder), size), models, ("-c", text, *more), log)


class Named(Stage):
    """Its command, as a summary tells it, is its name."""

    @property
    def text(self):
        return " ".join([self.name, *self.command[2:]])


def run(*stages):
    chain.run(stages, [sys.executable])
    return (stages[0].folder.parent / "order").read_text().split()


def test_what_is_done_is_not_repeated(tmp_path, capsys):
    stages = [stage(tmp_path, 1, 0), stage(tmp_path, 2, 1), stage(tmp_path, 3, 2)]
    assert run(*stages) == ["s1", "s2", "s3"]
    assert number_done(stages) == 3
    capsys.readouterr()
    assert run(*stages) == ["s1", "s2", "s3"]
    assert capsys.readouterr().out.count("done before") == 3


def test_what_follows_a_stage_that_is_run_runs(tmp_path):
    stages = [stage(tmp_path, 1, 0), stage(tmp_path, 2, 1), stage(tmp_path, 3, 2)]
    run(*stages)
    (tmp_path / "s2" / "summary.json").unlink()
    assert run(*stages)[3:] == ["s2", "s3"]


@pytest.mark.parametrize("change", ["command", "weights", "teacher", "broken"])
def test_what_is_not_done_any_more(change, tmp_path):
    stages = [stage(tmp_path, 1, 0), stage(tmp_path, 2, 1)]
    run(*stages)
    if change == "command":
        summary = tmp_path / "s2" / "summary.json"
        summary.write_text(json.dumps({"command": "s2 --lr=1", "weights": str(tmp_path)}))
    elif change == "weights":
        (tmp_path / "s2" / "best").rmdir()
    elif change == "teacher":  # trained again since
        later = (tmp_path / "s2" / "summary.json").stat().st_mtime_ns + 10**9
        os.utime(tmp_path / "s1" / "summary.json", ns=(later, later))
    else:
        (tmp_path / "s2" / "summary.json").write_text("{")
    assert number_done(stages) == 1
    assert run(*stages)[2:] == ["s2"]


def test_what_launchers_add_is_no_difference(tmp_path):
    (made,) = stages = [stage(tmp_path, 1, 0)]
    run(*stages)
    summary = made.folder / "summary.json"
    told = json.loads(summary.read_text()) | {"command": "s1 --overwrite --local_rank=0"}
    summary.write_text(json.dumps(told))
    assert number_done(stages) == 1


def test_a_failure_stops_the_chain_and_shows_the_log(tmp_path):
    bad = stage(tmp_path, 2, 1, code="print('the reason'); sys.exit(3)")
    stages = [stage(tmp_path, 1, 0), bad, stage(tmp_path, 3, 2)]
    with pytest.raises(StepError, match=r"(?s)s2: exit status 3.*s2\.log.*the reason"):
        run(*stages)
    assert (tmp_path / "order").read_text().split() == ["s1", "s2"]
    assert number_done(stages) == 1


def test_a_stage_without_weights_is_a_failure(tmp_path):
    bad = stage(tmp_path, 1, 0, code="(folder / 'best').rmdir()")
    with pytest.raises(StepError, match="ended without weights"):
        run(bad)


def test_runs_of_other_commands_are_not_touched(tmp_path):
    made = stage(tmp_path, 1, 0, code="sys.exit(1)")
    assert list(occupied([made])) == []
    with pytest.raises(StepError):
        run(made)  # leaves a folder
    assert list(occupied([made])) == []
    other = replace(made, command=(*made.command, "--lr=1"))
    assert [line.split(":")[0] for line in occupied([other])] == [str(made.folder)]
    assert list(occupied([replace(other, command=(*other.command, "--overwrite"))])) == []
    made.log.write_text("it's no command\n")
    assert len(list(occupied([made]))) == 1
    made.log.unlink()
    assert len(list(occupied([made]))) == 1
