"""The planner: what fits, what is recommended, what is said when nothing does."""

import pytest

import mpu
from config import ConfigError
from scripts.plan import GB, PROBES, layouts, main, read, shape, table

TOY = ["--student=2x128", "--teacher=4x256", "--seq-length=64", "--vocab-size=1024"]


def test_layouts_divide_heads_and_devices():
    _, run = read([*TOY, "--gpus=4"])
    found = list(layouts(run, 4))
    assert {(x.tensor_parallel, x.data_parallel) for x in found} == {(1, 4), (2, 2)}
    assert {x.stage for x in found} == {1, 2, 3}


def test_the_answer(capsys):
    mpu.initialize_model_parallel(1)  # as whatever ran before in this process may have left it
    main([*TOY, "--gpus=2", "--gpu-memory=8"])
    told = capsys.readouterr().out
    assert "layouts fit" in told
    assert "recommended: --model-parallel-size=" in told
    main([*TOY, "--gpus=2", "--gpu-memory=0.834"])
    told = capsys.readouterr().out
    assert "nothing fits: the leanest layout needs" in told
    assert "largest parts: " in told


@pytest.mark.parametrize("text", ["36", "36x", "0x64", "2x100", "axb"])
def test_a_wrong_shape_is_an_error(text):
    with pytest.raises(ConfigError, match=text):
        shape(text, "--", "-")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--gpu-memory=nan"], "--gpu-memory"),
        (["--vocab-size=-5"], "--vocab-size"),
        (["--rows=0"], "--rows"),
        (["--", "--max-position-embeddings=16"], "--seq-length=64: a model has 16 positions"),
    ],
)
def test_a_wrong_number_ends_with_one_message(words, named, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*TOY, *words])
    assert caught.value.code == 2
    assert named in capsys.readouterr().err


def test_probes_and_tables():
    assert PROBES[0] < PROBES[1]
    assert GB == 2**30
    assert len(list(table([]))) == 1
