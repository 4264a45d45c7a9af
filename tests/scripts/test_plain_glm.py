"""The hand-written GLM of the benchmark against logits measured on the seed's GLM."""

import torch

from scripts.plain_glm import PlainGLM


def test_the_plain_glm_gives_the_golden_logits():
    model = PlainGLM(layers=2, hidden=16, heads=4, positions=15, vocab=32).eval()
    for j, (name, value) in enumerate(model.named_parameters()):
        i = torch.arange(value.numel(), dtype=torch.float64)
        fill = 0.08 * torch.sin(0.7 * i + 0.3 * j) + name.endswith("layernorm.weight")
        value.data.copy_(fill.view_as(value))
    tokens = torch.tensor([[3, 9, 5, 7, 1, 2, 11, 0], [3, 6, 5, 1, 2, 13, 14, 0]])
    places = [[0, 1, 2, 3, 4, 2, 2, 0], [0, 1, 2, 3, 2, 2, 2, 0]]
    blocks = [[0, 0, 0, 0, 0, 1, 2, 0], [0, 0, 0, 0, 1, 2, 3, 0]]
    position_ids = torch.tensor([places, blocks]).transpose(0, 1)
    with torch.no_grad():
        actual = model(tokens, position_ids, torch.tensor([5, 4]))
    expected = torch.tensor([-0.833356, -0.077396, 0.801932, 0.402989, -0.638315, -0.662151])
    torch.testing.assert_close(actual[0, 6, :6], expected, atol=1e-5, rtol=1e-5)
    expected = torch.tensor([-0.625360, -0.488334, 0.427091, 0.661738, -0.158420, -0.726057])
    torch.testing.assert_close(actual[1, 3, :6], expected, atol=1e-5, rtol=1e-5)
    assert abs(actual.abs().sum().item() - 222.79938) < 1e-3
