"""A student that ZeRO-3 cuts while it is built starts as one that is built whole."""

import dataclasses

import torch

import mpu
from distill.engine import files
from distill.engine.build import build_module
from distill.engine.weights import is_partitioned, whole_weights
from distill.memory import LiveBytes
from tests.distill.engine.small import deepspeed_json, runtime
from tests.distill.runs import lm_task, toy_run, toy_teachers
from tests.ranks import run_ranks

LAYERS, WIDTH = 10, 32
SIZES = [f"--num-layers={LAYERS}", f"--hidden-size={WIDTH}", "--teacher_num_layers=10"]
KD = ["--student_model=kd", "--distill_pt_soft"]
#: name -> (flags, bf16)
STARTS = {
    "alone": ([], False),
    "bf16": (KD, True),
    "shared layers": ([*KD, "--cross_layer_parameter_sharing"], False),
    "bottlenecks": ([*KD, "--inverted_bottleneck_mode", "--ib_hidden_size=16"], False),
    "from a teacher": ([*KD, "--student_truncate_tn=0"], False),
    "from a teacher, bf16": ([*KD, "--student_truncate_tn=0"], True),
    "from a checkpoint": (["--load-pretrained"], False),
}


def start_of(name, folder):
    """The run under ZeRO-3."""
    flags, bf16 = STARTS[name]
    flags = [f"{flag}={folder}" if flag == "--load-pretrained" else flag for flag in flags]
    run = toy_run(*SIZES, *flags)
    return dataclasses.replace(
        run,
        deepspeed=deepspeed_json(3, 1, bf16, 1.0),
        parallel=dataclasses.replace(run.parallel, deepspeed=True),
        precision=dataclasses.replace(run.precision, bf16=bf16),
    )


def write_checkpoint(folder, rank):
    """Weights of a model of the same sizes, drawn otherwise."""
    if rank == 0:
        module = build_module(toy_run(*SIZES, "--seed=5"), lm_task())
        (folder / "1").mkdir()
        files.write_tensors(
            folder / "1" / "mp_rank_00_model_states.pt", {"module": module.state_dict()}
        )
        (folder / "latest_checkpointed_iteration.txt").write_text("1\n")
    torch.distributed.barrier()


def build_both(rank, world_size, folder):
    """Name -> (cut, whole) weights, most bytes of each while it was built."""
    mpu.initialize_model_parallel(1)
    write_checkpoint(folder, rank)
    found = {}
    for name, (_, bf16) in STARTS.items():
        run, task, peaks, weights = start_of(name, folder), lm_task(), [], []
        teachers = toy_teachers(run, task)
        for place in (runtime(rank, world_size), None):
            with LiveBytes() as live:
                module = build_module(run, task, teachers, place)
            peaks.append(live.peak)
            cut = [is_partitioned(p) for p in module.parameters()]
            assert any(cut) is (place is not None)
            module.to(torch.bfloat16 if bf16 else torch.float32)  # of what is not cut
            weights.append(whole_weights(module, everywhere=True))
        found[name] = weights, peaks
    return found


def test_initial_weights_and_memory(tmp_path):
    ranks = run_ranks(2, build_both, tmp_path, preload="deepspeed")
    for found in ranks:
        for name, ((actual, expected), _) in found.items():
            assert actual.keys() == expected.keys()
            wrong = [key for key in expected if not torch.equal(actual[key].float(), expected[key].float())]  # fmt: skip
            assert wrong == [], name
        weights, (cut, whole) = found["alone"]
        layer = sum(
            v.nbytes for k, v in weights[1].items() if k.startswith("transformer.layers.0.")
        )
        rest = sum(v.nbytes for v in weights[1].values()) - LAYERS * layer
        assert whole >= LAYERS * layer + rest
        assert cut <= rest + (LAYERS / 2 + 2) * layer, "parts, and a layer with what it is drawn in"
    assert not torch.equal(
        ranks[0]["alone"][0][0]["word_embeddings.weight"],
        ranks[0]["from a checkpoint"][0][0]["word_embeddings.weight"],
    )
