"""scripts/expand_vocab.py: the same predictions with all ids, for every number of shards."""

import json

import pytest
import torch

import mpu
from distill.engine import files
from distill.engine.checkpoint import load_weights
from scripts.expand_vocab import main
from tests.model.test_vocab_map import mapped_glm, tables
from tests.toy import toy_glm, toy_lm_batch


def compressed(folder, shards=1, **entries):
    """A run's folder with a compressed model's files; returns (folder, the whole model)."""
    model = mapped_glm()
    own = {"student.fit_dense.weight": torch.ones(2, 2)}
    partitions = {k: mpu.partition_of(p) for k, p in model.state_dict(keep_vars=True).items()}
    for rank in range(shards):
        state = model.state_dict().items()
        weights = {k: mpu.split(v, partitions[k], rank, shards) for k, v in state} | own
        content = {"module": weights | entries, "iteration": 9, "train_state": {}}
        files.write_tensors(folder / "9" / f"mp_rank_{rank:02d}_model_states.pt", content)
    files.write_text(folder / "latest_checkpointed_iteration.txt", "9")
    files.write_text(folder / "vocab.txt", "[PAD]\n")
    config = {
        "model": {"map_vocab_size": 24.0, "unmap_vocab_output": True, "hidden_size": 16},
        "flags": {"--map_vocab_size": 0.5, "--unmap_vocab_output": True, "--lr": 1},
        "model_parallel_size": shards,
    }
    files.write_json(folder / "config.json", config)
    return folder, model


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_the_model_predicts_as_before(tmp_path, shards, capsys):
    folder, model = compressed(tmp_path / "run", shards)
    main([str(folder)])
    out = tmp_path / "run-full"
    assert capsys.readouterr().out == f"{out}: 24 rows of the word table became 64\n"
    parts = [
        files.read_tensors(out / "9" / f"mp_rank_{rank:02d}_model_states.pt")["module"]
        for rank in range(shards)
    ]
    whole = toy_glm(seed=9)
    assert [*parts[0]] == [*whole.state_dict()]
    weights = {
        k: mpu.merge([part[k] for part in parts], mpu.partition_of(p))
        for k, p in whole.state_dict(keep_vars=True).items()
    }
    whole.load_state_dict(weights)
    batch = toy_lm_batch()
    inputs = (batch.tokens, batch.position_ids, batch.attention_mask)
    torch.testing.assert_close(whole(*inputs)[0], model(*inputs)[0])
    if shards == 1:  # and the toolkit reads it
        load_weights(out, toy_glm(seed=3), what="--load-pretrained")
    config = json.loads((out / "config.json").read_text())
    assert config["model"] == {
        "map_vocab_size": 0.0,
        "unmap_vocab_output": False,
        "hidden_size": 16,
    }
    assert config["flags"] == {"--lr": 1}
    assert (out / "vocab.txt").read_text() == "[PAD]\n"


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, argv)))
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    return told


def test_bad_input_is_one_line_and_writes_nothing(tmp_path, capsys):
    folder, _ = compressed(tmp_path / "run", 2)
    out = tmp_path / "out"
    assert "no such folder" in refused(capsys, tmp_path / "none", "--out", out)
    assert f"--out={folder}: exists" in refused(capsys, folder, "--out", folder)
    (folder / "9" / "mp_rank_00_model_states.pt").rename(tmp_path / "kept")
    told = refused(capsys, folder, "--out", out)
    assert "mp_rank_00_model_states.pt missing; it has 1 shards" in told
    (tmp_path / "kept").rename(folder / "9" / "mp_rank_00_model_states.pt")
    (folder / "9" / "mp_rank_01_model_states.pt").unlink()
    assert "mp_rank_01_model_states.pt missing" in refused(capsys, folder, "--out", out)
    other, _ = compressed(tmp_path / "map", **{"vocab_map.origin_id_to_target_pos": torch.ones(64)})
    assert "do not have these rows; it is no map" in refused(capsys, other, "--out", out)
    short, _ = compressed(tmp_path / "other", **map_of(16))
    assert "keeps 16 ids, the word table has 24 rows" in refused(capsys, short, "--out", out)
    plain = tmp_path / "plain"
    content = {"module": toy_glm().state_dict()}
    files.write_tensors(plain / "9" / "mp_rank_00_model_states.pt", content)
    told = refused(capsys, plain / "9", "--out", out)
    assert "has no vocabulary map; its vocabulary is not compressed" in told
    assert not out.exists()
    assert not list(tmp_path.glob(".*"))


def map_of(rows):
    return {f"vocab_map.{name}": table for name, table in tables(rows=rows).items()}
