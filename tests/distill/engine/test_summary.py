"""Numbers of a run: exact means over ranks, and files that a resumed run continues."""

import json
import math

import pytest
import torch

import mpu
from config import RunArgs, TrainArgs
from data_utils.batch import Batch
from distill.engine.summary import LOSS, Meter, Summary, count_tokens, forget_after
from tests.distill.engine.small import runtime
from tests.ranks import run_ranks


def batch(lengths, weight=None, choices=None):
    """Rows of these lengths, padded; `choices` real ones of each sample."""
    rows, longest = len(lengths), max(max(x) if isinstance(x, list) else x for x in lengths)
    flat = [n for x in lengths for n in (x if isinstance(x, list) else [x])]
    position = torch.zeros(len(flat), 2, longest, dtype=torch.long)
    for row, length in enumerate(flat):
        position[row, 0, :length] = torch.arange(length)
    shape = (rows, -1) if isinstance(lengths[0], list) else (rows,)
    tokens = torch.ones(len(flat), longest, dtype=torch.long)
    return Batch(
        tokens=tokens.view(*shape, longest),
        position_ids=position.view(*shape, 2, longest),
        attention_mask=torch.zeros(len(flat)).view(shape),
        labels=torch.zeros(rows, dtype=torch.long),
        weight=None if weight is None else torch.tensor(weight),
        choice_mask=None if choices is None else torch.tensor(choices),
    )


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (batch([3, 5, 1]), 9),
        (batch([3, 5], weight=[1.0, 0.0]), 3),
        (batch([[3, 4], [2, 2]]), 11),
        (batch([[3, 4], [2, 2]], choices=[[1.0, 1.0], [1.0, 0.0]]), 9),
    ],
)
def test_tokens_are_counted_without_padding_and_fillers(one, expected):
    assert count_tokens(one) == expected


def measure(rank, world_size):
    mpu.initialize_model_parallel(1)
    meter = Meter(torch.device("cpu"))
    for step in range(3):
        loss = torch.tensor(float("nan") if rank == step == 1 else 10.0 * rank + step)
        terms = {"pre_loss/soft": torch.tensor(float(step)), "constant": 2.0}
        meter.add(batch([3, 5], weight=[1.0, float(rank)]), loss, terms)
    return meter.read()


def test_means_are_over_all_ranks_without_what_is_not_finite():
    for means, samples, tokens, seconds in run_ranks(2, measure):
        assert means[LOSS] == pytest.approx((0 + 1 + 2 + 10 + 12) / 5)
        assert means["pre_loss/soft"] == pytest.approx(1.0)
        assert means["constant"] == 2.0
        assert (samples, tokens) == (3 + 6, 3 * 3 + 3 * 8)
        assert seconds > 0


def test_a_meter_of_nans_says_nan():
    meter = Meter(torch.device("cpu"))
    meter.add(batch([3]), torch.tensor(math.inf), {})
    assert math.isnan(meter.read()[0][LOSS])


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_are_one_json_a_line(tmp_path):
    run = RunArgs(program="pretrain", train=TrainArgs(custom_no_summary_writer=True))
    summary = Summary(run, runtime(run_dir=tmp_path))
    summary.write(3, {"Train/lr": 0.5, LOSS: math.nan})
    summary.write(6, {"Train/lr": 0.25, LOSS: 1.0})
    summary.close()
    assert lines(tmp_path / "metrics.jsonl") == [
        {"iteration": 3, "Train/lr": 0.5, LOSS: None},
        {"iteration": 6, "Train/lr": 0.25, LOSS: 1.0},
    ]


def test_a_resumed_run_forgets_what_it_will_repeat(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"iteration": i, LOSS: i} for i in (5, 10, 15)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"iteration": 20, "Tr')
    forget_after(path, 10)
    assert lines(path) == rows[:2]
    forget_after(tmp_path / "none", 10)


def test_other_ranks_write_nothing(tmp_path):
    run = RunArgs(program="pretrain")
    summary = Summary(run, runtime(1, 2, tmp_path))
    summary.write(1, {"Train/lr": 1.0})
    summary.close()
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_has_the_same_numbers(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    summary = Summary(RunArgs(program="pretrain"), runtime(run_dir=tmp_path))
    numbers = {"Train/lr": 0.5, "inter_loss/logits_t0": 1.25}
    summary.write(7, numbers)
    summary.close()
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    actual = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in numbers}
    assert actual == {name: [(7, value)] for name, value in numbers.items()}
