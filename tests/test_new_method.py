"""docs/new_method.md: its files run, its commands parse, and the laws take a method from it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from config import ConfigError, RunArgs, parse_args
from distill import registry
from distill.registry import METHODS, method_args
from distill.step import check_needs
from model.build import HeadSpec
from tests.distill.runs import SIZES, grads_of, take, toy_run, toy_step
from tests.house import ROOT
from tests.test_readme import PROGRAMS, commands
from tests.toy import toy_cloze_batch, toy_lm_batch

TEXT = (ROOT / "docs" / "new_method.md").read_text(encoding="utf-8")
FINAL, SIMILAR = "my_methods/final_state.py:FinalState", "my_methods/similar.py:Similar"
SAME = "--teacher_hidden_size=16"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working folder with the files of the text, each under the name in its first line."""
    for block in blocks("python"):
        (name,) = re.findall(r"# (my_methods/\w+\.py)\n", block.splitlines(keepends=True)[0])
        place = tmp_path / name
        place.parent.mkdir(exist_ok=True)
        place.write_text(block)
    monkeypatch.chdir(tmp_path)
    method_args()
    monkeypatch.setattr(registry, "METHODS", dict(METHODS))  # what is loaded goes again
    for module in ("distill.step", "distill.student", "distill.mix"):
        monkeypatch.setattr(f"{module}.METHODS", registry.METHODS)
    return tmp_path


def run_of(name: str, *flags: str, program: str = "pretrain") -> RunArgs:
    methods = method_args([f"--student_model={name}"])
    argv = [*SIZES, f"--student_model={name}", *flags]
    return parse_args(argv, program=program, methods=methods, check=False)


def test_the_text_shows_three_files(folder):
    found = sorted(path.name for path in (folder / "my_methods").iterdir())
    assert found == ["final_state.py", "similar.py", "test_similar.py"]


@pytest.mark.parametrize("flags", [[], ["--distill_logits_parallel", "--distill_pt_soft"]])
def test_the_method_in_the_seeds_way(folder, flags):
    step = toy_step(run_of(FINAL, SAME, *flags))
    batch = toy_lm_batch(3)
    output = take(step, batch)
    states = []
    with torch.no_grad():
        for model in (step.student.module, step.teachers[0].module):
            hook = {"transformer": {"output": None}}
            states.append(model(*step.task.inputs(batch), hook=hook)[1]["transformer", "output"])
    expected = (states[0] - states[1]).square().mean()
    torch.testing.assert_close(output.terms["inter_loss/final_state_t0"], expected)
    total = sum(v for k, v in output.terms.items() if k.count("/") and not k.startswith("Train"))
    total -= output.terms["teacher_loss/teacher_0_t0"]
    torch.testing.assert_close(output.loss.detach(), total)
    assert len(output.terms) == 3 + len(flags)


@pytest.mark.parametrize("program", ["pretrain", "finetune"])
def test_the_method_in_our_way(folder, program):
    step = toy_step(run_of(SIMILAR, "--similar_weight=2", program=program))
    output = take(step, toy_lm_batch(3) if program == "pretrain" else toy_cloze_batch(3))
    terms = [f"inter_loss/hidden_states.{i}_t0" for i in (1, 2)]
    assert [name for name in output.terms if name.startswith("inter_loss")] == terms
    assert all(0 < float(output.terms[name]) < 4 for name in terms)
    own = {k: g for k, g in grads_of(step.student.module).items() if k.startswith("student.")}
    assert list(own) == ["student.project.weight", "student.project.bias"]
    assert all(bool(g.any()) for g in own.values())


def test_its_bad_input(folder):
    with pytest.raises(ConfigError, match="--similar_every=0: must be at least 1"):
        run_of(SIMILAR, "--similar_every=0")
    with pytest.raises(ConfigError, match="--similar_every=3: the student has 2 layers"):
        check_needs(run_of(SIMILAR, "--similar_every=3"), HeadSpec("lm"))
    with pytest.raises(ConfigError, match="--num-layers=5: similar gives each student layer"):
        check_needs(run_of(SIMILAR, "--num-layers=5"), HeadSpec("lm"))


def test_both_go_into_a_mix(folder):
    flags = [f"--mixbaseline_inter_bl={SIMILAR},{FINAL},PKD", "--similar_weight=4", SAME]
    methods = method_args(flags)
    argv = [*SIZES, "--student_model=mixbaseline", *flags]
    run = parse_args(argv, program="pretrain", methods=methods, check=False)
    assert run.mixed[SIMILAR].similar_weight == 4
    output = take(toy_step(run), toy_lm_batch(2))
    assert {f"inter_loss/{name}_t0" for name in ("Similar", "FinalState", "PKD")} <= set(
        output.terms
    )
    assert "inter_loss/Similar/hidden_states.2_t0" in output.terms


def test_its_commands_parse(folder, monkeypatch):
    found = [words for block in blocks("bash") for words in commands(block) if "..." not in words]
    assert len(found) == 3
    for words in found:
        run = parse_args(words[1:], program=PROGRAMS[words[0]], methods=method_args(words))
        assert run.program == PROGRAMS[words[0]]


def test_the_laws_take_it(folder):
    (line,) = [line for block in blocks("bash") for line in block.splitlines() if "OWN_" in line]
    assignment, *words = line.split()
    assert words[:3] == ["python", "-m", "pytest"]
    name, _, value = assignment.partition("=")
    path = value.replace("my_methods", str(folder / "my_methods"))
    laws = f"{words[-1]} and (keep_batch or touched or zero or capturing)"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words[3:-1], laws],
        cwd=ROOT,
        env=os.environ | {name: path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 passed" in done.stdout


def test_its_own_test_holds(folder):
    code = (folder / "my_methods" / "test_similar.py").read_text()
    names: dict = {}
    exec(compile(code, "test_similar.py", "exec"), names)
    found = [function for name, function in names.items() if name.startswith("test_")]
    assert len(found) == 1
    found[0]()


def test_the_package_rules_it_names_exist():
    for name in re.findall(r"`((?:tests|distill)/[\w/]+\.py)`", TEXT):
        assert (ROOT / name).is_file(), name


def test_a_toy_run_knows_what_was_loaded(folder):
    method_args([f"--student_model={SIMILAR}"])
    assert toy_run(f"--student_model={SIMILAR}").method.similar_every == 1
