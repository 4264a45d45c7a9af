"""Checkpoints: what is read from where, what must fit, and what a crash may not do."""

import dataclasses
import json
import time

import pytest
import torch

import mpu
from config import CheckpointArgs, ConfigError, NoArgs, RunArgs, TeacherArgs
from distill.engine import checkpoint, files
from distill.engine.checkpoint import Checkpoints, load_weights, read_config, resolve
from distill.engine.launch import Runtime
from distill.student import GLMStudent
from model.build import HeadSpec, add_head
from tests.distill.engine import small
from tests.ranks import run_ranks
from tests.toy import toy_glm, toy_model_args

WORDS = "word_embeddings.weight"
POSITIONS = "transformer.position_embeddings.weight"
BLOCKS = "transformer.block_position_embeddings.weight"


def save(folder, weights, tag="5", tracker=True, **more):
    """A checkpoint of the official layout."""
    files.write_tensors(folder / tag / "mp_rank_00_model_states.pt", {"module": weights, **more})
    if tracker:
        (folder / checkpoint.TRACKER).write_text(tag)
    return folder


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# Which files -------------------------------------------------------------------------------------


def test_a_run_is_found_by_its_tracker(tmp_path):
    save(tmp_path, {}, "7")
    assert resolve(tmp_path) == (tmp_path, "7")


@pytest.mark.parametrize("tag", ["7", "best", "release"])
def test_a_tag_may_be_named_directly(tmp_path, tag):
    save(tmp_path, {}, tag, tracker=False)
    assert resolve(tmp_path / tag) == (tmp_path, tag)


def test_weights_prefer_the_best_on_validation(tmp_path):
    save(save(tmp_path, {}, "9"), {}, "best", tracker=False)
    (tmp_path / checkpoint.BEST_TRACKER).write_text("best")
    assert resolve(tmp_path) == (tmp_path, "9")
    assert resolve(tmp_path, prefer_best=True) == (tmp_path, "best")


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="--load=.*nowhere: no such folder"):
        resolve(tmp_path / "nowhere", what="--load")
    with pytest.raises(FileNotFoundError, match="no checkpoint there"):
        resolve(tmp_path)
    (tmp_path / checkpoint.TRACKER).write_text("12")
    with pytest.raises(FileNotFoundError, match="names '12': no such folder"):
        resolve(tmp_path)


def test_config_is_read_from_the_tag_then_the_run(tmp_path):
    save(tmp_path, {})
    assert read_config(tmp_path) is None
    (tmp_path / "config.json").write_text('{"of": "run"}')
    assert read_config(tmp_path / "5") == {"of": "run"}
    (tmp_path / "5" / "config.json").write_text('{"of": "tag"}')
    assert read_config(tmp_path) == {"of": "tag"}
    (tmp_path / "5" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json: is not json"):
        read_config(tmp_path)


# What must fit -----------------------------------------------------------------------------------


def test_weights_go_into_the_model(tmp_path):
    source, target = toy_glm(seed=1), toy_glm(seed=2)
    save(tmp_path, source.state_dict())
    assert load_weights(tmp_path, target, what="--load-pretrained") is None
    assert equal(target.state_dict(), source.state_dict())


def test_half_precision_goes_into_fp32(tmp_path):
    source, target = toy_glm(seed=1), toy_glm(seed=2)
    save(tmp_path, {k: v.half() for k, v in source.state_dict().items()})
    load_weights(tmp_path, target, what="--load-pretrained")
    expected = {k: v.half().float() for k, v in source.state_dict().items()}
    assert equal(target.state_dict(), expected)


def test_position_tables_are_widened(tmp_path, caplog):
    source = toy_glm(seed=1, max_position_embeddings=20)
    target = toy_glm(seed=2, max_position_embeddings=40)
    own = target.state_dict()[POSITIONS].clone()
    save(tmp_path, source.state_dict())
    load_weights(tmp_path, target, what="--load-pretrained")
    actual = target.state_dict()[POSITIONS]
    assert torch.equal(actual[:21], source.state_dict()[POSITIONS])
    assert torch.equal(actual[21:], own[21:])
    told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert all(line.startswith(f"--load-pretrained: {tmp_path}") for line in told)
    words = [f"{table}: 21 rows in the file, 41 in the model" for table in (POSITIONS, BLOCKS)]
    assert [any(w in line for line in told) for w in words] == [True, True]
    assert len(told) == 2


def test_position_tables_are_not_cut(tmp_path):
    save(tmp_path, toy_glm(max_position_embeddings=40).state_dict())
    with pytest.raises(ValueError, match=rf"{POSITIONS}: \[41, 16\], the model has \[21, 16\]"):
        load_weights(tmp_path, toy_glm(max_position_embeddings=20), what="--load")


def test_every_misfit_is_named_with_both_shapes(tmp_path):
    weights = toy_glm().state_dict()
    weights[WORDS] = torch.zeros(96, 16)
    missing = "transformer.layers.1.mlp.dense_h_to_4h.bias"
    del weights[missing]
    weights["transformer.layers.2.mlp.dense_h_to_4h.bias"] = torch.zeros(64)
    save(tmp_path, weights)
    target = toy_glm(seed=2)
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit") as caught:
        load_weights(tmp_path, target, what="--teacher_load_pretrained")
    message = str(caught.value)
    assert "--teacher_load_pretrained" in message
    assert "mp_rank_00_model_states.pt" in message
    assert f"{WORDS}: [96, 16], the model has [64, 16]" in message
    assert f"{missing}: missing; the model has [64]" in message
    assert "transformer.layers.2.mlp.dense_h_to_4h.bias: [64], the model has none" in message
    assert equal(target.state_dict(), before)


class WithAdapter(GLMStudent):
    """A method with a parameter of its own."""

    def __init__(self, lm, args):
        super().__init__(lm, args)
        self.fit_dense = torch.nn.Linear(16, 24)


def student(seed=0):
    return WithAdapter(toy_glm(seed=seed), RunArgs(program="pretrain", method=NoArgs()))


def test_a_methods_own_parameters_may_be_new_or_left_out(tmp_path):
    plain, distilled = toy_glm(seed=1), student(seed=2)
    own = distilled.fit_dense.weight.detach().clone()
    save(tmp_path / "plain", plain.state_dict())
    load_weights(tmp_path / "plain", distilled, what="--load-pretrained")
    assert equal(distilled.origin_model.state_dict(), plain.state_dict())
    assert torch.equal(distilled.fit_dense.weight, own)

    save(tmp_path / "student", distilled.state_dict())
    assert "student.fit_dense.weight" in distilled.state_dict()
    other, bare = student(seed=3), toy_glm(seed=4)
    load_weights(tmp_path / "student", other, what="--load-pretrained")
    load_weights(tmp_path / "student", bare, what="--load-pretrained")
    assert torch.equal(other.fit_dense.weight, own)
    assert equal(bare.state_dict(), plain.state_dict())


@pytest.mark.parametrize("kind", ["single_token", "multi_token", "classification"])
def test_heads_take_a_bare_glm_and_give_one(tmp_path, kind):
    args = toy_model_args()
    lm = toy_glm(seed=1)
    save(tmp_path / "lm", lm.state_dict())
    with_head = add_head(toy_glm(seed=2), HeadSpec(kind, num_classes=3), args)
    load_weights(tmp_path / "lm", with_head, what="--load-pretrained")
    save(tmp_path / "head", with_head.state_dict())
    back = toy_glm(seed=3)
    load_weights(tmp_path / "head", back, what="--teacher_load_pretrained")
    assert equal(back.state_dict(), lm.state_dict())


def test_other_shards_are_refused(tmp_path):
    save(tmp_path, toy_glm().state_dict())
    files.write_tensors(tmp_path / "5" / "mp_rank_01_model_states.pt", {"module": {}})
    with pytest.raises(ValueError, match="has 2 model-parallel shards.*--model-parallel-size=2"):
        load_weights(tmp_path, toy_glm(), what="--load-pretrained")


def test_a_file_without_weights_is_named(tmp_path):
    files.write_tensors(tmp_path / "5" / "mp_rank_00_model_states.pt", {"model": {}})
    with pytest.raises(ValueError, match="mp_rank_00_model_states.pt has no entry 'module'"):
        load_weights(tmp_path / "5", toy_glm(), what="--load-pretrained")


def test_another_vocabulary_is_refused(tmp_path):
    save(tmp_path, {})
    (tmp_path / "config.json").write_text('{"tokenizer_fingerprint": "abc"}')
    run = RunArgs(program="pretrain", teachers=(TeacherArgs(load_pretrained=str(tmp_path)),))
    checkpoint.check_sources(run, "abc")
    with pytest.raises(ConfigError, match="--teacher_load_pretrained=.*another vocabulary"):
        checkpoint.check_sources(run, "abd")
    described = {"tokenizer_fingerprint": "abc", "tokenizer": {"tokenizer_path": "w.txt"}}
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(ConfigError, match="teachers must share one: give --tokenizer-path=w.txt"):
        checkpoint.check_sources(run, "abd")
    with pytest.raises(ConfigError, match=r"give --tokenizer-path=w.txt, or leave") as caught:
        checkpoint.check_tokenizer(tmp_path, "abd", what="--load-pretrained")
    assert "teachers" not in str(caught.value)
    (tmp_path / "config.json").unlink()  # as official files: only shapes can tell
    checkpoint.check_sources(run, "abd")


def test_a_missing_teacher_is_found_before_anything_is_built(tmp_path):
    run = RunArgs(program="pretrain", teachers=(TeacherArgs(load_pretrained=str(tmp_path / "x")),))
    with pytest.raises(FileNotFoundError, match="--teacher_load_pretrained=.*no such folder"):
        checkpoint.check_sources(run, "abc")


# Writing and resuming -----------------------------------------------------------------------------


def state(iteration=5):
    return {"iteration": iteration, "epoch": 1, "best": 3.5, "bad_steps": 0}


def saver(tmp_path, engine_run=None, **options):
    run = engine_run or small.make_run()
    run = dataclasses.replace(run, checkpoint=CheckpointArgs(save=str(tmp_path), **options))
    return Checkpoints(run, small.runtime(run_dir=tmp_path / "run"), "abc"), run


@pytest.fixture
def engine():
    yield small.make_engine(0, 1, small.make_run())
    mpu.destroy_model_parallel()


def test_a_checkpoint_describes_itself(tmp_path, engine):
    checkpoints, run = saver(tmp_path)
    checkpoints.save(engine, state())
    folder = tmp_path / "run"
    assert resolve(folder) == (folder, "5")
    config = json.loads((folder / "5" / "config.json").read_text())
    assert config["model"]["num_layers"] == run.model.num_layers
    assert config["tokenizer_fingerprint"] == "abc"
    assert (config["engine"], config["model_parallel_size"]) == ("plain", 1)
    content = files.read_tensors(folder / "5" / "mp_rank_00_model_states.pt")
    assert content["iteration"] == 5
    assert equal(content["module"], engine.module.state_dict())
    assert RunArgs.from_json(config) == run


def test_resuming_gives_the_state_back(tmp_path, engine):
    checkpoints, run = saver(tmp_path)
    small.train(engine, 0, 1, 1, stop=2)
    checkpoints.save(engine, state())
    other = small.make_engine(0, 1, run)
    assert checkpoints.resume(other, tmp_path / "run") == state()
    assert small.same(small.snapshot(engine), small.snapshot(other))


def test_another_global_batch_is_told(tmp_path, engine, caplog):
    checkpoints, run = saver(tmp_path)
    checkpoints.save(engine, state())
    checkpoints.resume(engine, tmp_path / "run")
    assert "global batch" not in caplog.text
    other = dataclasses.replace(run, train=dataclasses.replace(run.train, batch_size=6))
    Checkpoints(other, checkpoints.runtime, "abc").resume(engine, tmp_path / "run")
    assert "a global batch had 1 samples, now it has 6" in caplog.text


def test_the_tracker_is_written_last(tmp_path, engine, monkeypatch):
    """A crash at any moment of a save leaves the checkpoint before it in place."""
    checkpoints, run = saver(tmp_path)
    checkpoints.save(engine, state(5))
    for step in ("write_tensors", "write_json", "install_folder", "write_text"):
        with monkeypatch.context() as patch:

            def crash(*_):
                raise KeyboardInterrupt

            patch.setattr(files, step, crash)
            with pytest.raises(KeyboardInterrupt):
                checkpoints.save(engine, state(6))
        assert resolve(tmp_path / "run") == (tmp_path / "run", "5"), step
        assert checkpoints.resume(engine, tmp_path / "run")["iteration"] == 5
    checkpoints.save(engine, state(6))
    assert resolve(tmp_path / "run")[1] == "6"


def test_the_best_weights_have_a_tracker_of_their_own(tmp_path, engine):
    checkpoints, run = saver(tmp_path)
    checkpoints.save_weights(engine, checkpoint.BEST, state(3))
    folder = tmp_path / "run"
    assert resolve(folder) == (folder, "best")  # so that any tool finds weights
    checkpoints.save(engine, state(5))
    assert resolve(folder) == (folder, "5")
    assert resolve(folder, prefer_best=True) == (folder, "best")
    expected = {k: v.clone() for k, v in engine.module.state_dict().items()}
    with torch.no_grad():
        engine.module.last.weight.zero_()
    checkpoints.load_best(engine)
    assert equal(engine.module.state_dict(), expected)
    with pytest.raises(ValueError, match="no optimizer states"):
        checkpoints.resume(engine, folder / "best")


def test_weights_only_cannot_be_resumed(tmp_path, engine):
    checkpoints, run = saver(tmp_path, no_save_optim=True)
    checkpoints.save(engine, state())
    with pytest.raises(ValueError, match="no optimizer states, cannot be resumed.*load-pretrained"):
        checkpoints.resume(engine, tmp_path / "run")


def test_nothing_is_written_without_save_or_when_told_so(tmp_path, engine):
    checkpoints, run = saver(tmp_path, custom_no_save_checkpoint=True)
    checkpoints.save(engine, state())
    checkpoints.save_weights(engine, checkpoint.BEST, state())
    assert not (tmp_path / "run").exists()
    Checkpoints(small.make_run(), small.runtime(), "abc").save(engine, state())


def other_engine(rank, world_size, folder):
    """Save by ZeRO 1 on two ranks, try to go on otherwise; the messages."""
    run = small.make_run(1)
    run = dataclasses.replace(run, checkpoint=CheckpointArgs(save=str(folder)))
    engine = small.make_engine(rank, world_size, run)
    runtime = small.runtime(rank, world_size, folder / "run")
    Checkpoints(run, runtime, "abc").save(engine, state())
    found = []
    plain = small.make_run()
    try:
        Checkpoints(plain, runtime, "abc").resume(
            small.make_engine(rank, world_size, plain), folder / "run"
        )
    except ValueError as error:
        found.append(str(error))
    return found


def alone(rank, world_size, folder):
    run = small.make_run(1)
    engine = small.make_engine(rank, world_size, run)
    try:
        Checkpoints(run, small.runtime(rank, world_size, folder), "abc").resume(engine, folder)
    except ValueError as error:
        return str(error)
    return ""


def test_another_engine_or_number_of_processes_is_refused(tmp_path):
    for (message,) in run_ranks(2, other_engine, tmp_path, preload="deepspeed"):
        assert "was written by the engine 'deepspeed stage 1', this run has 'plain'" in message
    (message,) = run_ranks(1, alone, tmp_path / "run", preload="deepspeed")
    assert "cut for 2 data-parallel processes, this run has 1" in message


class Late(Runtime):
    """A process that is slow to go on after a barrier, so that it finds what others wrote."""

    def barrier(self):
        super().barrier()
        time.sleep(0.3 * self.rank)


def late(rank, world_size, folder):
    """Save weights, then meet."""
    run = dataclasses.replace(small.make_run(), checkpoint=CheckpointArgs(save=str(folder)))
    engine = small.make_engine(rank, world_size, run)
    runtime = Late(torch.device("cpu"), rank, world_size, rank, folder)
    Checkpoints(run, runtime, "abc").save_weights(engine, checkpoint.FINAL, state())
    met = torch.tensor([rank + 1])
    torch.distributed.all_reduce(met)
    return met.item()


def test_a_late_process_waits_where_the_others_do(tmp_path):
    assert run_ranks(2, late, tmp_path, timeout=20) == [3, 3]
    assert resolve(tmp_path) == (tmp_path, "final")


def shards(rank, world_size, folder):
    """Save and load a GLM cut in two; the weights of this rank before and after."""
    from distill.engine.wrap import wrap

    mpu.initialize_model_parallel(2)
    run = dataclasses.replace(small.make_run(), checkpoint=CheckpointArgs(save=str(folder)))
    runtime = small.runtime(rank, world_size, folder)
    engine = wrap(toy_glm(seed=3), run, runtime)
    Checkpoints(run, runtime, "abc").save(engine, state())
    other = toy_glm(seed=4)
    load_weights(folder, other, what="--load-pretrained")
    return equal(engine.module.state_dict(), other.state_dict()), other.state_dict()[WORDS].shape


def test_every_model_parallel_rank_has_its_file(tmp_path):
    for loaded, shape in run_ranks(2, shards, tmp_path):
        assert loaded
        assert shape == (32, 16)
    assert len(list((tmp_path / "5").glob("mp_rank_*_model_states.pt"))) == 2
    with pytest.raises(ValueError, match="has 2 model-parallel shards"):
        load_weights(tmp_path, toy_glm(), what="--load-pretrained")
