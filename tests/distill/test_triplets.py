"""Structures of MGSKD against loops over single vectors."""

import itertools

import pytest
import torch
from torch import Tensor

from distill import triplets
from distill.triplets import (
    mean_of_tokens,
    pair_differences,
    random_spans,
    sample_differences,
    select,
    span_means,
    span_members,
    triplet_differences,
)

HEADS = 2
MASK = torch.tensor([[1.0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])


def states(width: int, seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, width, generator=generator)


STUDENT, TEACHER = states(4, 0, 3, 6), states(6, 1, 3, 6)


def units(row: int) -> list[int]:
    return [i for i in range(6) if MASK[row, i]]


def heads_of(x: Tensor) -> list[Tensor]:
    """[h] -> one [h / HEADS] a head: neighbouring entries."""
    return list(x.chunk(HEADS))


def angle(vertex: Tensor, one: Tensor, other: Tensor) -> float:
    return float(torch.cosine_similarity(one - vertex, other - vertex, dim=0))


def smooth_l1(x: float, y: float) -> float:
    distance = abs(x - y)
    return distance**2 / 2 if distance < 1 else distance - 0.5


def attention(row: int) -> dict[tuple[int, int], float]:
    """(query, key) -> the teacher's attention, summed over heads."""
    result = dict.fromkeys(itertools.product(units(row), repeat=2), 0.0)
    for i in units(row):
        for head in range(HEADS):
            at = [heads_of(TEACHER[row, j])[head] for j in units(row)]
            scores = torch.stack([heads_of(TEACHER[row, i])[head] @ key for key in at])
            for j, p in zip(units(row), (scores / 3**0.5).softmax(0), strict=True):
                result[i, j] += float(p)
    return result


def chosen(row: int, k1: int, k2: int) -> dict[int, set[int]]:
    """Vertex -> its points."""
    weights = attention(row)
    received = {j: sum(weights[i, j] for i in units(row)) for j in units(row)}
    vertices = sorted(received, key=received.get)[-k1:]
    return {
        i: set(sorted((j for j in units(row) if j != i), key=lambda j: weights[i, j])[-k2:])
        for i in vertices
    }


def test_pairs():
    sums, counts = pair_differences(STUDENT, TEACHER, MASK, HEADS)
    for b in range(3):
        expected = 0.0
        for i, j in itertools.product(units(b), repeat=2):
            for head in range(HEADS):
                own, target = (
                    heads_of(x[b, i])[head] @ heads_of(x[b, j])[head] / (x.size(-1) / HEADS) ** 0.5
                    for x in (STUDENT, TEACHER)
                )
                expected += float((own - target) ** 2)
        assert float(sums[b]) == pytest.approx(expected, rel=1e-5)
        assert float(counts[b]) == HEADS * len(units(b)) ** 2


def test_pairs_of_a_good_student_are_exact():
    teacher = states(64, 0, 2, 50) + 5 * states(64, 1)  # with much in common
    student = (teacher + 1e-3 * states(64, 2, 2, 50)).requires_grad_()

    def dense(x: Tensor) -> Tensor:
        heads = x.double().unflatten(-1, (8, -1)).transpose(1, 2)
        return heads @ heads.transpose(-1, -2) / 8**0.5

    actual, _ = pair_differences(student, teacher, torch.ones(2, 50), 8)
    expected = (dense(student) - dense(teacher)).square().sum((1, 2, 3))
    torch.testing.assert_close(actual, expected.float(), rtol=1e-5, atol=0)
    grads = [torch.autograd.grad(x.sum(), student)[0] for x in (actual, expected)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5 * float(grads[1].abs().max()))


@pytest.mark.parametrize(("k1", "k2"), [(2, 3), (1, 2), (6, 6), (20, 20), (4, 1)])
def test_triplets(k1, k2):
    sums, counts = triplet_differences(STUDENT, TEACHER, MASK, HEADS, k1, k2)
    for b in range(3):
        expected, number = 0.0, 0
        for i, points in chosen(b, k1, k2).items():
            for j, k in itertools.permutations(points, 2):
                own, target = (angle(x[b, i], x[b, j], x[b, k]) for x in (STUDENT, TEACHER))
                expected += smooth_l1(own, target)
                number += 1
        assert float(sums[b]) == pytest.approx(expected, rel=1e-4, abs=1e-7)
        assert float(counts[b]) == number


def test_the_teacher_selects(monkeypatch):
    for elements in (triplets.CHUNK_ELEMENTS, 1):  # heads at once, and one by one
        monkeypatch.setattr(triplets, "CHUNK_ELEMENTS", elements)
        vertices, points = select(TEACHER, MASK, HEADS, 2, 2)
        assert vertices.shape == (3, 2)
        assert points.shape == (3, 2, 2)
        for b in range(3):
            expected = chosen(b, 2, 2)
            for i, near in zip(vertices[b].tolist(), points[b].tolist(), strict=True):
                assert i in expected
                assert expected[i] <= set(near)


@pytest.mark.parametrize("function", [pair_differences, triplet_differences])
def test_padding_changes_neither_value_nor_gradient(function):
    results = []
    options = (HEADS, 4, 3) if function is triplet_differences else (HEADS,)
    for extra in (0, 5):
        student, teacher = (
            torch.cat((x * MASK.unsqueeze(-1), 7 * states(x.size(-1), 2, 3, extra)), 1)
            for x in (STUDENT, TEACHER)
        )
        mask = torch.nn.functional.pad(MASK, (0, extra))
        student.requires_grad_()
        sums, counts = function(student, teacher, mask, *options)
        sums.sum().backward()
        assert not bool((student.grad * (1 - mask).unsqueeze(-1)).any())
        results.append((sums, counts, student.grad[:, :6]))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("chunk", [None, 1])
def test_samples(chunk, monkeypatch):
    if chunk:
        monkeypatch.setattr(triplets, "CHUNK_ELEMENTS", chunk)
    student, teacher = (x.flatten(0, 1)[:5] for x in (STUDENT, TEACHER))
    mask = torch.tensor([1.0, 1, 0, 1, 1])
    sums, counts = sample_differences(student, teacher, mask, HEADS)
    real = [0, 1, 3, 4]
    for i in range(5):
        expected = 0.0
        for j, k in itertools.permutations([n for n in real if n != i], 2):
            for head in range(HEADS):
                own, target = (
                    angle(*(heads_of(x[n])[head] for n in (i, j, k))) for x in (student, teacher)
                )
                expected += smooth_l1(own, target)
        assert float(sums[i]) == pytest.approx(expected * (i in real), rel=1e-4)
        assert float(counts[i]) == HEADS * 16 * (i in real)


@pytest.mark.parametrize("number", [1, 2])
def test_two_samples_have_no_angle(number):
    student = states(4, 0, number).requires_grad_()
    sums, counts = sample_differences(student, states(6, 1, number), torch.ones(number), HEADS)
    assert torch.equal(sums, torch.zeros(number))
    assert counts.tolist() == [HEADS * number**2] * number
    sums.sum().backward()
    assert torch.equal(student.grad, torch.zeros(number, 4))


def test_copies_of_a_sample_have_no_direction():
    # Choices that fill a sample up are copies of its first one.
    student, teacher = (states(w, w, 4)[[0, 1, 2, 0]].requires_grad_() for w in (4, 6))
    sums, _ = sample_differences(student, teacher, torch.ones(4), HEADS)
    assert sums.isfinite().all()
    sums.sum().backward()
    assert student.grad.isfinite().all()
    assert bool(student.grad.any())
    assert teacher.grad.isfinite().all()  # one that is trained
    assert bool(teacher.grad.any())


@pytest.mark.parametrize("units", [0, 1, 2])
def test_fewer_than_three_units_have_no_angle(units):
    student = STUDENT.clone().requires_grad_()
    mask = (torch.arange(6) < units).float().expand(3, 6)
    sums, counts = triplet_differences(student, TEACHER, mask, HEADS, 20, 20)
    assert torch.equal(sums, torch.zeros(3))
    assert torch.equal(counts, torch.zeros(3))
    sums.sum().backward()
    assert torch.equal(student.grad, torch.zeros(3, 6, 4))


def test_no_units_at_all():
    student = torch.zeros(3, 0, 4, requires_grad=True)
    teacher, mask = torch.zeros(3, 0, 6), torch.zeros(3, 0)
    for sums, counts in (
        pair_differences(student, teacher, mask, HEADS),
        triplet_differences(student, teacher, mask, HEADS, 20, 20),
    ):
        assert sums.tolist() == counts.tolist() == [0.0, 0.0, 0.0]
        sums.sum().backward()


def test_a_student_like_its_teacher_loses_nothing():
    for sums in (
        pair_differences(STUDENT, STUDENT, MASK, HEADS)[0],
        triplet_differences(STUDENT, STUDENT, MASK, HEADS, 4, 4)[0],
        sample_differences(STUDENT[:, 0], STUDENT[:, 0], MASK[:, 0], HEADS)[0],
    ):
        assert torch.equal(sums, torch.zeros(3))


def test_captures_are_not_changed():
    student, teacher = STUDENT.clone(), TEACHER.clone()
    pair_differences(student, teacher, MASK, HEADS)
    triplet_differences(student, teacher, MASK, HEADS, 4, 4)
    mean_of_tokens(student, MASK)
    assert torch.equal(student, STUDENT)
    assert torch.equal(teacher, TEACHER)


def test_mean_of_tokens():
    mask = torch.tensor([[1.0, 1, 0], [0, 0, 0]])
    x = torch.arange(12.0).view(2, 3, 2)
    assert mean_of_tokens(x, mask).tolist() == [[1.0, 2.0], [0.0, 0.0]]


def test_members_and_means_of_spans():
    members = span_members([[2, 1], [1], []], 4)
    assert members.tolist() == [
        [[1, 1, 0, 0], [0, 0, 1, 0]],
        [[1, 0, 0, 0], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [0, 0, 0, 0]],
    ]
    x = torch.arange(24.0).view(3, 4, 2)
    assert span_means(members, x)[0].tolist() == [[1.0, 2.0], [4.0, 5.0]]
    assert span_means(members, x)[1].tolist() == [[8.0, 9.0], [0.0, 0.0]]
    assert span_members([[], []], 4).shape == (2, 0, 4)
    shared = span_means(span_members([[3, 1]], 4), x)  # one segmentation for all
    assert shared.shape == (3, 2, 2)
    assert shared[2].tolist() == [[18.0, 19.0], [22.0, 23.0]]


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 8, 26, 512])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.4, 1.0])
def test_random_spans_fill_the_length(length, rate):
    number = int(rate * length)
    for seed in range(20):
        lengths = random_spans(length, number, torch.Generator().manual_seed(seed))
        assert len(lengths) == number
        if number:
            assert sum(lengths) == length
            assert min(lengths) >= 1


def test_random_spans_are_uneven_and_follow_the_generator():
    drawn = [random_spans(100, 10, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert max(drawn[0]) > 2 * min(drawn[0])


def test_what_is_left_goes_to_the_last_spans():
    generator = torch.Generator().manual_seed(3)
    shares = torch.randn(5, generator=generator, dtype=torch.float64).abs()
    floors = [int(share / shares.sum() * 15) + 1 for share in shares]
    rest = 20 - sum(floors)
    assert 0 < rest < 5
    expected = [n + (i >= 5 - rest) for i, n in enumerate(floors)]
    assert random_spans(20, 5, torch.Generator().manual_seed(3)) == expected
