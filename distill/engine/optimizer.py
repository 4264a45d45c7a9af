"""AdamW or Adafactor over GLM's parameter groups."""

import torch
from torch import nn

from config.training import OptimizerArgs
from distill.engine.adafactor import Adafactor
from model.build import parameter_groups


def build_optimizer(
    module: nn.Module, optim: OptimizerArgs, device: torch.device
) -> torch.optim.AdamW | Adafactor:
    """AdamW (Loshchilov, Hutter, 2019, arXiv 1711.05101) for the trainable parameters.

    Weight decay leaves biases and LayerNorm out. One kernel for all parameters where torch has it
    (CPU, CUDA): it can also skip an update on the device, without asking the host.
    """
    if optim.optimizer == "adafactor":
        return Adafactor(parameter_groups(module, optim.weight_decay), lr=optim.lr)
    return torch.optim.AdamW(
        parameter_groups(module, optim.weight_decay),
        lr=optim.lr,
        betas=(optim.adam_beta1, optim.adam_beta2),
        eps=optim.adam_eps,
        fused=device.type in ("cpu", "cuda"),
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The rate of the next step, for every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
