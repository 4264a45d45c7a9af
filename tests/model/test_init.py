"""Initial values from a generator of one's own."""

import torch

from model.init import embedding, linear, normal


def test_normal_draws_from_its_generator():
    first = normal(0.5, torch.Generator().manual_seed(3))(torch.empty(2000))
    again = normal(0.5, torch.Generator().manual_seed(3))(torch.empty(2000))
    assert torch.equal(first, again)
    assert 0.47 < first.std() < 0.53


def test_tables_and_layers_do_not_touch_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    fill = normal(1.0, torch.Generator().manual_seed(1))
    table, layer = embedding(5, 3, fill), linear(3, 2, fill)
    assert torch.equal(torch.get_rng_state(), before)
    expected = torch.randn(15, generator=torch.Generator().manual_seed(1)).view(5, 3)
    assert torch.equal(table.weight, expected)
    assert table.weight.requires_grad
    assert layer.weight.requires_grad
    assert layer.weight.shape == (2, 3)
    assert layer.bias.tolist() == [0.0, 0.0]
