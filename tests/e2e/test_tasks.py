"""Every SuperGLUE task by the program: trained some steps and evaluated, alone and distilled.

One process for all runs. With two processes the scores are those of one.
"""

import json
import math

import pytest

from distill import finetune as program
from distill import pretrain
from tests.e2e import world as w
from tests.e2e.examples import TASKS, write_task

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

METRICS = {
    "cb": ["accuracy", "f1-macro"],
    "multirc": ["f1a", "em", "acc"],
    "record": ["em", "f1"],
    "ax-b": ["accuracy", "matthews"],
    "ax-g": ["accuracy", "gender-parity"],
}
KD = ["--student_model=kd", "--distill_ft_soft", "--distill_ft_hard"]
TINYBERT = ["--student_model=tinybert", "--distill_ft_soft"]
PROMPTS = ["--continuous-prompt", "--num-prompt-tokens=4"]
CHOOSE = ["--loss-func=mix", "--wsc-negative"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Tasks, and a model of two layers in runs/base."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in w.LAUNCHER_VARIABLES:
            patch.delenv(name, raising=False)
        w.make_world(folder)
        for name in TASKS:
            write_task(folder, name)
        flags = [f for f in w.pretraining(folder, layers=2) if "tokenizer-path" not in f]
        pretrain.main([*flags, "--train-iters=1", "--experiment-name=base"])
        yield folder


def flags_of(world, task, name, *flags, cloze=True):
    sizes = [f for f in w.sizes(world) if "tokenizer-path" not in f]
    return [
        *sizes, "--finetune", *(["--cloze-eval"] if cloze else []), f"--task={task}",
        f"--data-dir={world / task}", "--epochs=3", "--batch-size=2", "--lr=0.001",
        "--log-interval=1", "--custom_no_summary_writer", f"--save={world / 'runs'}",
        f"--experiment-name={name}", *flags,
    ]  # fmt: skip


def tune(world, task, name, *flags, cloze=True):
    """Run the program -> (rows of its log, its final results, its folder)."""
    program.main(flags_of(world, task, name, *flags, cloze=cloze))
    folder = world / "runs" / name
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "Train/train_loss" in row]
    return rows, json.loads((folder / "test_results.json").read_text()), folder


def is_whole(task, rows, results, folder):
    """Steps with finite losses, all metrics in percent, a line for every example."""
    assert len(rows) >= 3
    assert all(math.isfinite(row["Train/train_loss"]) for row in rows)
    expected = METRICS.get(task, ["accuracy"])
    assert list(results["test"]) == expected
    assert all(-100 <= value <= 100 for value in results["test"].values())
    (submission,) = (folder / "submission" / "test").iterdir()
    lines = submission.read_text().splitlines()
    assert len(lines) == len(TASKS[task])
    return lines


@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_task_alone(world, task):
    is_whole(task, *tune(world, task, f"{task}-alone"))


@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_task_distilled(world, task):
    teacher = w.teacher(world / "runs" / "base")
    rows, results, folder = tune(world, task, f"{task}-kd", *KD, *teacher)
    is_whole(task, rows, results, folder)
    assert any("soft" in key for key in rows[0])


@pytest.mark.parametrize(
    ("name", "task", "flags"),
    [
        ("classes", "wsc", [None, *TINYBERT]),
        ("choices", "record", [None]),
        ("captures", "record", [*TINYBERT]),
        ("written-captures", "wsc", [*TINYBERT]),
        ("chosen", "wsc", [*CHOOSE, *KD]),
        ("fast", "record", ["--fast-decode", *KD]),
        ("parts", "record", ["--segment-length=1", *KD]),
        ("parts-captures", "record", ["--segment-length=2", *TINYBERT]),
        ("adapet", "copa", ["--adapet"]),
        ("hinge", "record", ["--loss-func=hinge"]),
        ("fixed", "record", ["--fix_variable_num_choices", *KD]),
        ("prompts", "rte", [*PROMPTS, "--freeze-transformer", "--prompt-init"]),
        ("prompts-lm", "wsc", [*PROMPTS, "--prompt-func=mlp", "--prefix-prompt=1"]),
    ],
)
def test_a_way_to_do_a_task(world, name, task, flags):
    teacher = w.teacher(world / "runs" / "base") if any("student" in f for f in flags if f) else []
    cloze = None not in flags
    given = [flag for flag in flags if flag is not None]
    is_whole(task, *tune(world, task, f"{task}-{name}", *given, *teacher, cloze=cloze))


def test_a_frozen_student_with_prompts_learns_from_a_teacher_with_prompts(world):
    small = [*PROMPTS, "--num-layers=2"]
    tune(world, "cb", "cb-prompts", *small)
    teacher = w.teacher(world / "runs" / "cb-prompts")
    start = f"--load-pretrained={world / 'runs' / 'base'}"
    flags = [*small, start, "--freeze-transformer", *TINYBERT, "--distill_ft_hard", *teacher]
    is_whole("cb", *tune(world, "cb", "cb-prompts-distilled", *flags))


TEXTS = ["--src-seq-length=24", "--tgt-seq-length=4"]


def write_texts(world):
    """Pairs of texts in `pairs`, and LAMBADA's lines."""
    (world / "pairs").mkdir()
    for split in ("val", "test"):
        (world / "pairs" / f"{split}.source").write_text("the man ran home\na dog fell\n")
        (world / "pairs" / f"{split}.target").write_text("man ran\ndog fell\n")
    lines = [json.dumps({"text": text}) + "\n" for text in ("the man ran home", "a dog saw rain")]
    (world / "lambada.jsonl").write_text("".join(lines))


def test_zero_shot_with_and_without_a_teacher(world):
    """Scores, predictions and the number of steps, of each family of tasks."""
    write_texts(world)
    start = [f"--load-pretrained={world / 'runs' / 'base'}", "--num-layers=2", "--epochs=0"]
    for task, splits, scores, flags in (
        ("rte", ["val", "test"], ["accuracy"], []),
        ("xsum", ["val", "test"], ["bleu", "rouge-1", "rouge-2", "rouge-l"],
         [f"--data-dir={world / 'pairs'}", *TEXTS]),
        ("lambada", ["val"], ["accuracy", "ppl"], [f"--valid-data={world / 'lambada.jsonl'}"]),
    ):  # fmt: skip
        results, written = [], []
        for name, more in (("alone", []), ("taught", [*KD, *w.teacher(world / "runs" / "base")])):
            given = flags_of(world, task, f"{task}-zero-{name}", *more)
            given = [f for f in given if not f.startswith("--epochs")]
            if task == "lambada":
                given = [f for f in given if not f.startswith("--data-dir")]
            program.main([*given, *start, *flags])
            folder = world / "runs" / f"{task}-zero-{name}"
            results.append(json.loads((folder / "test_results.json").read_text()))
            written.append([(folder / f"predictions-{x}.jsonl").read_text() for x in splits])
            assert [sorted(results[-1][split]) for split in splits] == [scores] * len(splits)
            told = json.loads((folder / "summary.json").read_text())
            assert (told["iterations"], told["samples"]) == (0, 0)
            assert not (folder / "best").exists()
        assert [results[0][x] for x in splits] == [results[1][x] for x in splits]
        assert written[0] == written[1]


def test_a_test_split_alone_is_scored(world):
    start = [f"--load-pretrained={world / 'runs' / 'base'}", "--num-layers=2", "--epochs=0"]
    (world / "rte-test").mkdir()
    (world / "rte-test" / "test.jsonl").write_text((world / "rte" / "test.jsonl").read_text())
    found = {}
    for name, more in (("both", []), ("only", ["--no-validation"])):
        flags = [f for f in flags_of(world, "rte", f"rte-{name}") if not f.startswith("--epochs")]
        data = world / ("rte-test" if more else "rte")
        program.main([*flags, *start, *more, f"--data-dir={data}"])
        folder = world / "runs" / f"rte-{name}"
        found[name] = json.loads((folder / "test_results.json").read_text())
    assert "val" not in found["only"]
    assert found["only"]["test"] == found["both"]["test"]


def test_without_validation_the_last_weights_are_the_result(world):
    (world / "rte" / "val.jsonl").rename(world / "rte" / "hidden.jsonl")
    try:
        rows, results, folder = tune(world, "rte", "rte-blind", "--no-validation")
    finally:
        (world / "rte" / "hidden.jsonl").rename(world / "rte" / "val.jsonl")
    assert results["best_epoch"] == 3
    assert list(results["test"]) == ["accuracy"]
    assert (folder / "best" / "mp_rank_00_model_states.pt").is_file()


def test_two_processes_score_all_that_one_scores(world):
    start = [f"--load-pretrained={world / 'runs' / 'base'}", "--num-layers=2", "--epochs=0"]
    program.main(flags_of(world, "wsc", "wsc-one", *start))
    w.succeeded(w.torchrun("finetune", *flags_of(world, "wsc", "wsc-two", *start)))
    one, two = (world / "runs" / f"wsc-{number}" for number in ("one", "two"))
    for file in ("submission/val/WSC.jsonl", "results.json"):
        assert (one / file).read_text() == (two / file).read_text()
