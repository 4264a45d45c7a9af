"""Frozen models from checkpoints: the same as built and loaded, without a copy in host memory."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch

import mpu
from distill.engine import files
from distill.engine.checkpoint import TRACKER, load_weights
from distill.frozen import load_frozen
from model.build import HeadSpec, add_head
from model.partition import partition_for
from tests.house import ROOT
from tests.ranks import run_ranks
from tests.toy import SHAPES, toy_glm, toy_lm_batch, toy_model_args

CPU = torch.device("cpu")


def save(folder, weights, size=1):
    """The official layout, cut by mpu.split."""
    for rank in range(size):
        cut = {k: mpu.split(v, partition_for(k), rank, size) for k, v in weights.items()}
        files.write_tensors(folder / "5" / f"mp_rank_{rank:02d}_model_states.pt", {"module": cut})
    (folder / TRACKER).write_text("5")
    return folder


def frozen(path, build, dtype=torch.float32, **more):
    return load_frozen(
        build, path, what="--teacher_load_pretrained", dtype=dtype, device=CPU, **more
    )


def classifier(seed=1, **shape):
    lm = toy_glm(seed=seed, output_predict=False, **shape)
    spec = HeadSpec("classification", num_classes=3)
    return add_head(lm, spec, toy_model_args(), seed=seed)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_shape_is_as_built_and_loaded(tmp_path, shape, dtype):
    path = save(tmp_path, toy_glm(seed=1, **SHAPES[shape]).state_dict())
    expected = toy_glm(seed=2, **SHAPES[shape])
    load_weights(path, expected, what="x")
    expected = expected.to(dtype).state_dict()
    actual = frozen(path, lambda: toy_glm(seed=2, **SHAPES[shape]), dtype)
    assert list(actual.state_dict()) == list(expected)
    for name, tensor in actual.state_dict(keep_vars=True).items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name
        assert not tensor.requires_grad
        assert mpu.partition_of(tensor) == partition_for(name)


def test_the_product_with_the_table_uses_the_table_that_was_read(tmp_path):
    source = toy_glm(seed=1).eval()
    batch = toy_lm_batch(2)
    inputs = batch.tokens, batch.position_ids, batch.attention_mask
    actual = frozen(save(tmp_path, source.state_dict()), lambda: toy_glm(seed=2)).eval()
    assert torch.equal(actual(*inputs)[0], source(*inputs)[0])


def test_what_a_checkpoint_lacks_has_its_initial_value(tmp_path):
    shorter = toy_glm(seed=1, max_position_embeddings=10)
    path = save(tmp_path, shorter.state_dict())
    expected = classifier(seed=3)
    load_weights(path, expected, what="x")
    actual = frozen(path, lambda: classifier(seed=3)).state_dict()
    assert list(actual) == list(expected.state_dict())
    assert all(torch.equal(actual[k], v) for k, v in expected.state_dict().items())


def on_rank(rank, world_size, path):
    mpu.initialize_model_parallel(world_size)
    batch = toy_lm_batch(2)
    inputs = batch.tokens, batch.position_ids, batch.attention_mask
    model = frozen(path, lambda: toy_glm(seed=9)).eval()
    shards = {k: v.clone() for k, v in model.state_dict().items()}
    return shards, mpu.gather_from_model_parallel_region(model(*inputs)[0]).detach()


@pytest.mark.parametrize(("p", "q"), [(1, 2), (4, 2), (2, 4)])
def test_ranks_read_their_part_of_any_number_of_shards(tmp_path, p, q):
    source = toy_glm(seed=1).eval()
    batch = toy_lm_batch(2)
    expected = source(batch.tokens, batch.position_ids, batch.attention_mask)[0]
    weights = source.state_dict()
    for rank, (shards, logits) in enumerate(run_ranks(q, on_rank, save(tmp_path, weights, p))):
        for name, whole in weights.items():
            assert torch.equal(shards[name], mpu.split(whole, partition_for(name), rank, q)), name
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_a_misfit_is_named_before_anything_is_read(tmp_path):
    path = save(tmp_path, toy_glm(num_layers=3).state_dict())
    with pytest.raises(ValueError, match="layers.2.*the model has none"):
        frozen(path, toy_glm)


MEASURE = """
    import re, sys, torch
    from config.model import ModelArgs
    from distill.frozen import load_frozen
    from model.build import HeadSpec, build_model

    def status(key):
        return int(re.search(key + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

    args = ModelArgs(num_layers=4, hidden_size=1024, num_attention_heads=4, vocab_size=8192)
    build = lambda: build_model(args, HeadSpec("lm"))
    with torch.device("meta"):
        build()  # what PyTorch imports for that is no part of the model
    before = status("VmRSS")
    model = load_frozen(build, sys.argv[1], what="x", dtype=torch.bfloat16, device=torch.device("cpu"))
    print(status("VmHWM") - before, sum(p.nbytes for p in model.parameters()))
"""


@pytest.mark.slow
def test_the_host_holds_the_model_in_its_type_and_little_more(tmp_path):
    # Resident set of a process, at its peak: 60 million parameters, fp32 in two shards, to bf16.
    from config.model import ModelArgs
    from model.build import build_model

    args = ModelArgs(num_layers=4, hidden_size=1024, num_attention_heads=4, vocab_size=8192)
    save(tmp_path, build_model(args, HeadSpec("lm")).state_dict(), 2)
    # glibc gives large blocks back at once; else it learns to keep some, in one process in three.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURE), str(tmp_path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    peak, size = map(int, done.stdout.split())
    assert size > 110e6
    assert peak < size + 64e6, (peak, size)  # a copy in fp32 alone would be 2 * size
