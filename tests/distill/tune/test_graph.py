"""The graph: what is the same is run once, whatever asks for it; keys follow the configuration."""

from pathlib import Path

import pytest

from config import ConfigError
from distill.tune.graph import build, command, key_of
from distill.tune.grid import assignments
from tests.distill.tune.sweeps import sweep


def graph(folder: Path, *changes: tuple[str, str], processes: int = 1):
    spec = sweep(folder, *changes)
    trials = {
        (name, task): dict(enumerate(assignments(spec, method)))
        for name, method in spec.methods.items()
        for task in spec.tasks
    }
    return build(spec, trials, processes)


def test_shared_models_are_there_once_and_first(tmp_path):
    found = graph(tmp_path)
    names = [node.name for node in found.nodes.values()]
    assert names[0] == "pretrained-s1"
    assert sorted(n for n in names if "teacher" in n) == ["a-teacher-s1", "b-teacher-s1"]
    assert len(names) == 1 + 2 + 2 * 2 * 3 * 2  # methods, tasks, seeds, stages
    assert len(set(names)) == len(names)
    places = {key: place for place, key in enumerate(found.nodes)}
    for key, node in found.nodes.items():
        assert all(places[need] < places[key] for need in found.needs(node))


def test_what_two_methods_have_in_common_is_run_once(tmp_path):
    stage = "teacher: teacher, flags: {student_model: kd, distill_ft_soft: true}}"
    same = graph(tmp_path, (f"start: pretrained, {stage}", "start: pretrained}"))
    assert len(same.nodes) == 1 + 2 * 3 * (1 + 2)  # the first stage is that of both; no teacher
    firsts = {leaf.stages[0] for leaf in same.leaves if leaf.task == "a" and leaf.seed == 1}
    assert len(firsts) == 1


def test_a_change_reaches_all_that_follows_and_nothing_else(tmp_path):
    old, new = graph(tmp_path), graph(tmp_path, ("flags: {epochs: 2}", "seed: 5"))
    changed = {node.name for key, node in new.nodes.items() if key not in old.nodes}
    assert changed == {"a-teacher-s5", "b-teacher-s5"} | {
        f"kd-{task}-{stage}-s{seed}"
        for task in "ab"
        for stage in ("one", "two")
        for seed in (1, 2, 3)
    }


def test_keys_do_not_depend_on_order_or_spelling():
    key = key_of("finetune", {"--lr": "1e-3", "--a": None}, None, (), 1)
    assert key == key_of("finetune", {"--a": None, "--lr": "0.001"}, None, (), 1)
    others = [
        key_of("finetune", {"--lr": "1e-3", "--a": ""}, None, (), 1),
        key_of("pretrain", {"--lr": "1e-3", "--a": None}, None, (), 1),
        key_of("finetune", {"--lr": "1e-3", "--a": None}, "x", (), 1),
        key_of("finetune", {"--lr": "1e-3", "--a": None}, None, ("x",), 1),
        key_of("finetune", {"--lr": "1e-3", "--a": None}, None, (), 2),
    ]
    assert len({key, *others}) == 6


def test_commands_name_the_folders_of_what_they_need(tmp_path):
    found = graph(tmp_path)
    node = next(n for n in found.nodes.values() if n.name == "kd-b-one-s2")
    start, teacher = (found.nodes[key].folder for key in found.needs(node))
    made = command(found, node, Path("out"), {"--overwrite": None})
    assert made.words == [
        *("python", "distill/finetune.py", "--save=out/runs", f"--experiment-name={node.folder}"),
        *("--overwrite", f"--load-pretrained=out/runs/{start}"),
        f"--teacher_load_pretrained=out/runs/{teacher}",
        *("--cloze-eval", "--epochs=1", "--task=RTE", "--data-dir=data"),
        *("--student_model=kd", "--distill_ft_soft", "--seed=2"),
    ]
    resumed = command(found, node, Path("out"), {"--load": "x"})
    assert not any(word.startswith("--load-pretrained") for word in resumed.words)


def test_a_flag_that_is_off_is_off_after_all(tmp_path):
    found = graph(tmp_path, ("flags: {warmup: 0.2}", "flags: {cloze-eval: false}"))
    node = next(n for n in found.nodes.values() if n.name == "kd-a-two-s1")
    assert "--cloze-eval" not in node.flags


def test_stages_share_the_params_of_their_method(tmp_path):
    found = graph(
        tmp_path,
        ("distill_ft_soft: true}", "distill_ft_soft: true, lr: $rate}"),
        ("flags: {warmup: 0.2}", "flags: {lr: $rate, warmup: {values: [0, 0.2]}}"),
        ("  kd:\n", "  kd:\n    params: {rate: {values: [1e-3, 5e-4]}}\n"),
    )
    leaves = [x for x in found.leaves if (x.method, x.task, x.seed) == ("kd", "a", 1)]
    rates = [[found.nodes[key].flags["--lr"] for key in leaf.stages] for leaf in leaves]
    assert rates == [["1e-3"] * 2, ["1e-3"] * 2, ["5e-4"] * 2, ["5e-4"] * 2]
    assert len({leaf.stages[0] for leaf in leaves}) == 2  # warmup is of the second stage only


def test_seeds_programs_and_checkpoints(tmp_path):
    (tmp_path / "there-a").mkdir()
    (tmp_path / "there-b").mkdir()
    found = graph(
        tmp_path,
        (
            "teacher: {start: pretrained, flags: {epochs: 2}}",
            f"teacher: {{checkpoint: '{tmp_path}/there-{{task}}'}}",
        ),
        ("{name: two, start: one}", "{name: two, program: evaluate, start: one, seed: 7}"),
        ("pretrained: {program: pretrain}", "pretrained: {program: pretrain, seed: each}"),
    )
    by_name = {node.name: node for node in found.nodes.values()}
    assert by_name["kd-b-one-s1"].teachers == (f"{tmp_path}/there-b",)
    assert by_name["plain-a-two-s7"].flags["--epochs"] == "0"
    assert {f"pretrained-s{seed}" for seed in (1, 2, 3)} <= set(by_name)


def test_missing_models_and_circles_are_told(tmp_path):
    with pytest.raises(ConfigError) as caught:
        graph(
            tmp_path,
            ("teacher: {start: pretrained", "teacher: {start: teacher"),
            ("{name: one, start: pretrained}", "{name: one, start: nowhere}"),
        )
    assert [line.split(": ")[1] for line in caught.value.problems] == [
        "nowhere",
        "models in a circle",
    ]
