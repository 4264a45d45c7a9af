"""The benchmark measures what it says; only captured layers materialise attention."""

import json
from dataclasses import replace

import pytest
import torch.nn.functional as F

from distill.context import Clock
from mpu.hook import leaves
from scripts import bench_methods
from scripts.bench_methods import Side, build_parser, build_run, load, sizes_of, table
from scripts.methods_cost import methods, most_costly
from scripts.recipes import scaled_flags, tokenizer_command
from scripts.train_tokenizer import main as train_tokenizer
from tests.distill.runs import take, toy_run, toy_step
from tests.toy import toy_cloze_batch, toy_lm_batch

SMALL = [
    "--student-layers=2", "--teacher-layers=4", "--hidden=64", "--heads=4", "--batch=4",
    "--seq-length=32", "--vocabulary=2000", "--steps=1", "--repeats=1",
]  # fmt: skip
SIZES = sizes_of(build_parser().parse_args(SMALL))
EXPLICIT = {"attention_scores", "attention_probs"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    train_tokenizer(tokenizer_command(SIZES, folder)[1:])
    return folder


@pytest.mark.parametrize("name", methods())
def test_both_sides_have_the_same_models_and_batches(name, folder):
    stage = most_costly(name).stage
    runs = [build_run(stage, side, SIZES, folder) for side in ("method", "kd")]
    assert [run.distill.student_model for run in runs] == [name, "kd"]
    for part in ("model", "data", "tokenizer", "train", "optim", "program"):
        assert getattr(runs[0], part) == getattr(runs[1], part), part
    teachers = [
        replace(run.teachers[0], runs=True) for run in runs
    ]  # Theseus has parts of one only
    assert teachers[0] == teachers[1]
    assert runs[0].teachers[0].random_para
    assert runs[0].checkpoint.load_pretrained is None


@pytest.mark.parametrize("name", ["kd", "logitsdistil"])  # a step of fine-tuning, of pretraining
def test_a_side_trains(name, folder):
    stage = most_costly(name).stage
    for side in ("method", "kd"):
        run, task, runtime, batches = load(stage, side, SIZES, folder, 2)
        trained = Side(run, task, runtime)
        weights = trained.trainer.engine.module.state_dict()
        before = {key: value.clone() for key, value in weights.items()}
        for batch in batches:
            trained.step(batch)
        assert trained.trainer.state.iteration == bench_methods.TOTAL // 2 + 2
        assert len(batches) == 2
        assert any(not value.equal(before[key]) for key, value in weights.items())


ROW = {
    "recipe": "tinybert", "stage": "pretrain", "program": "pretrain", "seconds": 0.3,
    "kd_seconds": 0.2, "time_ratio": 1.5, "time_ratio_range": [1.25, 1.75],
    "peak_bytes": 3 << 20, "kd_peak_bytes": 2 << 20, "memory_ratio": 1.5,
}  # fmt: skip


def test_the_table_shows_what_was_measured():
    lines = table({"methods": {"tinybert": ROW}}).splitlines()
    assert [len(line.split("|")) for line in lines] == [10, 10, 10]
    expected = "| `tinybert` | tinybert, pretrain | 300 | 200 | 1.50 (1.25-1.75) | 3 | 2 | 1.50 |"
    assert lines[-1] == expected


def test_a_part_of_the_methods_does_not_replace_the_whole_table(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_methods, "FILE", tmp_path / "methods.json")
    monkeypatch.setattr(bench_methods, "measure", lambda *_: ROW)
    monkeypatch.setattr(bench_methods, "train_tokenizer", lambda *_: None)
    assert bench_methods.main([*SMALL, "--methods", "kd"]) == 0
    assert not (tmp_path / "methods.json").exists()
    assert bench_methods.main([*SMALL, "--methods", "kd", f"--json={tmp_path / 'a.json'}"]) == 0
    assert list(json.loads((tmp_path / "a.json").read_text())["methods"]) == ["kd"]
    assert bench_methods.main(SMALL) == 0
    content = json.loads((tmp_path / "methods.json").read_text())
    assert list(content["methods"]) == list(methods())
    assert content["sizes"]["hidden"] == 64
    assert "64" in bench_methods.conditions_text(content)


@pytest.mark.slow
def test_time_and_memory_are_measured(folder):
    options = build_parser().parse_args([*SMALL, "--methods", "tinybert"])
    row = bench_methods.measure("tinybert", options, folder, {})
    assert row["stage"] == "pretrain"
    assert 0 < row["time_ratio_range"][0] <= row["time_ratio"] <= row["time_ratio_range"][1]
    assert min(row["seconds"], row["kd_seconds"], row["peak_bytes"], row["kd_peak_bytes"]) > 0


class Fused:
    """Which attention layers of a step took the fused path."""

    def __init__(self, monkeypatch):
        self.all, self.fused, self.current = set(), set(), None
        original = F.scaled_dot_product_attention

        def counted(*args):
            self.fused.add(self.current)
            return original(*args)

        monkeypatch.setattr(F, "scaled_dot_product_attention", counted)

    def watch(self, whose, model):
        """`model`: a stack of layers. Layers are then named (whose, number)."""

        def begin(name):
            def enter(module, inputs):
                self.current = name
                self.all.add(name)

            return enter

        for number, layer in enumerate(transformer_of(model).layers):
            layer.attention.register_forward_pre_hook(begin((whose, number)))


def transformer_of(model):
    return next(m for m in model.modules() if type(m).__name__ == "ParallelTransformer")


def explicit_layers(method, passes):
    """(whose, number) of the layers whose scores or probabilities a method's hooks ask for."""
    found = set()
    for repeat in range(passes):
        method.begin_pass(Clock(total=100, repeat=repeat))
        hooks = {"student": method.get_student_hook(), "teacher": method.get_teacher_hook(t_no=0)}
        for whose, hook in hooks.items():
            found |= {(whose, path[2]) for path, _ in leaves(hook) if path[-1] in EXPLICIT}
    return found


@pytest.mark.parametrize("name", methods())
def test_only_captured_layers_materialise_attention(name, monkeypatch):
    stage = most_costly(name).stage
    flags = scaled_flags(stage, replace(SIZES, seq_length=40))
    shape = ["--hidden-size=64", "--teacher_hidden_size=64"]
    run = replace(toy_run(*shape, *flags, program=stage.program), program=stage.program)
    step = toy_step(run)
    layers = Fused(monkeypatch)
    layers.watch("student", step.student.module)
    layers.watch("teacher", step.teachers[0].module)
    step.student.module.train()
    take(step, toy_lm_batch(4) if stage.program == "pretrain" else toy_cloze_batch(4, choices=3))
    runs = {("student", 0), ("student", 1)}
    if run.teachers[0].runs:
        runs |= {("teacher", number) for number in range(4)}
        assert layers.all == runs
    expected = explicit_layers(step.method, 1 + run.distill.forward_repeat_num)
    assert layers.all - layers.fused == expected & layers.all


def test_some_methods_capture_attention_in_some_layers():
    """So that the test above has something to find."""
    captured = {name: most_costly(name).student.what for name in methods()}
    assert "attention scores" in captured["tinybert"]
    assert "attention" not in captured["pkd"]
