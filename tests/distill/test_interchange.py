"""Which positions are drawn, and what the swap makes of two passes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from config import ConfigError
from distill.capture import block_output, output
from distill.interchange import CONSECUTIVE, MASKED, RANDOM, Interchange, InterchangeArgs, draw

LENGTHS = [9, 14, 0, 5, 20, 3]  # the third sample only fills the batch
WIDTH = 20


def tokens() -> Tensor:
    return torch.arange(WIDTH) < torch.tensor(LENGTHS)[:, None]


def drawn(seed: int = 0, candidates: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    options = {"way": RANDOM, "proportion": 0.3, "most": -1} | options
    mask = tokens()
    generator = torch.Generator().manual_seed(seed)
    return draw(mask, mask if candidates is None else candidates, **options, generator=generator)


def numbers(proportion: float, most: int = 100) -> list[int]:
    following = [*LENGTHS[1:], LENGTHS[0]]
    return [
        min(most, int(min(a, b) * proportion + 1e-9))
        for a, b in zip(LENGTHS, following, strict=True)
    ]


@pytest.mark.parametrize("way", [CONSECUTIVE, RANDOM])
@pytest.mark.parametrize(("proportion", "most"), [(0.3, -1), (1.0, -1), (0.5, 2), (0.0, -1)])
def test_as_many_positions_as_the_shorter_sample_allows(way, proportion, most):
    put, take = drawn(way=way, proportion=proportion, most=most)
    expected = numbers(proportion, most if most >= 0 else 100)
    assert put.dtype == take.dtype == torch.bool
    assert put.sum(1).tolist() == expected
    assert take.sum(1).tolist() == expected


@pytest.mark.parametrize("way", [CONSECUTIVE, RANDOM])
def test_padding_and_fillers_neither_give_nor_take(way):
    for seed in range(20):
        put, take = drawn(seed, way=way, proportion=0.9)
        assert not bool((put & ~tokens()).any())
        assert not bool((take.roll(1, 0) & ~tokens()).any())  # row i is about sample i + 1
        assert not put[2].any(), "a filler takes nothing"
        assert not put[1].any(), "and gives nothing"


def test_consecutive_positions_are_side_by_side_anywhere_in_the_sample():
    firsts = set()
    for seed in range(300):
        put, take = drawn(seed, way=CONSECUTIVE)
        for mask in (put, take):
            for row in mask:
                places = row.nonzero().flatten().tolist()
                assert places == list(range(places[0], places[0] + len(places))) if places else True
        firsts.add(int(put[0].nonzero()[0]))
    assert firsts == set(range(9 - 2 + 1)), "2 of 9 tokens: every start from 0 to 7"


def test_random_positions_are_all_possible_and_drawn_apart():
    seen = torch.zeros(2, WIDTH, dtype=torch.bool)
    equal = 0
    for seed in range(100):
        put, take = drawn(seed)
        seen |= torch.stack([put[0], take[0]])
        equal += torch.equal(put[0], take[0])
    assert seen[0].tolist() == (torch.arange(WIDTH) < 9).tolist()
    assert seen[1].tolist() == (torch.arange(WIDTH) < 14).tolist()
    assert equal < 20


@pytest.mark.parametrize("way", [MASKED, CONSECUTIVE])
def test_candidates_limit_both_samples(way):
    candidates = tokens() & (torch.arange(WIDTH) % 3 == 2)
    put, take = drawn(candidates=candidates, way=way, proportion=1.0)
    counts = candidates.sum(1)
    expected = torch.minimum(counts, counts.roll(-1)).tolist()
    assert put.sum(1).tolist() == take.sum(1).tolist() == expected
    assert not bool((put & ~candidates).any() or (take & ~candidates.roll(-1, 0)).any())


def test_a_draw_follows_from_its_generator():
    for first, second in zip(drawn(3), drawn(3), strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(drawn(3)[0], drawn(4)[0])


def test_a_batch_of_one_swaps_within_its_sample():
    mask = torch.ones(1, 10, dtype=torch.bool)
    options = {"way": RANDOM, "proportion": 0.3, "most": -1}
    put, take = draw(mask, mask, **options, generator=torch.Generator().manual_seed(0))
    assert put.sum() == take.sum() == 3


def swapped(put: Tensor, take: Tensor, given: Tensor, x: Tensor) -> Tensor:
    """By loops: the k-th place of sample i gets the k-th one marked in sample i + 1."""
    rows = x.clone()
    for i in range(len(x)):
        source = given[(i + 1) % len(x)]
        places = zip(put[i].nonzero().flatten(), take[i].nonzero().flatten(), strict=True)
        for to, of in places:
            rows[i, to] = source[of]
    return rows


@pytest.mark.parametrize("way", [CONSECUTIVE, RANDOM])
def test_the_swap_and_its_gradients(way):
    generator = torch.Generator().manual_seed(1)
    given, x, weight = (torch.randn(6, WIDTH, 4, generator=generator) for _ in range(3))
    masks = drawn(5, way=way, proportion=0.8)
    results = []
    for function in (Interchange(*masks).swap, lambda *pair: swapped(*masks, *pair)):
        pair = [t.clone().requires_grad_() for t in (given, x)]
        y = function(*pair)
        (y * weight).sum().backward()
        results.append([y.detach(), *(t.grad for t in pair)])
    for actual, expected in zip(*results, strict=True):
        assert torch.equal(actual, expected)
    assert not torch.equal(results[0][0], x)


def test_the_swap_has_the_dtype_of_what_it_edits_and_writes_into_nothing():
    x, given = torch.zeros(6, WIDTH, 2, dtype=torch.bfloat16), torch.ones(6, WIDTH, 2)
    put, take = drawn()
    actual = Interchange(put, take).swap(given, x)
    assert actual.dtype == torch.bfloat16
    assert torch.equal(actual[..., 0] == 1, put)
    assert not x.any()


def test_edits_stand_where_the_states_were():
    put, take = drawn()
    interchange = Interchange(put, take)
    assert interchange.edits(0) == {}
    states = {
        point: torch.full((6, WIDTH, 2), k) for k, point in enumerate((block_output(2), output()))
    }
    interchange.given[0] = states
    hook_op, x = interchange.edits(0), torch.zeros(6, WIDTH, 2)
    below = hook_op["transformer"]
    assert torch.equal(below["output"](output=x), interchange.swap(states[output()], x))
    assert torch.equal(below["layers"][1]["tf_output"](tf_output=x), x)
    assert list(below["layers"]) == [1]


@pytest.mark.parametrize("part", [-0.1, 1.5])
def test_a_fraction_that_is_none_is_refused(part):
    with pytest.raises(ConfigError, match=r"--diito_interchange_prop=.*: must be in \[0, 1\]"):
        InterchangeArgs(diito_interchange_prop=part)
