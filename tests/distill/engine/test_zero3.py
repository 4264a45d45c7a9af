"""A student that ZeRO-3 cuts while it is built starts as one that is built whole."""

import dataclasses

import torch

import mpu
from distill.context import TrainState
from distill.engine import files
from distill.engine.build import build_module
from distill.engine.weights import is_partitioned, whole_weights
from distill.engine.wrap import wrap
from distill.memory import LiveBytes
from distill.step import DistillStep
from tests.distill.engine.small import deepspeed_json, runtime
from tests.distill.runs import lm_task, rows_of, toy_run, toy_teachers
from tests.ranks import run_ranks
from tests.toy import toy_lm_batch

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


def train_both(rank, world_size):
    """Losses and weights of three steps: cut while built, cut afterwards."""
    mpu.initialize_model_parallel(1)
    run, task, found = start_of("bf16", None), lm_task(), []
    for place in (runtime(rank, world_size), None):
        teachers = toy_teachers(run, task)
        module = build_module(run, task, teachers, place)
        engine = wrap(module, run, runtime(rank, world_size))
        engine.module.train()
        step, losses = DistillStep(task, engine, teachers, run, TrainState()), []
        for number in range(3):
            batch = rows_of(toy_lm_batch(8, seed=number), 4 * rank, 4 * rank + 4)
            mpu.seed_step(1, number, 0, rank)
            with engine.micro_step(last=True):
                loss = step(batch, step.count([batch])).loss
                engine.backward(loss)
            engine.step(1e-3)
            losses.append(float(loss.detach()))
        found.append((losses, whole_weights(engine.module, everywhere=True)))
    return found


def test_training_goes_on_alike():
    for (actual, weights), (expected, expected_weights) in run_ranks(
        2, train_both, preload="deepspeed"
    ):
        assert actual == expected
        assert actual[2] != actual[0]
        for name, value in expected_weights.items():
            torch.testing.assert_close(weights[name], value, rtol=0, atol=0, msg=name)


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
