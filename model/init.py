"""Initial weights: normal distributions drawn from a generator of the model's own."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

import mpu

InitMethod = Callable[[Tensor], object]


def normal(std: float, generator: torch.Generator) -> InitMethod:
    """Fills a tensor in place from N(0, std^2). The global generators are left alone."""

    def fill(tensor: Tensor) -> Tensor:
        with torch.no_grad():
            return tensor.normal_(0.0, std, generator=generator)

    return fill


def embedding(rows: int, width: int, init_method: InitMethod) -> nn.Embedding:
    """A table [rows, width], whole on every rank."""
    table = torch.empty(rows, width)
    init_method(table)
    return nn.Embedding(rows, width, _weight=table)


def linear(input_size: int, output_size: int, init_method: InitMethod) -> nn.Linear:
    """A layer [..., in] -> [..., out], whole on every rank, with bias 0."""
    layer = nn.utils.skip_init(nn.Linear, input_size, output_size)
    init_method(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def gathered_linear(
    input_size: int, output_size: int, init_method: InitMethod
) -> mpu.ColumnParallelLinear:
    """A layer [..., in] -> [..., out], cut by rows, whose output is whole on every rank."""
    return mpu.ColumnParallelLinear(
        input_size, output_size, gather_output=True, init_method=init_method
    )
