"""Vocabulary maps in checkpoints: ours, the seed's, and those that do not fit."""

import pytest
import torch

from config import ConfigError, parse_args
from distill.engine import files
from distill.engine.checkpoint import load_weights
from distill.registry import method_args
from model.vocab_map import TABLES
from tests.distill.runs import toy_run
from tests.model.test_vocab_map import ROWS, mapped_glm, tables
from tests.toy import VOCAB, toy_glm

NAMES = ["vocab_map." + name for name in TABLES]


def save(folder, weights, **more):
    files.write_tensors(folder / "5" / "mp_rank_00_model_states.pt", {"module": weights, **more})
    return folder / "5"


def fresh(**changes):
    return toy_glm(seed=7, map_vocab_size=ROWS, **changes)


def test_a_map_comes_back_with_the_weights(tmp_path):
    saved, model = mapped_glm(), fresh()
    load_weights(save(tmp_path, saved.state_dict()), model, what="--load-pretrained")
    assert all(torch.equal(v, saved.state_dict()[k]) for k, v in model.state_dict().items())


def test_the_seeds_entry_is_read(tmp_path):
    saved, model = mapped_glm(), fresh()
    weights = {k: v for k, v in saved.state_dict().items() if k not in NAMES}
    apart = {"glm.map_vocab_paras": tables() | {"origin_id_mask_map": tables()[TABLES[1]].long()}}
    folder = save(tmp_path, weights, important_nonparameters=apart)
    load_weights(folder, model, what="--load-pretrained")
    assert all(torch.equal(v, saved.state_dict()[k]) for k, v in model.state_dict().items())
    assert model.vocab_map.origin_id_mask_map.dtype is torch.bool


def test_an_official_file_has_no_such_entry(tmp_path):
    saved, model = toy_glm(seed=2), toy_glm(seed=3)
    folder = save(tmp_path, saved.state_dict(), important_nonparameters={})
    load_weights(folder, model, what="--load-pretrained")
    assert torch.equal(model.word_embeddings.weight, saved.word_embeddings.weight)


def changed(**entries):
    return mapped_glm().state_dict() | {f"vocab_map.{k}": v for k, v in entries.items()}


MISFITS = {
    "no map": (toy_glm().state_dict(), {}, "the file has no vocabulary map, the model has one; l"),
    "a map": (changed(), {"map_vocab_size": 0}, "the model has none; give --map_vocab_size=24"),
    "fewer rows": (changed(), {"map_vocab_size": 16}, r"word_embeddings.weight: \[24, 16\], the m"),
    "other ids": (changed(), {"vocab_size": 72}, r"origin_id_mask_map: \[64\], the model has \[7"),
    "out of range": (
        changed(origin_id_to_target_pos=torch.full((VOCAB,), 30)),
        {},
        "has values outside 0 to 23; it is no map of this model",
    ),
    "another's": (changed(**tables(rows=16)), {}, "keeps 16 ids, the word table has 24 rows"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_map_that_does_not_fit_is_named(name, tmp_path):
    weights, changes, words = MISFITS[name]
    model = toy_glm(**({"map_vocab_size": ROWS} | changes))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=words) as caught:
        load_weights(save(tmp_path, weights), model, what="--load-pretrained")
    assert str(caught.value).startswith("--load-pretrained: ")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# What config.json tells.


def saved_run(folder, *flags):
    run = toy_run("--map_vocab_size=24", *flags)
    files.write_json(folder / "config.json", run.to_dict())
    files.write_tensors(folder / "5" / "mp_rank_00_model_states.pt", {"module": {}})
    files.write_text(folder / "latest_checkpointed_iteration.txt", "5")
    return folder


def test_a_checkpoint_needs_no_flags_of_its_vocabulary(tmp_path):
    folder = saved_run(tmp_path, "--unmap_vocab_output")
    run = toy_run(f"--load-pretrained={folder}")
    assert (run.model.map_vocab_size, run.model.unmap_vocab_output) == (24, True)
    flags = ["--student_model=kd", f"--mt_load_pretrained={folder}:other"]
    run = parse_args(flags, program="pretrain", methods=method_args(), check=False)
    assert [teacher.map_vocab_size for teacher in run.teachers] == [24, 0]
    theirs = run.teachers[0].model_args(run.model)
    assert theirs.table_rows == 24
    assert theirs.logit_size == run.model.vocab_size  # a teacher's logits are of all ids


def test_what_a_map_needs_is_said():
    from config.vocabulary import map_problems

    def problems(*flags):
        return "\n".join(map_problems(toy_run("--map_vocab_size=0.5", *flags)))

    assert "add --student_build_map_vocab, or start from a checkpoint" in problems()
    assert problems("--student_build_map_vocab") == ""
    many = ("--student_model=kd", "--student_build_map_vocab", "--student_map_vocab_tn=1")
    assert "--student_map_vocab_tn=1: there is no such teacher" in problems(*many)
    empty = ("--student_model=kd", "--student_use_empty_glm", "--student_build_map_vocab")
    assert "--map_vocab_size=0.5: there is no student to compress" in problems(*empty)


@pytest.mark.parametrize("value", ["-1", "1.5", "-0.5"])
@pytest.mark.parametrize("prefix", ["--", "--teacher_"])
def test_sizes_that_are_no_numbers_of_ids(prefix, value):
    from config.model import shape_problems

    flag = f"{prefix}map_vocab_size={value}"
    if prefix == "--":
        with pytest.raises(ConfigError, match="must be a whole number of ids"):
            toy_run(flag)
    else:
        (teacher,) = toy_run("--student_model=kd", flag).teachers
        (problem,) = shape_problems(teacher)
        assert problem.startswith(f"--teacher_map_vocab_size={float(value)}: must be a whole")
    with pytest.raises(ConfigError, match="--mt_map_vocab_size=x: 'x' must be a number"):
        toy_run("--student_model=kd", "--mt_map_vocab_size=x")
