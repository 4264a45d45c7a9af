"""Adapter: a learned projection that a method puts between student and teacher."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mpu


class Adapter(nn.Linear):
    """A linear layer that is whole on every model-parallel rank: fp32 in, fp32 out.

    Its inputs are replicated, its initial values are keyed by the seed and its name, so its
    gradients and values stay equal on all ranks. Autocast does not reach it: what it makes goes
    straight into a loss.
    """

    def __init__(
        self, inputs: int, outputs: int, *, seed: tuple[int | str, ...], bias=True, xavier=False
    ):
        """`seed`: words for `mpu.derive_seed`. xavier: normal weights of variance 2 / (in + out)

        and bias 0 (as in the seed's column-parallel projections); otherwise torch's own.
        """
        super().__init__(inputs, outputs, bias=bias)
        generator = torch.Generator().manual_seed(mpu.derive_seed(*seed))
        bound = inputs**-0.5
        with torch.no_grad():
            if xavier:
                self.weight.normal_(0.0, (2 / (inputs + outputs)) ** 0.5, generator=generator)
            else:
                self.weight.uniform_(-bound, bound, generator=generator)
            if bias:
                self.bias.uniform_(-bound, bound, generator=generator)
                self.bias.mul_(0.0 if xavier else 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs], computed and returned in fp32."""
        with torch.autocast(x.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return F.linear(x.float(), self.weight.float(), bias)


class OwnLayerNorm(nn.LayerNorm):
    """A LayerNorm, as GLM's, for what goes straight into a loss: fp32 whatever comes in."""

    def __init__(self, width: int):
        super().__init__(width, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """[..., h] -> [..., h]"""
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps)
