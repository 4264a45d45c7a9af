"""DeepSpeed takes the module `mpu` as its mpu: same losses and norms at p = 1 and p = 2."""

import pytest
import torch
from torch.testing import assert_close

import mpu
from tests.mpu.test_grads import Model
from tests.ranks import run_ranks


def _config(stage):
    return {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_clipping": 0.5,
        "steps_per_print": 10**9,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": 5e6,
            "allgather_bucket_size": 5e6,
        },
        "optimizer": {"type": "AdamW", "params": {"lr": 0.01, "torch_adam": True}},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def _losses(rank, size, model_parallel_size, stage):
    """Losses of 4 steps with clipping, and the last gradient norm (None in fp32 at stage 0)."""
    import deepspeed

    mpu.initialize_model_parallel(model_parallel_size)
    engine, *_ = deepspeed.initialize(model=Model(), mpu=mpu, config=_config(stage))
    losses = []
    for step in range(4):
        ids = (torch.arange(12).view(2, 6) * 5 + step + mpu.get_data_parallel_rank()) % 12
        loss = (engine(ids) - 0.3).square().sum()
        engine.backward(loss)
        engine.step()
        losses.append(loss.detach())
    norm = engine.get_global_grad_norm()
    return torch.stack(losses), None if norm is None else float(norm)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_training_with_clipping_does_not_depend_on_the_size(stage):
    [(expected, expected_norm)] = run_ranks(1, _losses, 1, stage, preload="deepspeed")
    assert expected[0] != expected[-1]
    for losses, norm in run_ranks(2, _losses, 2, stage, preload="deepspeed"):
        assert_close(losses, expected, rtol=1e-5, atol=1e-6)
        if expected_norm is not None:
            assert norm == pytest.approx(expected_norm, rel=1e-4)


def test_model_and_data_parallel_together():
    # two replicas with different batches against two data-parallel ranks without sharding
    expected = run_ranks(2, _losses, 1, 1, preload="deepspeed")
    actual = run_ranks(4, _losses, 2, 1, preload="deepspeed")
    for rank, (losses, norm) in enumerate(actual):
        expected_losses, expected_norm = expected[rank // 2]
        assert_close(losses, expected_losses, rtol=1e-5, atol=1e-6)
        assert norm == pytest.approx(expected_norm, rel=1e-4)
