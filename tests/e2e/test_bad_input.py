"""Mistakes of the user end a run before training, with one clear message and exit code 2.

The programs run in this process: each mistake costs less than a second.
"""

import json
import shutil

import pytest
import torch

from distill import finetune as finetune_program
from distill import pretrain as pretrain_program
from distill.engine import files
from tests.e2e import world as w

WEIGHTS = "mp_rank_00_model_states.pt"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The programs choose their threads; what they choose must not outlive them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in w.LAUNCHER_VARIABLES:
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The small world with a pretrained model in runs/base."""
    folder = w.make_world(tmp_path_factory.mktemp("world"))
    pretrain_program.main([*w.pretraining(folder), "--train-iters=1", "--experiment-name=base"])
    return folder


@pytest.fixture
def pretrain(world, capsys):
    """Run the program with more flags; returns its message, after checking how it ended."""
    return lambda *flags: ends(
        pretrain_program, [*w.pretraining(world), "--train-iters=2", *flags], world, capsys
    )


@pytest.fixture
def finetune(world, capsys):
    return lambda *flags: ends(finetune_program, [*w.finetuning(world), *flags], world, capsys)


def ends(program, flags, world, capsys, name="bad"):
    """The one message with which the program ended, before it wrote anything."""
    before = sorted(p for p in (world / "runs").rglob("*"))
    with pytest.raises(SystemExit) as caught:
        program.main([f"--experiment-name={name}", *flags])
    error = capsys.readouterr().err
    assert caught.value.code == 2, error
    assert "Traceback" not in error
    (message,) = error.split("error: ")[1:]
    assert sorted(p for p in (world / "runs").rglob("*")) == before
    return message


# Data ---------------------------------------------------------------------------------------------


def test_missing_data(pretrain, world):
    message = pretrain(f"--train-data={world / 'nowhere.txt'}")
    assert "--train-data" in message
    assert "nowhere.txt" in message


def test_no_data_at_all(world, capsys):
    flags = [f for f in w.pretraining(world) if not f.startswith("--train-data")]
    message = ends(pretrain_program, [*flags, "--train-iters=2"], world, capsys)
    assert "--train-data: missing" in message


def test_empty_data(pretrain, world):
    (world / "empty.txt").write_text("\n\n")
    message = pretrain(f"--train-data={world / 'empty.txt'}")
    assert "empty.txt" in message


def test_unknown_corpus_lists_the_known_ones(pretrain):
    message = pretrain("--train-data=no-such-corpus")
    known = json.loads((w.ROOT / "config" / "corpora.json").read_text())
    assert "no-such-corpus" in message
    assert all(name in message for name in known.get("corpora", known) if not name.startswith("_"))


def test_malformed_jsonl_names_file_and_line(pretrain, world):
    path = world / "torn.jsonl"
    path.write_text('{"text": "one two three."}\n{"text": "four five."}\n{"text": "six\n')
    message = pretrain(f"--train-data={path}")
    assert "torn.jsonl" in message
    assert "line 3" in message or "torn.jsonl:3" in message


def test_malformed_task_line(finetune, world):
    folder = world / "COPA-torn"
    shutil.copytree(world / "COPA", folder)
    with (folder / "val.jsonl").open("a") as file:
        file.write('{"premise": \n')
    message = finetune(f"--data-dir={folder}")
    assert "val.jsonl" in message
    assert "line 11" in message


@pytest.mark.parametrize("split", ["train", "val"])
def test_task_folder_without_a_split(finetune, world, split):
    folder = world / f"COPA-without-{split}"
    shutil.copytree(world / "COPA", folder)
    (folder / f"{split}.jsonl").unlink()
    message = finetune(f"--data-dir={folder}")
    assert str(folder) in message
    assert f"{split}.jsonl" in message


def test_missing_task_folder(finetune, world):
    assert "no-folder" in finetune(f"--data-dir={world / 'no-folder'}")


@pytest.mark.parametrize(
    ("key", "value"), [("reduce_bucket_size", -1), ("overlap_comm", "maybe"), ("no_such_key", 3)]
)
def test_a_json_that_deepspeed_does_not_take(pretrain, world, key, value):
    content = json.loads((world / "deepspeed.json").read_text())
    content["zero_optimization"] = {"stage": 2, key: value}
    (world / "wrong.json").write_text(json.dumps(content))
    message = pretrain("--deepspeed", f"--deepspeed_config={world / 'wrong.json'}")
    assert f"wrong.json: zero_optimization.{key}={value!r}: " in message


# Names --------------------------------------------------------------------------------------------


def test_unknown_task_lists_the_known_ones(finetune):
    message = finetune("--task=copra")
    assert "--task=copra" in message
    assert "copa" in message
    assert "boolq" in message


@pytest.mark.parametrize("program", ["pretrain", "finetune"])
def test_unknown_method_lists_the_known_ones(request, program):
    message = request.getfixturevalue(program)("--student_model=tinybrt")
    assert "--student_model=tinybrt" in message
    assert "kd" in message
    assert "logitsdistil" in message


def test_unknown_flag(pretrain):
    assert "did you mean --num-layers" in pretrain("--num-layer=2")


def test_a_method_that_cannot_work(finetune, world):
    teacher = w.teacher(world / "runs" / "base", layers=1)
    message = finetune("--student_model=glmd", "--fast-decode", *teacher)
    assert "--student_model=glmd" in message
    assert "leave out --fast-decode" in message
    soft = ("--distill_ft_soft", "--distill_soft_rate=0")
    assert "no loss is on" in finetune("--student_model=kd", *soft, *teacher)


# Checkpoints --------------------------------------------------------------------------------------


def test_missing_checkpoint(pretrain, world):
    message = pretrain(f"--load-pretrained={world / 'runs' / 'none'}")
    assert "--load-pretrained" in message
    assert "no such folder" in message


def test_shape_mismatch_names_key_and_both_shapes(pretrain, world):
    message = pretrain(f"--load-pretrained={world / 'runs' / 'base'}", "--hidden-size=32")
    assert "word_embeddings.weight" in message
    assert ", 16]" in message
    assert ", 32]" in message


def test_vocabulary_mismatch(pretrain, world):
    other = world / "vocab-other.txt"
    other.write_text((world / "vocab.txt").read_text() + "".join(f"word{i}\n" for i in range(40)))
    base = f"--load-pretrained={world / 'runs' / 'base'}"
    message = pretrain(f"--tokenizer-path={other}", base)
    assert "another vocabulary" in message
    # An official file says nothing about its vocabulary: the shapes do.
    bare = world / "bare" / "1"
    shutil.copytree(world / "runs" / "base" / "1", bare)
    (bare / "config.json").unlink()
    message = pretrain(f"--tokenizer-path={other}", f"--load-pretrained={bare}")
    assert "word_embeddings.weight: [" in message


def test_teacher_with_another_tokenizer(pretrain, world):
    other = world / "vocab-turned.txt"
    lines = (world / "vocab.txt").read_text().splitlines()
    other.write_text("\n".join([*lines[:10], *reversed(lines[10:])]) + "\n")
    message = pretrain(
        f"--tokenizer-path={other}",
        "--student_model=kd",
        "--distill_pt_soft",
        *w.teacher(world / "runs" / "base", layers=1),
    )
    assert "--teacher_load_pretrained" in message
    assert "another vocabulary" in message


def test_teacher_of_another_shape(finetune, world):
    message = finetune(
        "--student_model=kd",
        "--distill_ft_soft",
        *w.teacher(world / "runs" / "base", layers=3),
    )
    assert "--teacher_load_pretrained" in message
    assert "transformer.layers.1" in message
    assert "missing; the model has" in message


def test_damaged_checkpoint(pretrain, world):
    folder = world / "damaged" / "1"
    shutil.copytree(world / "runs" / "base" / "1", folder)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:1000])
    message = pretrain(f"--load-pretrained={folder}")
    assert WEIGHTS in message
    assert "cannot be read" in message


def test_other_number_of_shards(pretrain, world):
    folder = world / "two" / "1"
    shutil.copytree(world / "runs" / "base" / "1", folder)
    files.write_tensors(folder / "mp_rank_01_model_states.pt", {"module": {"w": torch.ones(1)}})
    assert "--model-parallel-size=2" in pretrain(f"--load-pretrained={folder}")


def test_resuming_weights_only(pretrain, world):
    shutil.copytree(world / "runs" / "base" / "1", world / "only" / "best")
    message = pretrain(f"--load={world / 'only' / 'best'}")
    assert "--load-pretrained" in message


# The machine and the folder -----------------------------------------------------------------------


def test_sequence_longer_than_positions(pretrain):
    assert "--seq-length=65" in pretrain("--seq-length=65")


def test_fp16_on_cpu(pretrain, world):
    assert "--fp16: needs a GPU" in pretrain("--fp16")
    message = pretrain(
        "--student_model=kd",
        "--distill_pt_soft",
        "--teacher_fp16",
        *w.teacher(world / "runs" / "base", layers=1),
    )
    assert "--teacher_fp16: needs a GPU" in message


def test_model_parallel_size_that_does_not_divide(pretrain):
    assert "does not divide --num-attention-heads=2" in pretrain("--model-parallel-size=4")
    assert "does not divide the 1 process" in pretrain("--model-parallel-size=2")


def test_output_folder_of_another_run(world, capsys):
    flags = [*w.pretraining(world), "--train-iters=2"]
    message = ends(pretrain_program, flags, world, capsys, name="base")
    assert "holds another run" in message
    assert "--overwrite" in message


def test_overwriting_what_is_read(world, capsys):
    base = world / "runs" / "base"
    flags = [*w.finetuning(world), "--overwrite", f"--load-pretrained={base}"]
    assert "would remove" in ends(finetune_program, flags, world, capsys, name="base")


def test_deepspeed_json_that_is_none(pretrain, world):
    (world / "torn.json").write_text('{"fp16": ')
    message = pretrain("--deepspeed", f"--deepspeed_config={world / 'torn.json'}")
    assert "torn.json" in message
    assert "line 1" in message
