"""Law: training without logits does not depend on the layout: tensor parallel x data x ZeRO 0 to 3.

The reference computes whole logits, in one process on plain PyTorch.
"""

import pytest

import distill.lazy_forward
import mpu
import mpu.row_losses
from tests.laws.test_layouts import new_step, run_of, train
from tests.ranks import run_ranks

STEPS = 4
LAYOUTS = ((2, 1), (1, 2), (2, 2))  # model parallel, data parallel


def on_rank(rank: int, world_size: int, kind: str, parallel: int, few: int) -> dict:
    """Losses and norms of some steps, by ZeRO stage (None: plain)."""
    mpu.initialize_model_parallel(parallel)
    distill.lazy_forward.FEW = few
    mpu.row_losses.CHUNK_ELEMENTS, mpu.row_losses.BLOCK_ELEMENTS = 600, 200
    stages = (None,) if few else (None, 0, 1, 2, 3)
    return {stage: train(new_step(run_of(kind, stage)), STEPS) for stage in stages}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "kd", "glmd"])
def test_every_layout_trains_as_whole_logits_on_one_process(kind):
    whole = 1 << 40
    (reference,) = run_ranks(1, on_rank, kind, 1, whole, preload="deepspeed")
    for parallel, data in LAYOUTS:
        ranks = run_ranks(parallel * data, on_rank, kind, parallel, 0, preload="deepspeed")
        for found in ranks:
            for stage, steps in found.items():
                for actual, expected in zip(steps, reference[None], strict=True):
                    assert actual == pytest.approx(expected, rel=1e-4), (parallel, data, stage)
