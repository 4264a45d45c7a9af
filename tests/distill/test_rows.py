"""Rows: masks, exact divisors, picking."""

import pytest
import torch

import mpu
from distill.rows import (
    Rows,
    count_rows,
    exact_rows,
    local_rows,
    masked_rows,
    seed_rows,
    spread,
    worth_picking,
)
from tests.ranks import run_ranks

MASK = torch.tensor([[1.0, 1, 0, 0], [1, 0, 0, 0]])
LOSSES = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])


def test_the_mean_divides_by_the_given_total():
    rows = Rows(MASK, torch.tensor(2.0), 2)
    assert float(rows.mean(LOSSES)) == (1 + 2 + 5) / 2
    assert rows.mean(LOSSES, keep_batch=True).tolist() == [3.0, 5.0]


def test_picked_rows_give_the_same_mean():
    rows = Rows(MASK, torch.tensor(2.0), 2, worth_picking(MASK))
    assert rows.index.tolist() == [0, 1, 4]
    picked = rows.pick(LOSSES)
    assert picked.tolist() == [1.0, 2.0, 5.0]
    for keep_batch in (False, True):
        expected = rows.mean(LOSSES, keep_batch)
        torch.testing.assert_close(rows.mean(picked, keep_batch), expected)


def test_pick_takes_whole_rows_and_their_gradient_goes_back():
    rows = Rows(MASK, torch.tensor(2.0), 2, worth_picking(MASK))
    x = torch.randn(2, 4, 3, requires_grad=True)
    picked = rows.pick(x)
    torch.testing.assert_close(picked, x.detach()[MASK.bool()])
    picked.sum().backward()
    torch.testing.assert_close(x.grad, MASK[..., None].expand(2, 4, 3))


def test_a_full_mask_is_not_picked():
    assert worth_picking(torch.ones(2, 4)) is None
    assert worth_picking(torch.tensor([0.0, 1.0])) is None, "samples are never picked"
    x = torch.randn(2, 4)
    assert Rows(torch.ones(2, 4), torch.tensor(1.0), 2).pick(x) is x


def test_masked_rows_count_a_constant_under_the_seeds_divisor():
    rows = seed_rows({"tokens": MASK}, torch.ones(2))["tokens"]
    assert float(rows.total) == 8
    expected = (8 + 5 * 0.5) / 8
    assert float(rows.mean(LOSSES, masked=0.5)) == pytest.approx(expected)
    assert float(rows.mean(rows.pick(LOSSES), masked=0.5)) == pytest.approx(expected)
    per_sample = rows.mean(LOSSES, keep_batch=True, masked=0.5)
    assert float(per_sample.mean()) == pytest.approx(expected)


def test_the_seeds_rows_leave_fillers_out():
    weight = torch.tensor([1.0, 0.0])
    rows = seed_rows({"tokens": MASK * weight[:, None], "samples": weight}, weight)
    assert float(rows["tokens"].total) == 4
    assert float(rows["all"].mean(LOSSES)) == (1 + 2 + 3 + 4) / 4
    assert float(rows["samples"].mean(torch.tensor([3.0, 9.0]))) == 3.0
    only = masked_rows(rows["all"], torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1]]))
    assert float(only.mean(LOSSES)) == 1 / 4


def test_weights_spread_over_flattened_choices():
    weight = torch.tensor([1.0, 0.0])
    assert spread(weight, torch.ones(4, 2)).tolist() == [[1, 1], [1, 1], [0, 0], [0, 0]]
    assert spread(weight, torch.ones(2)).tolist() == [1, 0]


def test_flattened_choices_are_one_value_a_sample():
    rows = Rows(torch.ones(4, 2), torch.tensor(8.0), 2)
    losses = torch.arange(8.0).view(4, 2)
    per_sample = rows.mean(losses, keep_batch=True)
    assert per_sample.tolist() == [(0 + 1 + 2 + 3) / 4, (4 + 5 + 6 + 7) / 4]


def test_an_empty_mask_is_zero():
    totals = count_rows([{"tokens": torch.zeros(2, 4)}], accumulation=1, device="cpu")
    rows = exact_rows({"tokens": torch.zeros(2, 4)}, totals, 2)["tokens"]
    assert float(rows.mean(rows.pick(LOSSES))) == 0.0
    assert float(local_rows(torch.zeros(2, 4), 2).mean(LOSSES)) == 0.0


def test_counts_divide_by_the_accumulation_that_was_configured():
    micro_batches = [
        {"tokens": MASK, "samples": torch.ones(2)},
        {"tokens": MASK, "samples": torch.ones(2)},
    ]
    totals = count_rows(micro_batches, accumulation=4, device="cpu")
    assert {k: float(v) for k, v in totals.items()} == {"samples": 1.0, "tokens": 1.5}


def count(rank: int, world_size: int) -> tuple[dict[str, float], int]:
    mpu.initialize_model_parallel(1)
    calls = []
    all_reduce = torch.distributed.all_reduce
    torch.distributed.all_reduce = lambda *a, **k: calls.append(a) or all_reduce(*a, **k)
    masks = [{"tokens": MASK * (rank + 1), "targets": MASK}, {"tokens": MASK, "targets": MASK}]
    totals = count_rows(masks, accumulation=2, device="cpu")
    return {k: float(v) for k, v in totals.items()}, len(calls)


def test_counts_cover_all_ranks_with_one_all_reduce():
    expected = {"tokens": (3 + 3 + 6 + 3) / 4, "targets": 12 / 4}
    for totals, calls in run_ranks(2, count):
        assert totals == expected
        assert calls == 1


def test_rows_move_to_a_device():
    rows = seed_rows({"tokens": MASK}, torch.ones(2))["tokens"].to("meta")
    assert {rows.mask.device.type, rows.index.device.type, rows.outside.device.type} == {"meta"}


def test_the_mean_of_each_samples_own_rows():
    for index in (None, worth_picking(MASK)):
        rows = Rows(MASK, torch.tensor(7.0), 2, index)
        assert rows.of_samples(LOSSES).tolist() == [1.5, 5.0]
        vectors = torch.stack([LOSSES, -LOSSES, LOSSES * 2], -1)
        assert rows.of_samples(vectors).tolist() == [[1.5, -1.5, 3], [5, -5, 10]]
        if index is not None:
            assert rows.of_samples(rows.pick(LOSSES)).tolist() == [1.5, 5.0]
            assert rows.of_samples(rows.pick(vectors)).tolist() == [[1.5, -1.5, 3], [5, -5, 10]]
    samples = Rows(torch.tensor([1.0, 0.0]), torch.tensor(1.0), 2)
    assert samples.of_samples(torch.tensor([3.0, 4.0])).tolist() == [3, 0]
    empty = Rows(torch.zeros(2, 4), torch.tensor(1.0), 2, worth_picking(torch.zeros(2, 4)))
    assert empty.of_samples(LOSSES).tolist() == [0, 0] == empty.of_samples(LOSSES[0, :0]).tolist()
    choices = Rows(MASK, torch.tensor(1.0), 1)  # two rows of one sample
    assert choices.of_samples(LOSSES).tolist() == [pytest.approx(8 / 3)]
    x = LOSSES.clone().requires_grad_()
    Rows(MASK, torch.tensor(1.0), 2).of_samples(x).sum().backward()
    assert x.grad.tolist() == [[0.5, 0.5, 0, 0], [1, 0, 0, 0]]
