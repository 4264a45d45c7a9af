"""A small module, runs without a command line, and training loops that ranks execute."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mpu
from config import OptimizerArgs, ParallelArgs, PrecisionArgs, RunArgs, TrainArgs
from distill.engine.launch import Runtime
from distill.engine.weights import whole_weights
from distill.engine.wrap import Engine, wrap

STEPS, ROWS, WIDTH = 20, 8, 8  # optimizer steps, samples of a global batch, numbers of a sample
LR = 0.01
SEED = 11
#: ZeRO-3 leaves small parameters whole; without this all of a toy model's.
PARTITION_ALL = {"stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0}


class Net(nn.Module):
    """LayerNorm, dropout, a part that is never used, and one that only the loss uses."""

    def __init__(self, dropout: float = 0.1):
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Linear(WIDTH, 16)
        self.norm = nn.LayerNorm(16)
        self.last = nn.Linear(16, 4)
        self.adapter = nn.Linear(16, 4)
        self.unused = nn.Linear(2, 2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, hook: Any = None) -> Any:
        """[b, 8] -> ([b, 4],), with a hook also a capture [b, 16], as a GLM's."""
        hidden = self.dropout(self.norm(torch.tanh(self.first(x))))
        outputs = (self.last(hidden),)
        return outputs if hook is None else (outputs, {("hidden",): hidden})


def make_run(
    stage: int | None = None, *, accumulation: int = 1, precision: str = "fp32", clip: float = 1.0
) -> RunArgs:
    """stage None: plain PyTorch; else DeepSpeed's ZeRO stage."""
    bf16, fp16 = precision == "bf16", precision == "fp16"
    return RunArgs(
        program="pretrain",
        train=TrainArgs(
            gradient_accumulation_steps=accumulation, clip_grad=clip, seed=SEED, batch_size=1
        ),
        optim=OptimizerArgs(lr=LR, weight_decay=0.1),
        parallel=ParallelArgs(deepspeed=stage is not None),
        precision=PrecisionArgs(bf16=bf16, fp16=fp16),
        deepspeed=None if stage is None else deepspeed_json(stage, accumulation, bf16, clip),
    )


def deepspeed_json(stage: int, accumulation: int, bf16: bool, clip: float) -> dict[str, Any]:
    """What part config hands over."""
    small = 5_000_000
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip,
        "steps_per_print": 10**9,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": bf16},
        "fp16": {"enabled": False},
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": small,
            "allgather_bucket_size": small,
            **(PARTITION_ALL if stage == 3 else {}),
        },
        "optimizer": {"type": "AdamW", "params": {"lr": LR, "torch_adam": True}},
    }


def runtime(rank: int = 0, world_size: int = 1, run_dir: Path | None = None) -> Runtime:
    """A process on the CPU."""
    return Runtime(torch.device("cpu"), rank, world_size, rank, run_dir)


def make_engine(
    rank: int, world_size: int, run: RunArgs, *, dropout: float = 0.1, run_dir: Path | None = None
) -> Engine:
    """An engine around a new Net."""
    mpu.initialize_model_parallel(1)
    return wrap(Net(dropout), run, runtime(rank, world_size, run_dir))


def global_batches() -> Tensor:
    """[steps, rows, width], the same everywhere."""
    return torch.randn(STEPS, ROWS, WIDTH, generator=torch.Generator().manual_seed(5))


def loss_of(engine: Engine, x: Tensor) -> Tensor:
    """[] squared errors of the output and of the adapter on a capture, over this micro-batch."""
    dtype = next(engine.module.parameters()).dtype
    (output,), captured = engine(x.to(dtype), hook={"hidden": None})
    with engine.autocast():
        adapted = engine.module.adapter(captured["hidden",])
    return (output.float() - x[:, :4]).square().mean() + (adapted.float() - 1).square().mean()


def train(
    engine: Engine,
    rank: int,
    world_size: int,
    accumulation: int,
    *,
    start: int = 0,
    stop: int = STEPS,
    poison: dict[int, float] | None = None,
    poison_weights: int | None = None,
) -> list[dict[str, Any]]:
    """Optimizer steps start..stop; one record each: mean loss, norm, applied, weights changed.

    poison: iteration -> factor of rank 0's loss. poison_weights: iteration whose input is infinite.
    """
    records = []
    for iteration in range(start, stop):
        parts = global_batches()[iteration].view(accumulation, world_size, -1, WIDTH)
        total = torch.zeros(())
        for k in range(accumulation):
            mpu.seed_step(SEED, iteration, k, rank)
            with engine.micro_step(last=k == accumulation - 1):
                x = parts[k, rank]
                if poison_weights == iteration and rank == 0:
                    x = x * torch.inf
                loss = loss_of(engine, x)
                if poison and rank == 0:
                    loss = loss * poison.get(iteration, 1.0)
                engine.backward(loss)
            total += loss.detach() / accumulation / world_size
        if world_size > 1:
            torch.distributed.all_reduce(total)
        before = snapshot(engine)
        result = engine.step(LR)
        records.append(
            {
                "loss": total.item(),
                "norm": result.grad_norm.item(),
                "applied": bool(result.applied),
                "scale": float(result.loss_scale),
                "changed": not same(before, snapshot(engine)),
            }
        )
    return records


def snapshot(engine: Engine) -> dict[str, Tensor]:
    """Weights, and what the optimizer remembers (moments, step counts), copied."""
    optimizer = getattr(engine, "optimizer", None) or engine._engine.basic_optimizer
    found = {f"w.{k}": v for k, v in whole_weights(engine.module, everywhere=True).items()}
    for number, state in enumerate(optimizer.state.values()):
        found |= {f"s{number}.{k}": torch.as_tensor(v).clone() for k, v in state.items()}
    return found


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bitwise."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# What ranks run -----------------------------------------------------------------------------------


def losses(rank: int, world_size: int, run: RunArgs, options: dict[str, Any]) -> Any:
    """Train a new engine; the records of this rank."""
    engine = make_engine(rank, world_size, run, dropout=options.pop("dropout", 0.0))
    return train(engine, rank, world_size, run.train.gradient_accumulation_steps, **options)
