"""Vector checks of mpu: the cross entropy over a vocabulary, whole and sharded."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

import mpu
from tests.ranks import run_ranks
from tests.vector_checks.common import Result, read_tensors


def _loss_and_gradient(
    rank: int, world_size: int, logits: Tensor, target: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss of each token and the gradient of sum(mask * loss), of this rank's shard."""
    if world_size > 1:
        mpu.initialize_model_parallel(world_size)
    shard = mpu.split(logits, mpu.Partition(dim=-1), rank, world_size).clone().requires_grad_()
    loss = mpu.vocab_parallel_cross_entropy(shard, target)
    (loss * mask).sum().backward()
    return loss.detach(), shard.grad


def check_vocab_cross_entropy(case: Path) -> list[Result]:
    """inputs logits [b, s, v], target, mask -> expected loss [b, s], grad_logits; p = 1 and 2."""
    inputs, expected = (
        read_tensors(case, "inputs.safetensors"),
        read_tensors(case, "expected.safetensors"),
    )
    result = Result(case.name)
    arguments = (inputs["logits"], inputs["target"], inputs["mask"])
    shards = {1: [_loss_and_gradient(0, 1, *arguments)]}
    if inputs["logits"].size(-1) % 2 == 0:
        shards[2] = run_ranks(2, _loss_and_gradient, *arguments)
    for size, outputs in shards.items():
        for rank, (loss, _) in enumerate(outputs):
            result.values(f"loss, rank {rank} of {size}", loss, expected["loss"])
        gradient = mpu.merge([g for _, g in outputs], mpu.Partition(dim=-1))
        result.gradient(f"grad_logits, {size} ranks", gradient, expected["grad_logits"])
    return [result]


CHECKS: dict[str, Callable[[Path], list[Result]]] = {
    "vocab_cross_entropy*": check_vocab_cross_entropy
}
