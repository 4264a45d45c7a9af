"""Checkpoints of any size become ones of any other: nothing is lost, nothing wrong gets through."""

import json
import re
import shutil

import pytest
import torch

import change_mp
import mpu
from config import ConfigError
from distill.engine import files, resharding, shards
from distill.engine.checkpoint import BEST_TRACKER, TRACKER, load_weights
from distill.engine.inspection import report
from distill.engine.resharding import Target, change_model_parallel
from model.partition import partition_for, spell
from tests.toy import SHAPES, toy_glm

OWN = {
    "student.fit_dense.weight": torch.randn(24, 16),
    "student.multi_teacher_model.agent.bias": torch.randn(3),
    "prompt_spell.lstm_head.weight_ih_l0": torch.randn(8, 4),
    "pool_layer.weight": torch.randn(16, 16),
}


def dense(shape: str = "everything") -> dict[str, torch.Tensor]:
    """A model, a trained teacher in it, and what methods, heads and prompts add."""
    weights = toy_glm(seed=1, **SHAPES[shape]).state_dict()
    live = {f"student.teacher_model_0.{k}": v + 1 for k, v in toy_glm(seed=2).state_dict().items()}
    return {**weights, **live, **OWN}


def partition(name: str):
    """By the model's own table; the rest is whole."""
    bare = name.removeprefix("student.teacher_model_0.")
    return None if bare.startswith("student.") else partition_for(bare)


def save(folder, weights, size=1, config=None, tag="5", **entries):
    """The official layout, cut by mpu.split."""
    for rank in range(size):
        module = {k: mpu.split(v, partition(k), rank, size) for k, v in weights.items()}
        content = {"module": module, "iteration": 5, **entries}
        files.write_tensors(folder / tag / f"mp_rank_{rank:02d}_model_states.pt", content)
    if config is not None:
        files.write_json(folder / tag / "config.json", config)
    (folder / TRACKER).write_text(tag)
    return folder


def modules(folder, tag="5"):
    paths = sorted((folder / tag).glob("mp_rank_*_model_states.pt"))
    return [files.read_tensors(path)["module"] for path in paths]


def same(actual, expected):
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert torch.equal(actual[name], tensor), name


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_from_p_to_q_and_back_is_bitwise(tmp_path, shape):
    weights = dense(shape)
    for p in (1, 2, 4):
        source = save(tmp_path / f"p{p}", weights, p)
        for q in (1, 2, 4):
            out = change_model_parallel(source, Target(size=q), tmp_path / f"{p}-{q}")
            for rank, actual in enumerate(modules(out)):
                same(actual, {k: mpu.split(v, partition(k), rank, q) for k, v in weights.items()})
            back = change_model_parallel(out, Target(size=p), tmp_path / f"{p}-{q}-{p}")
            for actual, expected in zip(modules(back), modules(source), strict=True):
                same(actual, expected)


def test_blocks_smaller_than_a_tensor_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "BLOCK", 100)
    monkeypatch.setattr(shards, "AT_ONCE", 300)
    weights = dense()
    out = change_model_parallel(save(tmp_path / "a", weights), Target(size=2))
    assert out == tmp_path / "a_MP2"
    same(modules(change_model_parallel(out, Target(size=1)))[0], weights)


def test_names_that_nobody_knows_need_a_record(tmp_path):
    weights = {
        **toy_glm().state_dict(),
        "vocab_map.ids": torch.arange(7),
        "odd.weight": torch.randn(4, 6),
    }
    content = {"module": weights, "iteration": 5}
    files.write_tensors(tmp_path / "a" / "5" / "mp_rank_00_model_states.pt", content)
    (tmp_path / "a" / TRACKER).write_text("5")
    with pytest.raises(ValueError, match="odd.weight: not a parameter of a GLM"):
        change_model_parallel(tmp_path / "a", Target(size=2))
    assert not (tmp_path / "a_MP2").exists()
    assert any("odd.weight" in line and "not known" in line for line in report(tmp_path / "a"))
    words = {"odd.weight": "dim 1", "vocab_map.ids": "whole"}
    files.write_json(tmp_path / "a" / "5" / "config.json", {"partition": words})
    out = change_model_parallel(tmp_path / "a", Target(size=2))
    for rank, module in enumerate(modules(out)):
        assert torch.equal(module["odd.weight"], weights["odd.weight"][:, 3 * rank : 3 * rank + 3])
        assert torch.equal(module["vocab_map.ids"], torch.arange(7))
    told = json.loads((out / "5" / "config.json").read_text())
    assert told["partition"]["odd.weight"] == "dim 1"
    assert told["partition"]["word_embeddings.weight"] == "dim 0"
    assert (told["model_parallel_size"], told["resumable"]) == (2, False)
    same(modules(change_model_parallel(out, Target(size=1)))[0], weights)


def test_other_entries_are_kept_or_none(tmp_path):
    entries = {"optimizer": {"x": torch.ones(2)}, "train_state": {"epoch": 3}, "global_steps": 9}
    entries["important_nonparameters"] = {"map": torch.arange(3)}
    out = change_model_parallel(save(tmp_path / "a", dense(), **entries), Target(size=2))
    content = files.read_tensors(out / "5" / "mp_rank_01_model_states.pt")
    assert torch.equal(content["important_nonparameters"]["map"], torch.arange(3))
    rest = {k: v for k, v in content.items() if k not in ("module", "important_nonparameters")}
    assert rest == {
        "iteration": 5,
        "optimizer": None,
        "train_state": {"epoch": 3},
        "global_steps": 9,
        "mp_world_size": 2,
    }


def test_the_best_weights_come_along(tmp_path):
    best = {k: v + 1 if v.is_floating_point() else v for k, v in dense().items()}
    save(save(tmp_path / "a", best, tag="best"), dense())
    (tmp_path / "a" / BEST_TRACKER).write_text("best")
    (tmp_path / "a" / "vocab.txt").write_text("words")
    files.write_json(tmp_path / "a" / "config.json", {"model": {"hidden_size": 16}})
    out = change_model_parallel(tmp_path / "a", Target(size=2))
    assert (out / TRACKER).read_text().strip() == "5"
    assert (out / BEST_TRACKER).read_text().strip() == "best"
    assert (out / "vocab.txt").read_text() == "words"
    assert json.loads((out / "config.json").read_text())["model"] == {"hidden_size": 16}
    same(modules(change_model_parallel(out, Target(size=1)), "best")[0], best)


@pytest.mark.parametrize(("dtype", "expected"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_types_change_where_they_are_floating(tmp_path, dtype, expected):
    weights = toy_glm().state_dict() | {"student.ids": torch.arange(3)}
    out = change_model_parallel(save(tmp_path / "a", weights), Target(size=2, dtype=dtype))
    first, _ = modules(out)
    assert first["student.ids"].dtype == torch.int64
    for name, whole in weights.items():
        if whole.is_floating_point():
            shard = mpu.split(whole, partition(name), 0, 2).to(expected)
            assert first[name].dtype == expected
            assert torch.equal(first[name], shard)
    weights["transformer.final_layernorm.bias"][3] = 1e5
    if dtype == "fp16":
        with pytest.raises(
            ValueError, match="final_layernorm.bias: holds numbers up to 1e.05.*--dtype=fp16"
        ):
            change_model_parallel(save(tmp_path / "b", weights), Target(size=2, dtype=dtype))
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "a_MP2", "b"]


def test_safetensors_and_back(tmp_path):
    from safetensors.torch import load_file

    weights = dense()
    source = save(tmp_path / "a", weights, 2)
    out = change_model_parallel(source, Target(size=1, to="safetensors"), tmp_path / "one")
    same(load_file(out / "5" / "mp_rank_00_model_states.safetensors"), weights)
    back = change_model_parallel(out / "5", Target(size=4), tmp_path / "four")
    for rank, actual in enumerate(modules(back)):
        same(actual, {k: mpu.split(v, partition(k), rank, 4) for k, v in weights.items()})
    assert files.read_tensors(back / "5" / "mp_rank_02_model_states.pt")["iteration"] == 5


def test_a_converted_checkpoint_is_loaded(tmp_path):
    source, target = toy_glm(seed=1), toy_glm(seed=2)
    two = change_model_parallel(save(tmp_path / "a", source.state_dict()), Target(size=2))
    with pytest.raises(
        ValueError, match=rf"change_mp.py {two} 1' and give --load-pretrained={two}_MP1"
    ):
        load_weights(two, target, what="--load-pretrained")
    load_weights(two, target, what="--teacher_load_pretrained", any_shards=True)
    same(target.state_dict(), source.state_dict())
    one = change_model_parallel(two, Target(size=1))
    load_weights(one, toy_glm(seed=3), what="--load-pretrained")


def damaged(folder, how):
    """Two shards, with one mistake."""
    weights, first = toy_glm().state_dict(), folder / "5" / "mp_rank_00_model_states.pt"
    save(folder, weights, 2)
    second = first.with_name("mp_rank_01_model_states.pt")
    content = files.read_tensors(second)
    if how == "missing":
        first.unlink()
    elif how == "torn":
        second.write_bytes(second.read_bytes()[:-2000])
    elif how == "older":
        files.write_tensors(second, {**content, "iteration": 4})
    elif how == "of another model":
        content["module"]["transformer.layers.9.attention.dense.bias"] = torch.zeros(16)
        files.write_tensors(second, content)
    elif how == "of another width":
        content["module"]["word_embeddings.weight"] = torch.zeros(32, 8)
        files.write_tensors(second, content)
    elif how == "of another seed":
        content["module"]["transformer.final_layernorm.bias"] = torch.ones(16)
        files.write_tensors(second, content)
    elif how == "one of four":
        files.write_tensors(second, {**content, "mp_world_size": 4})
    elif how == "more than told":
        files.write_json(folder / "5" / "config.json", {"model_parallel_size": 1})
    elif how == "half written":
        shutil.move(folder / "5", folder / ".5.tmp")
    elif how == "heads":
        files.write_json(folder / "5" / "config.json", {"model": {"num_attention_heads": 2}})


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", r"shard\(s\) 0 of 2 are missing"),
        ("torn", "mp_rank_01_model_states.pt: cannot be read as a checkpoint"),
        ("older", "mp_rank_01_model_states.pt: is of iteration 4, mp_rank_00.*of 5"),
        ("of another model", r"layers.9.attention.dense.bias is in one of them only"),
        ("of another width", r"word_embeddings.weight: \[32, 8\].*\[32, 16\]"),
        ("of another seed", "final_layernorm.bias: whole on every rank, but not the same"),
        ("one of four", "mp_rank_01_model_states.pt: is one of 4 shards, but 2 are there"),
        ("more than told", "config.json tells of 1 shards, but 2 are there"),
        ("half written", "names '5': no such folder"),
        ("heads", "2 attention heads cannot be cut into 4 equal shards"),
    ],
)
def test_what_is_not_whole_is_refused_before_anything_is_written(tmp_path, how, words, capsys):
    damaged(tmp_path / "a", how)
    with pytest.raises(SystemExit) as ended:
        change_mp.main([str(tmp_path / "a"), "4"])
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert told.count("error: ") == 1
    assert re.search(words, told), told
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_drifted_apart_can_be_taken_from_the_first(tmp_path, capsys):
    damaged(tmp_path / "a", "of another seed")
    change_mp.main([str(tmp_path / "a") + "/", "1", "--take_first"])
    assert capsys.readouterr().out.strip() == str(tmp_path / "a_MP1")
    same(modules(tmp_path / "a_MP1")[0], toy_glm().state_dict())


def test_places_that_would_lose_something(tmp_path):
    source = save(tmp_path / "a", toy_glm().state_dict())
    for out in (source, source / "5", tmp_path):
        with pytest.raises(ConfigError, match="--out="):
            change_model_parallel(source, Target(size=2), out, overwrite=True)
    change_model_parallel(source, Target(size=2))
    (tmp_path / "a_MP2" / "mark").touch()
    with pytest.raises(ConfigError, match="exists already.*--overwrite"):
        change_model_parallel(source, Target(size=2))
    assert (tmp_path / "a_MP2" / "mark").exists()
    change_model_parallel(source, Target(size=2), overwrite=True)
    assert not (tmp_path / "a_MP2" / "mark").exists()


def test_a_full_disk_is_noticed_before(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(resharding.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="GB are needed, 0.0 GB are free"):
        change_model_parallel(save(tmp_path / "a", toy_glm().state_dict()), Target(size=2))
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_crash_leaves_nothing(tmp_path, monkeypatch):
    source = save(tmp_path / "a", toy_glm().state_dict())

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(resharding, "_write_run", full)
    with pytest.raises(OSError, match="disk full"):
        change_model_parallel(source, Target(size=2))
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_the_same_size_is_nothing_to_do(tmp_path, capsys):
    source = save(tmp_path / "a", toy_glm().state_dict())
    change_mp.main([str(source), "1"])
    assert "has 1 shard(s) already; nothing to do" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    change_mp.main([str(source), "1", "--dtype=bf16"])
    assert (tmp_path / "a_MP1").is_dir()


@pytest.mark.parametrize("words", [[], ["x"], ["x", "y"], ["--inspect=a", "b", "2"]])
def test_a_wrong_command_line(words, capsys):
    with pytest.raises(SystemExit) as ended:
        change_mp.main(words)
    assert ended.value.code == 2


def test_inspecting_tells_shapes_when_whole(tmp_path, capsys):
    model = {"num_layers": 2, "hidden_size": 16}
    words = {name: spell(partition(name)) for name in toy_glm().state_dict()}
    config = {"model": model, "partition": words}
    source = save(tmp_path / "a", toy_glm().state_dict(), 2, config, train_state={"epoch": 1})
    change_mp.main(["--inspect", str(source)])
    lines = capsys.readouterr().out.splitlines()
    assert lines == list(report(source))
    text = "\n".join(lines)
    numel = sum(v.numel() for v in toy_glm().state_dict().values())
    assert f"parameters   {numel:,} in 29 tensors" in text
    assert "shards       2 (pt)" in text
    assert "num_layers=2, hidden_size=16" in text
    assert "iteration    5" in text
    assert "train_state" in text
    (line,) = [line for line in lines if "query_key_value.weight" in line]
    assert line.split(maxsplit=1) == [
        "transformer.layers.*.attention.query_key_value.weight",
        "[48, 16] float32, dim 0 in 3 blocks x 2",
    ]
