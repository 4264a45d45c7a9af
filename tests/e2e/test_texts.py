"""Tasks whose answers are texts, as users start them: alone, distilled, in parts, with bad input.

The texts are sentences of a few words; their summary is the first two.
"""

import json
import random

import pytest

from tests.e2e import world as w

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The small world with pairs of texts, and a teacher fine-tuned on them."""
    folder = w.make_world(tmp_path_factory.mktemp("world"))
    draw = random.Random(3)
    for split, number in (("train", 40), ("val", 9), ("test", 5)):
        rows = [[draw.choice(w.WORDS) for _ in range(6)] for _ in range(number)]
        texts = {"source": rows, "target": [row[:2] for row in rows]}
        for ending, lines in texts.items():
            text = "".join(" ".join(line) + "\n" for line in lines)
            (folder / f"{split}.{ending}").write_text(text)
    lines = [" ".join(draw.choice(w.WORDS) for _ in range(30)) for _ in range(3)]
    (folder / "texts.txt").write_text("\n".join(lines) + "\n")
    rows = (json.dumps({"text": line}) + "\n" for line in lines)
    (folder / "lambada.jsonl").write_text("".join(rows))
    flags = ["--epochs=2", "--experiment-name=teacher", "--label-smoothing=0.1"]
    told = w.forked(1, "finetune", *texts_flags(folder, layers=2), *flags)
    assert "rouge-1" in told
    return folder


def texts_flags(folder, layers=1):
    return [
        *[flag for flag in w.sizes(folder, layers) if not flag.startswith("--seq-length")],
        "--task=xsum",
        f"--data-dir={folder}",
        "--src-seq-length=24",
        "--tgt-seq-length=6",
        "--batch-size=4",
        "--lr=0.003",
        "--num-beams=2",
        "--length-penalty=0.7",
        "--no-repeat-ngram-size=3",
        "--log-interval=5",
        "--custom_no_summary_writer",
        f"--save={folder / 'runs'}",
    ]


def distilled(folder, name, method):
    teacher = w.teacher(folder / "runs" / "teacher")
    flags = ["--epochs=1", f"--experiment-name={name}", f"--student_model={method}"]
    return [*texts_flags(folder), *teacher, *flags, "--distill_ft_soft", "--distill_ft_soft_kl"]


def summary(folder, name):
    return json.loads((folder / "runs" / name / "summary.json").read_text())


def predictions(folder, name, split="val"):
    lines = (folder / "runs" / name / f"predictions-{split}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


SCORES = {"rouge-1", "rouge-2", "rouge-l", "bleu"}


def test_alone_distilled_and_the_same_scores_on_any_number_of_processes(world):
    assert set(summary(world, "teacher")["test"]) == SCORES
    kd = distilled(world, "kd", "kd")
    w.forked(1, "finetune", *kd)
    found = summary(world, "kd")
    assert set(found["val"]) == set(found["test"]) == SCORES
    assert [row["id"] for row in predictions(world, "kd")] == list(range(9))
    best = world / "runs" / "kd"
    again = [*texts_flags(world), f"--load-pretrained={best}", "--epochs=0"]
    # The validation set has 9 examples: two processes need fillers.
    w.forked(2, "finetune", *again, "--experiment-name=two")
    assert predictions(world, "two") == predictions(world, "kd")
    assert summary(world, "two")["val"] == found["val"]


def test_captures_and_two_ranks_of_one_model(world):
    flags = distilled(world, "tinybert", "tinybert")
    flags = [f for f in flags if not f.startswith("--teacher_load")]
    random_teacher = ["--teacher_random_para", "--model-parallel-size=2"]
    w.forked(2, "finetune", *flags, *random_teacher)
    found = summary(world, "tinybert")
    assert found["iterations"] == 10
    assert set(found["val"]) == SCORES
    lines = (world / "runs" / "tinybert" / "metrics.jsonl").read_text()
    assert "inter_loss" in lines


def test_zero_3_decodes_in_step(world):
    flags = [*distilled(world, "zero", "kd"), "--deepspeed", "--args_to_ds_config"]
    flags += [f"--deepspeed_config={world / 'deepspeed.json'}", "--zero_stage=3"]
    w.forked(2, "finetune", *flags)
    assert len(predictions(world, "zero")) == 9
    assert set(summary(world, "zero")["test"]) == SCORES


def test_language_modelling_and_generation_of_a_checkpoint(world):
    runs = world / "runs"
    checkpoint = f"--load-pretrained={runs / 'teacher'}"
    lm = [checkpoint, "--epochs=0", "--custom_no_summary_writer", f"--save={runs}"]
    lm += ["--eval-seq-length=24", "--seq-length=24"]
    texts = [*lm, "--task=language_model", f"--valid-data={world / 'texts.txt'}"]
    texts += ["--overlapping-eval=8", "--experiment-name=lm"]
    w.forked(1, "finetune", *texts)
    found = summary(world, "lm")["val"]
    assert set(found) == {"ppl", "adjusted-ppl", "loss"}
    assert found["loss"] > 0
    words = [*lm, "--task=lambada", f"--valid-data={world / 'lambada.jsonl'}"]
    w.forked(2, "finetune", *words, "--experiment-name=lambada")
    assert set(summary(world, "lambada")["val"]) == {"accuracy", "ppl"}
    (world / "prompts.txt").write_text("the man [MASK]\nthe [MASK] fell [MASK] home\n")
    command = (w.sys.executable, "-m", "scripts.generate", checkpoint, "--out-seq-length=5")
    out = world / "filled.jsonl"
    given = f"--input={world / 'prompts.txt'}", "--num-beams=2", f"--output={out}"
    w.succeeded(w.start(*command, *given))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [len(row["pieces"]) for row in rows] == [1, 2]
    assert all(set(row) == {"prompt", "text", "pieces"} for row in rows)


def test_a_mistake_ends_with_one_message(world):
    (world / "bad").mkdir()
    for ending, text in (("source", "a\nb\n"), ("target", "a\n")):
        (world / "bad" / f"train.{ending}").write_text(text)
    flags = ["--epochs=1", "--experiment-name=wrong", f"--data-dir={world / 'bad'}"]
    done = w.python("finetune", *texts_flags(world), *flags)
    assert done.returncode == 2, done.stderr
    assert "train.source has 2 lines" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (world / "runs" / "wrong").exists()
