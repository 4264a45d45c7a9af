"""Text that goes on from step to step, against the documents written side by side."""

from pathlib import Path

import numpy as np
import pytest

from config.data import DataArgs
from config.errors import ConfigError
from config.training import EvalArgs, TrainArgs
from data_utils.build_text import build_text_loaders
from data_utils.parts import Part
from data_utils.text import TextDataset, collate_text
from tests.data_utils.samples import sentence, small_tokenizer, write_vocabulary

LENGTHS, PROMPTS = [5, 0, 30, 1, 12, 7], [0, 0, 4, 1, 0, 2]
ENC, EOS = 2, 3


class Texts:
    """Documents 100, 101, ...; 200, 201, ...; each with a prompt."""

    def __getitem__(self, number: int) -> np.ndarray:
        return 100 * (number + 1) + np.arange(LENGTHS[number])

    def prompt(self, number: int) -> int:
        return PROMPTS[number]


class Tokens:
    """The two command tokens that are asked for."""

    def get_command(self, name: str):
        return type("Command", (), {"Id": {"ENC": ENC, "eos": EOS}[name]})


def dataset(length: int, lanes: int, order: list[int], **options) -> TextDataset:
    ends = np.cumsum([LENGTHS[i] for i in order])
    part = Part(Texts(), np.array(order), ends)
    return TextDataset(part, Tokens(), seq_length=length, lanes=lanes, **options)


def side_by_side(order: list[int]) -> list[tuple[int, int, int]]:
    """(token, its place in its document from 1, whether it is a target)."""
    found = []
    for i in order:
        ids = [ENC, *Texts()[i].tolist(), EOS]
        targets = [False] + [k >= PROMPTS[i] for k in range(LENGTHS[i])] + [True]
        found += zip(ids, range(1, len(ids) + 1), targets, strict=True)
    return found


@pytest.mark.parametrize("length", [4, 7, 66, 100])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [4, 1, 0, 5, 3, 2]])
def test_chunks_are_the_text_cut_in_equal_parts(length, order):
    data, text = dataset(length, 1, order), side_by_side(order)
    assert data.num_tokens == len(text) == 67
    assert data.num_chunks == -(-66 // length)
    for number in range(data.num_chunks):
        batch = collate_text([data[number]])
        used = min(length, 66 - number * length)
        part = text[number * length : number * length + used + 1]
        assert batch.tokens[0].tolist() == [t for t, _, _ in part[:-1]] + [0] * (length - used)
        assert batch.labels[0, :used].tolist() == [t for t, _, _ in part[1:]]
        assert batch.position_ids[0].tolist() == [p for _, p, _ in part[:-1]] + [0] * (
            length - used
        )
        counts = [float(c) for _, _, c in part[1:]]
        assert batch.loss_mask[0].tolist() == counts + [0.0] * (length - used)
        assert (batch.attention_mask.tolist(), batch.sample_ids.tolist()) == ([0], [number])


@pytest.mark.parametrize("lanes", [1, 3, 4, 9, 20])
def test_lanes_read_on_go_round_and_are_evenly_spaced(lanes):
    data = dataset(4, lanes, [0, 1, 2, 3, 4, 5])
    total = data.num_chunks
    assert total == 17
    rows = [[data[k * lanes + lane].number for k in range(2 * total)] for lane in range(lanes)]
    for lane, row in enumerate(rows):
        assert row == [(row[0] + k) % total for k in range(2 * total)]
        assert abs(row[0] - lane * total / lanes) < 1
    assert data[~5].weight == 0
    assert data[~5].number == data[5].number


@pytest.mark.parametrize("lanes", [1, 3, 4, 9, 20])
def test_every_chunk_counts_once(lanes):
    data = dataset(4, lanes, [0, 1, 2, 3, 4, 5], once=True)
    chunks = [data[i] for i in range(data.steps * lanes)]
    assert sorted(c.number for c in chunks if c.weight) == list(range(data.num_chunks))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_vocabulary(folder)
    texts = [" ".join(sentence(i * 20 + j) for j in range(1 + i % 9)) for i in range(40)]
    (folder / "corpus.txt").write_text("\n".join(texts) + "\n")
    return folder


def loaders(corpus: Path, partition=(4, 1, 1), rank: int = 0, start: int = 0, seed: int = 3):
    micro, accumulation, ranks = partition
    data = DataArgs(
        train_data=(str(corpus / "corpus.txt"),),
        cache_dir=str(corpus / "cache"),
        seq_length=16,
        num_workers=0,
        split="8,1,1",
    )
    train = TrainArgs(
        batch_size=micro, gradient_accumulation_steps=accumulation, train_iters=5, seed=seed
    )
    sizes = data, train, small_tokenizer(corpus), rank, ranks, start
    return build_text_loaders(*sizes, evaluation=EvalArgs(eval_batch_size=2, eval_iters=100))


def rows(steps) -> list[list[list[int]]]:
    """Of every step, the tokens of each micro-batch's rows, one after the other."""
    return [[row for batch in step for row in batch.tokens.tolist()] for step in steps]


def test_each_place_of_a_batch_reads_on(corpus):
    steps = list(loaders(corpus, (2, 2, 1)).train)
    for before, after in zip(steps, steps[1:], strict=False):
        for old, new in zip(before, after, strict=True):
            assert old.labels[:, -1].tolist() == new.tokens[:, 0].tolist()
            first = new.position_ids[:, 0]
            assert ((old.position_ids[:, -1] + 1 == first) | (first == 1)).all()
            assert len(old) == 2


def test_the_rows_of_a_step_do_not_depend_on_how_it_is_cut(corpus):
    whole = rows(loaders(corpus).train)
    ranks = [rows(loaders(corpus, (1, 2, 2), rank).train) for rank in range(2)]
    for step, expected in enumerate(whole):
        assert sorted(ranks[0][step] + ranks[1][step]) == sorted(expected)
    assert rows(loaders(corpus, start=3).train) == whole[3:]
    assert rows(loaders(corpus, seed=4).train) != whole


def test_an_evaluation_reads_the_text_once(corpus):
    valid = loaders(corpus).valid
    batches = [batch for step in valid for batch in step]
    numbers = [
        int(n) for b in batches for n, w in zip(b.sample_ids, b.weight, strict=True) if w > 0
    ]
    assert sorted(numbers) == list(range(valid.dataset.num_chunks))


def test_a_streamed_corpus_is_refused(corpus, monkeypatch):
    monkeypatch.setattr("data_utils.build_text.find_stream", lambda data: object())
    with pytest.raises(ConfigError, match=r"--train-data=.*: is streamed, .*--block-lm"):
        loaders(corpus)
