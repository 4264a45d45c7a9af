"""The programs as users start them: the seed's commands, both launchers, plain python.

A chain: a teacher is pretrained, a student distilled from it with GLMD, fine-tuned in GLMD's two
stages and with KD. Every command differs from the seed's only in device list, backend, precision,
sizes and paths.
"""

import json
import resource

import pytest

from distill.engine.files import read_tensors
from tests.e2e import world as w
from tests.tasks.multi import make_tasks

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The small world with a teacher of two layers in runs/teacher."""
    folder = w.make_world(tmp_path_factory.mktemp("world"))
    flags = ["--train-iters=6", "--experiment-name=teacher", "--eval-interval=3"]
    told = w.succeeded(w.python("pretrain", *w.pretraining(folder, layers=2), *flags))
    assert "iteration 6/6" in told
    assert "done: 6 iterations" in told
    return folder


def summary(world, name):
    return json.loads((world / "runs" / name / "summary.json").read_text())


def losses(world, name, kind="train_loss"):
    lines = (world / "runs" / name / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {r["iteration"]: r[f"Train/{kind}"] for r in rows if f"Train/{kind}" in r}


def seeds_sizes(world, layers=1):
    """The seed's flags with the sizes of this world."""
    return [
        "--block-lm",
        f"--num-layers={layers}",
        "--hidden-size=16",
        "--num-attention-heads=2",
        "--max-position-embeddings=64",
        f"--tokenizer-path={world / 'vocab.txt'}",
        "--tokenizer-type=BertWordPieceTokenizer",
        "--make-vocab-size-divisible-by=8",
    ]


def prefix_pretrain(world, name, steps=4):
    """[Prefix-pretrain] of the seed."""
    return [
        f"--deepspeed_config={world / 'deepspeed.json'}",
        "--deepspeed-activation-checkpointing",
        "--deepspeed",
        *seeds_sizes(world),
        "--checkpoint-activations",
        "--model-parallel-size=1",
        "--save-interval=5000",
        f"--save={world / 'runs'}",
        f"--experiment-name={name}",
        "--bert-prob=1.0",
        f"--train-data={world / 'corpus.txt'}",
        "--split=949,50,1",
        "--distributed-backend=gloo",
        "--lr-decay-style=cosine",
        "--lr-decay-iters=120000",
        "--lr-decay-ratio=0.05",
        "--warmup=.05",
        f"--train-iters={steps}",
        "--no-lazy-loader",
        "--resume-dataloader",
        # Sizes of this world.
        "--seq-length=48",
        "--log-interval=2",
        "--eval-iters=2",
        "--num-workers=0",
        f"--cache-dir={world / 'cache'}",
    ]


def prefix_finetune(world, name, pretrained):
    """[Prefix-finetune] of the seed."""
    return [
        "--finetune",
        "--cloze-eval",
        f"--experiment-name={name}",
        "--task=COPA",
        f"--data-dir={world / 'COPA'}",
        f"--save={world / 'runs'}",
        "--seq-length=48",
        "--checkpoint-activations",
        "--eval-batch-size=16",
        "--save-epoch=100000",
        *seeds_sizes(world),
        f"--load-pretrained={world / 'runs' / pretrained}",
        "--lr-decay-style=linear",
        "--warmup=0.1",
        "--weight-decay=1.0e-1",
        "--pattern-id=0",
        "--save-interval=10000",
        "--log-interval=50",
        "--eval-interval=1000",
        "--eval-iters=100",
        "--batch-size=8",
        "--epochs=1",
        "--lr=1e-5",
        "--overwrite",
        "--deepspeed-activation-checkpointing",
        "--deepspeed",
        f"--deepspeed_config={world / 'deepspeed.json'}",
        "--custom_first_eval",
    ]


GLMD = ["--student_model=logitsdistil", "--logitsdistil_mask_pad", "--distill_temperature=15"]
GLMD_STAGE_2 = [
    "--student_model=logitsdistil",
    "--logitsdistil_mask_pad",
    "--logitsdistil_wo_inter",
    "--distill_ft_soft",
    "--distill_temperature=1",
]
KD = ["--student_model=kd", "--distill_ft_soft", "--distill_ft_hard", "--distill_temperature=10"]


@pytest.fixture(scope="module")
def student(world):
    """GLMD's pretraining by the seed's command, on two processes."""
    teacher = w.teacher(world / "runs" / "teacher")
    done = w.deepspeed("pretrain", *prefix_pretrain(world, "student"), *GLMD, *teacher)
    told = w.succeeded(done)
    assert told.count("iteration 4/4") == 1
    return "student"


def test_glmd_pretraining(world, student):
    found = summary(world, student)
    assert (found["processes"], found["engine"]) == (2, "deepspeed stage 0")
    assert found["samples"] == 4 * 4 * 2  # the JSON's micro-batch, on two ranks
    weights = read_tensors(world / "runs" / student / "4" / "mp_rank_00_model_states.pt")["module"]
    assert "word_embeddings.weight" in weights
    assert (world / "runs" / student / "latest_checkpointed_iteration.txt").read_text() == "4"


def test_glmd_finetuning_in_two_stages(world, student):
    teacher = w.teacher(world / "runs" / "teacher")
    first = prefix_finetune(world, "glmd-1", student)
    w.succeeded(w.deepspeed("finetune", *first, *GLMD, *teacher))
    second = prefix_finetune(world, "glmd-2", "glmd-1")
    w.succeeded(w.deepspeed("finetune", *second, *GLMD_STAGE_2, *teacher))
    for name in ("glmd-1", "glmd-2"):
        found = summary(world, name)
        assert found["type"] == "test"
        assert 0 <= found["test"]["accuracy"] <= 100
        results = json.loads((world / "runs" / name / "results.json").read_text())
        assert [row["iteration"] for row in results["history"]][0] == 0  # --custom_first_eval


def test_kd_finetuning(world, student):
    flags = [*prefix_finetune(world, "kd", student), *KD, *w.teacher(world / "runs" / "teacher")]
    w.succeeded(w.deepspeed("finetune", *flags))
    assert summary(world, "kd")["iterations"] == 5  # 40 mirrored examples, 8 a step


def test_torchrun_and_python_train_alike(world):
    """Two processes of 4 samples are one process of 8."""
    flags = [
        *w.pretraining(world),
        "--train-iters=4",
        "--attention-dropout=0",
        "--hidden-dropout=0",
    ]
    told = w.succeeded(w.torchrun("pretrain", *flags, "--experiment-name=two"))
    assert told.count("iteration 4/4") == 1
    w.succeeded(w.python("pretrain", *flags, "--batch-size=8", "--experiment-name=one"))
    one, two = losses(world, "one"), losses(world, "two")
    assert two == pytest.approx(one, rel=1e-4)


def test_a_mistake_under_a_launcher_is_told_once(world):
    flags = [*w.pretraining(world), "--train-iters=4", "--experiment-name=bad"]
    for start, code in ((w.torchrun, 1), (w.deepspeed, 2)):
        done = start("pretrain", *flags, f"--train-data={world / 'nowhere.txt'}")
        assert done.returncode == code
        assert done.stderr.count("error: --train-data") == 1
        assert "nowhere.txt" in done.stderr
        assert "[rank1]" not in done.stderr  # no traceback of the process that lost its peer


@pytest.mark.parametrize("zero", [None, 1])
def test_a_new_process_resumes_bit_for_bit(world, zero):
    """10 steps are 5 and 5, with dropout and labelled tasks, by a program that starts anew."""
    flags = [f for f in w.pretraining(world) if not f.startswith("--log-interval")]
    flags += ["--log-interval=1", "--lr-decay-iters=10", "--save-interval=5"]
    flags += [f"--data-dir={make_tasks(world / 'tasks')}", "--multi-task-ratio=0.4"]
    flags += ["--multi-task-data", "mnli", "squad", "race", "--multi-batch-size=3"]
    if zero is not None:
        flags += [
            "--deepspeed",
            f"--deepspeed_config={world / 'deepspeed.json'}",
            "--args_to_ds_config",
            f"--zero_stage={zero}",
        ]
    whole, half = f"whole-{zero}", f"half-{zero}"
    w.succeeded(w.python("pretrain", *flags, "--train-iters=10", f"--experiment-name={whole}"))
    w.succeeded(w.python("pretrain", *flags, "--train-iters=5", f"--experiment-name={half}"))
    load = f"--load={world / 'runs' / half}"
    w.succeeded(w.python("pretrain", *flags, "--train-iters=10", load))
    assert losses(world, half) == losses(world, whole)
    assert losses(world, whole, "loss_multi-task") == losses(world, half, "loss_multi-task") != {}
    assert any(it > 5 for it in losses(world, half, "loss_multi-task"))
    states = [
        read_tensors(world / "runs" / name / "10" / "mp_rank_00_model_states.pt")["module"]
        for name in (whole, half)
    ]
    assert all(states[0][key].equal(states[1][key]) for key in states[0])


def test_finetuning_resumes_bit_for_bit(world):
    """The second epoch after a new start is the second epoch, blank infilling included."""
    flags = [*w.finetuning(world), "--epochs=2", f"--load-pretrained={world / 'runs' / 'teacher'}"]
    flags = [f for f in flags if not f.startswith("--num-layers")]  # the checkpoint knows them
    flags += ["--block-lm-ratio=1", "--bert-prob=1"]
    w.succeeded(w.python("finetune", *flags, "--experiment-name=ft"))
    again = [*flags, "--experiment-name=ft-again", f"--load={world / 'runs' / 'ft' / '10'}"]
    w.succeeded(w.python("finetune", *again))
    expected, actual = losses(world, "ft"), losses(world, "ft-again")
    assert actual == {k: v for k, v in expected.items() if k > 10}
    blanks = losses(world, "ft", "block_lm_loss")
    assert blanks != {} != losses(world, "ft", "task_loss")
    assert losses(world, "ft-again", "block_lm_loss") == {k: v for k, v in blanks.items() if k > 10}
    files = [world / "runs" / n / "20" / "mp_rank_00_model_states.pt" for n in ("ft", "ft-again")]
    whole, rest = (read_tensors(file)["module"] for file in files)
    assert all(whole[key].equal(rest[key]) for key in whole)


@pytest.mark.parametrize("program", ["pretrain", "finetune"])
def test_help_is_quick(program):
    """CPU seconds, which hardly depend on what else the machine does."""

    def spent():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = spent()
    assert "--num-layers" in w.python(program, "--help").stdout
    assert spent() - before < 3.0
