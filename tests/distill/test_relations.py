"""Relations against loops over single vectors."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distill import relations
from distill.context import LossContext
from distill.relations import (
    all_angles,
    cosines,
    inner_products,
    layer_angles,
    layer_distances,
    lean,
    mean_of,
    rows_of,
    word_angles,
    word_distances,
)
from distill.rows import Rows, local_rows

MASK = torch.tensor([[1.0, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])


def states(width: int, seed: int, layers: int = 3, length: int = 5) -> list[Tensor]:
    """One [b, s, h] a layer."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, length, width, generator=generator) for _ in range(layers)]


STUDENT, TEACHER = states(4, 0), states(6, 1)


def angle(vertex: Tensor, one: Tensor, other: Tensor) -> float:
    """Cosine between two differences; 0 where one of them is no vector."""
    a, b = one - vertex, other - vertex
    if a.norm() == 0 or b.norm() == 0:
        return 0.0
    return float(a @ b / a.norm() / b.norm())


def kl_of(student: list[Tensor], teacher: list[Tensor], at: int) -> float:
    """KL between the softmaxes over the cosines of vector `at` to the others."""
    logs = []
    for vectors in (student, teacher):
        others = [v for i, v in enumerate(vectors) if i != at]
        if not others:
            return 0.0
        cos = torch.stack([F.cosine_similarity(vectors[at], v, dim=0) for v in others])
        logs.append(cos.log_softmax(0))
    log_q, log_p = logs
    return float((log_p.exp() * (log_p - log_q)).sum())


def tokens(row: int) -> list[int]:
    return [i for i in range(5) if MASK[row, i]]


def grads(loss: Tensor, student: list[Tensor]) -> Tensor:
    return torch.stack(torch.autograd.grad(loss, student))


def test_cosines():
    x = STUDENT[0]
    expected = F.cosine_similarity(x.unsqueeze(1), x.unsqueeze(2), dim=-1)
    torch.testing.assert_close(cosines(x), expected)


def test_angles_by_hand():
    square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    actual = all_angles(inner_products(square))
    half = 0.5**0.5
    expected = torch.tensor([[0, 0, 0, 0], [0, 1, 0, half], [0, 0, 1, half], [0, half, half, 1]])
    torch.testing.assert_close(actual[0], expected, rtol=0, atol=1e-6)
    assert actual.shape == (4, 4, 4)


def test_equal_vectors_have_no_angle_and_a_finite_gradient():
    x = torch.ones(4, 3, requires_grad=True)
    result = all_angles(inner_products(x))
    assert torch.equal(result, torch.zeros(4, 4, 4))
    result.sum().backward()
    assert torch.equal(x.grad, torch.zeros(4, 3))


def test_what_all_vectors_share_does_not_blur_their_angles():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 8, generator=generator) + 1000 * torch.randn(8, generator=generator)
    exact = all_angles(inner_products(x.double() - x.double().mean(0)).double())
    torch.testing.assert_close(all_angles(inner_products(x)), exact.float(), rtol=0, atol=1e-4)
    x = x.float()
    blurred = all_angles(x @ x.T)
    assert float((blurred - exact).abs().max()) > 0.01  # without the centre they would be


def test_word_distances():
    sums, counts = word_distances(STUDENT, TEACHER, MASK)
    for b, i in itertools.product(range(3), range(5)):
        at = tokens(b)
        expected = 0.0
        if i in at:
            for s, t in zip(STUDENT, TEACHER, strict=True):
                expected += kl_of([s[b, j] for j in at], [t[b, j] for j in at], at.index(i))
        assert float(sums[b, i]) == pytest.approx(expected, rel=1e-4, abs=1e-7)
        assert float(counts[b, i]) == 3 * len(at) * (i in at)


@pytest.mark.parametrize("window", [1, 3, 5, 21])
@pytest.mark.parametrize("clamped", [False, True])
def test_word_angles(window, clamped):
    sums, counts = word_angles(STUDENT, TEACHER, MASK, window, clamped=clamped)
    reach = window // 2
    for b, i in itertools.product(range(3), range(5)):
        points = [i + o for o in range(-reach, reach + 1)]
        if clamped:
            points = [min(max(j, 0), 4) for j in points]
        else:
            points = [j for j in points if j in tokens(b)]
        expected = 0.0
        for s, t in zip(STUDENT, TEACHER, strict=True):
            for j, k in itertools.product(points, points):
                own, target = (angle(x[b, i], x[b, j], x[b, k]) for x in (s, t))
                expected += (own - target) ** 2
        real = i in tokens(b)
        assert float(sums[b, i]) == pytest.approx(expected * real, rel=1e-4, abs=1e-6)
        assert float(counts[b, i]) == 3 * len(points) ** 2 * real


def test_layer_relations():
    distances, pairs = layer_distances(STUDENT, TEACHER, MASK)
    differences, triples = layer_angles(STUDENT, TEACHER, MASK)
    for b, i in itertools.product(range(3), range(5)):
        own, target = ([x[b, i] for x in each] for each in (STUDENT, TEACHER))
        expected = [sum(kl_of(own, target, k) for k in range(3)), 0.0]
        for k, m, n in itertools.product(range(3), repeat=3):
            expected[1] += (
                angle(own[k], own[m], own[n]) - angle(target[k], target[m], target[n])
            ) ** 2
        real = float(MASK[b, i])
        actual = [float(distances[b, i]), float(differences[b, i])]
        assert actual == pytest.approx([x * real for x in expected], rel=1e-4, abs=1e-6)
        assert [float(pairs[b, i]), float(triples[b, i])] == [9 * real, 27 * real]


EVERY = {
    "word_distances": word_distances,
    "word_angles": lambda s, t, m: word_angles(s, t, m, 5),
    "layer_distances": layer_distances,
    "layer_angles": layer_angles,
}


@pytest.mark.parametrize("name", EVERY)
def test_padding_changes_neither_value_nor_gradient(name):
    results = []
    for extra in (0, 4):
        student, teacher = (
            [torch.cat((x * MASK.unsqueeze(-1), 7 * y), 1) for x, y in zip(own, pad, strict=True)]
            for own, pad in (
                (STUDENT, states(4, 2, length=extra)),
                (TEACHER, states(6, 3, length=extra)),
            )
        )
        student = [x.requires_grad_() for x in student]
        mask = F.pad(MASK, (0, extra))
        sums, counts = EVERY[name](student, teacher, mask)
        results.append((sums[:, :5], counts[:, :5], grads(sums.sum(), student)[:, :, :5]))
        assert torch.equal(sums[:, 5:], torch.zeros(3, extra))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", EVERY)
def test_a_student_like_its_teacher_loses_nothing(name):
    student = [x.clone().requires_grad_() for x in STUDENT]
    sums, _ = EVERY[name](student, STUDENT, MASK)
    assert torch.equal(sums, torch.zeros(3, 5))
    assert float(grads(sums.sum(), student).abs().max()) < 1e-7


@pytest.mark.parametrize("name", EVERY)
def test_the_gradient_is_that_of_finite_differences(name):
    student = [x.double().requires_grad_() for x in STUDENT]
    direction = states(4, 5)
    sums, counts = EVERY[name](student, TEACHER, MASK)
    weights = torch.rand(3, 5, generator=torch.Generator().manual_seed(0)) * counts.gt(0)
    actual = sum(
        (g * d).sum()
        for g, d in zip(grads((sums * weights).sum(), student), direction, strict=True)
    )
    values = []
    for step in (0.02, -0.02):
        moved = [x.detach() + step * d for x, d in zip(student, direction, strict=True)]
        values.append(float((EVERY[name](moved, TEACHER, MASK)[0] * weights).sum()))
    assert float(actual) == pytest.approx((values[0] - values[1]) / 0.04, rel=5e-3)


@pytest.mark.parametrize("name", EVERY)
def test_a_trained_teacher_gets_its_gradient(name):
    student, teacher = ([x.clone().requires_grad_() for x in each] for each in (STUDENT, TEACHER))
    frozen = [x.clone().requires_grad_() for x in STUDENT]
    EVERY[name](frozen, TEACHER, MASK)[0].sum().backward()
    EVERY[name](student, teacher, MASK)[0].sum().backward()
    for one, other in zip(student, frozen, strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    # Along the gradient the loss changes by its square.
    with torch.no_grad():
        square = sum(x.grad.double().square().sum() for x in teacher)
        step = 1e-3 / square.sqrt()
        ahead, back = (
            EVERY[name](STUDENT, [x + sign * step * x.grad for x in teacher], MASK)[0]
            .double()
            .sum()
            for sign in (1, -1)
        )
    assert square > 0
    torch.testing.assert_close((ahead - back) / (2 * step), square, rtol=2e-2, atol=0)


@pytest.mark.parametrize("name", EVERY)
def test_the_backward_pass_keeps_no_relation_of_all_layers(name):
    layers, length = 6, 40
    student = [x.requires_grad_() for x in states(4, 0, layers, length)]
    teacher, mask = states(4, 1, layers, length), torch.ones(3, length)
    own = {x.data_ptr() for x in (*student, *teacher)}
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.data_ptr()] = x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        sums, _ = EVERY[name](student, teacher, mask)
    extra = sum(number for at, number in kept.items() if at not in own)
    assert extra < 3 * length * (length + 10)  # masks; a relation has that for each layer
    assert all(bool(x.any()) for x in grads(sums.sum(), student))


def test_lean_gives_the_same(monkeypatch):
    def gradient() -> Tensor:
        student = [x.clone().requires_grad_() for x in STUDENT]
        return grads(word_angles(student, TEACHER, MASK, 3)[0].sum(), student)

    assert float(lean(torch.sub, torch.tensor(3.0), torch.tensor(1.0))) == 2.0
    expected = gradient()
    monkeypatch.setattr(relations, "lean", lambda function, *inputs: function(*inputs))
    torch.testing.assert_close(gradient(), expected)


def test_mean_of_rows_and_pooled():
    sums = torch.tensor([[4.0, 9.0], [6.0, 99.0]])
    counts = torch.tensor([[2.0, 3.0], [0.0, 1.0]])
    rows = Rows(torch.tensor([[1.0, 1.0], [1.0, 0.0]]), torch.tensor(6.0), 2)
    assert float(mean_of(sums, counts, rows)) == pytest.approx((2 + 3 + 6) / 6)
    assert float(mean_of(sums, counts, rows, pooled=True)) == pytest.approx((4 + 9 + 6) / 5)
    for pooled in (False, True):
        kept = mean_of(sums, counts, rows, pooled=pooled, keep_batch=True)
        scalar = mean_of(sums, counts, rows, pooled=pooled)
        assert kept.shape == (2,)
        torch.testing.assert_close(kept.mean(), scalar)


@pytest.mark.parametrize("pooled", [False, True])
def test_mean_of_nothing_is_zero(pooled):
    rows = local_rows(torch.zeros(2, 3), 2)
    result = mean_of(torch.ones(2, 3), torch.ones(2, 3), rows, pooled=pooled, keep_batch=True)
    assert result.tolist() == [0.0, 0.0]


def test_rows_called_by_hand():
    x = torch.zeros(2, 3, 4)
    assert torch.equal(rows_of(LossContext(), "tokens", x).mask, torch.ones(2, 3))
    assert torch.equal(rows_of(LossContext(), "sequences", x).mask, torch.ones(2))
    ctx = LossContext(token_mask=torch.tensor([[1.0, 1, 0], [0, 0, 0]]))
    assert rows_of(ctx, "tokens", x).mask.tolist() == [[1, 1, 0], [0, 0, 0]]
    assert rows_of(ctx, "sequences", x).mask.tolist() == [1, 0]
    rows = local_rows(torch.ones(2), 2)
    assert rows_of(LossContext(rows={"sequences": rows}), "sequences", x) is rows
