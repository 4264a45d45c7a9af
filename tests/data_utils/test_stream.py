"""Streaming with Hugging Face datasets: exact, resumable, a few blocks on the disk."""

import json
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from config.data import BlockLMArgs, DataArgs
from config.errors import ConfigError
from config.training import EvalArgs, TrainArgs
from data_utils import Batch, build_pretrain_loaders, stream
from data_utils.block import SpecialIds
from data_utils.corpora import find_corpus
from data_utils.infilling import BlankInfilling
from data_utils.stream import StreamDataset
from tests.data_utils.samples import jsonl, sentence, small_tokenizer

ROWS = [sentence(i, words=3 + i % 40) for i in range(400)]
OPTIONS = {"seq_length": 32, "seed": 1, "stream": "train"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("stream")
    jsonl(place / "a.jsonl", ROWS[:250])
    jsonl(place / "b.jsonl", ROWS[250:])
    return place


def dataset(folder: Path, cache: Path, **more) -> StreamDataset:
    tokenizer = small_tokenizer(folder)
    corpus = find_corpus(f"stream:{folder}/*.jsonl")
    corrupt = BlankInfilling(SpecialIds.of(tokenizer))
    return StreamDataset(corpus, tokenizer, corrupt, cache, OPTIONS, **({"samples": 16} | more))


def test_blocks_hold_the_rows_in_order_pass_after_pass(folder: Path, tmp_path: Path):
    found = dataset(folder, tmp_path)
    tokenizer = small_tokenizer(folder)
    texts: list[str] = []
    while len(texts) < 900:  # more than two passes
        block = found._block(len(list(found.folder.glob("end-*"))))
        texts += [tokenizer.decode(block[i].tolist()) for i in range(len(block))]
    expected = [tokenizer.decode(tokenizer.encode(row)) for row in ROWS]
    assert texts[:400] == expected
    assert texts[400:800] == expected
    assert len(list(found.folder.glob("block-*"))) == stream.KEPT


def test_samples_are_a_pure_function_of_seed_and_index(folder: Path, tmp_path: Path):
    first = dataset(folder, tmp_path / "one")
    expected = {i: first[i] for i in range(0, 200, 3)}
    again = dataset(folder, tmp_path / "two")
    late = again[198]  # a new cache that starts in the middle
    assert late == expected[198]
    for i in (0, 99, 150):  # blocks that are gone are read again
        assert first[i] == expected[i]
        assert again[i] == expected[i]
    assert first[~99].weight == 0
    assert first[~99].text == expected[99].text


def test_resuming_reads_on_from_the_last_place(folder: Path, tmp_path: Path, monkeypatch):
    first = dataset(folder, tmp_path)
    for i in range(0, 320, 16):
        first[i]
    taken = []
    take = stream._Stream.take
    monkeypatch.setattr(stream._Stream, "take", lambda *a: taken.append(1) or take(*a))
    resumed = dataset(folder, tmp_path)
    resumed[320]
    assert len(taken) == 1


def test_bad_rows(folder: Path, tmp_path: Path, caplog):
    jsonl(tmp_path / "a.jsonl", ["the cat"] * 50 + [""] + ["a dog"] * 50)
    found = dataset(tmp_path, tmp_path / "cache")
    with pytest.raises(ValueError, match=r"stream:.*row 51 .*'text' .*is empty; .*--skip-bad-lin"):
        found[300]
    found = dataset(tmp_path, tmp_path / "cache", skip_bad_lines=True)
    for i in range(0, 64, 16):
        found[i]
    assert "bad lines skipped" in caplog.text
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": "x"}) + "\n" for _ in range(9)))
    with pytest.raises(ValueError, match=r"no text under 'text' \(--text-key\); has body"):
        dataset(tmp_path, tmp_path / "other")[0]


def rows(step: list[Batch]) -> list:
    return [batch.tokens.tolist() for batch in step]


def test_loaders_of_a_stream_resume_exactly(folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(stream, "SAMPLES", 8)
    monkeypatch.setattr(
        StreamDataset.__init__, "__kwdefaults__", {"skip_bad_lines": False, "samples": 8}
    )
    name = f"stream:{folder}/*.jsonl"

    def steps(start: int = 0, rank: int = 0, ranks: int = 1, workers: int = 0) -> list:
        data = DataArgs(
            train_data=(name,),
            valid_data=(str(folder / "a.jsonl"),),
            split="1",
            seq_length=32,
            cache_dir=str(tmp_path),
            num_workers=workers,
        )
        train = TrainArgs(batch_size=4 // ranks, train_iters=12)
        args = (data, BlockLMArgs(), train, small_tokenizer(folder), rank, ranks, start)
        built = build_pretrain_loaders(*args, evaluation=EvalArgs(eval_iters=1))
        assert built.valid is not None
        return [rows(step) for step in built.train]

    whole = steps()
    assert steps(start=7) == whole[7:]
    assert steps(workers=2) == whole
    halves = [steps(rank=r, ranks=2) for r in (0, 1)]
    first = [batch for rank in halves for batch in rank[0]]
    assert sum(map(len, first)) == 4


def test_every_worker_of_a_loader_reads_the_whole_stream(folder: Path, tmp_path: Path):
    alone, numbers = dataset(folder, tmp_path / "one"), range(0, 96, 16)  # one of each block
    expected = [alone[i].text for i in numbers]
    batches = [[i] for i in numbers]
    shared = dataset(folder, tmp_path / "two")
    loader = DataLoader(shared, batch_sampler=batches, num_workers=2, collate_fn=list)
    assert [sample.text for (sample,) in loader] == expected


def test_files_come_by_name_whatever_the_folder_lists(tmp_path: Path):
    expected = [f"{letter}.jsonl" for letter in "abcdefgh"]
    for name in sorted(expected, key=lambda name: hash(name[::-1])):
        jsonl(tmp_path / name, [name])
    files = stream.files_in_order(f"{tmp_path}/*.jsonl")
    assert [Path(file).name for file in files] == expected
    (actual,) = stream.files_in_order(str(tmp_path / "a.jsonl"))
    assert Path(actual.removeprefix("file://")) == tmp_path / "a.jsonl"
    corpus = find_corpus(f"stream:{tmp_path}/*.jsonl")
    assert [row["text"] for row in stream._open(corpus)] == expected


def test_what_a_stream_cannot_do(folder: Path, tmp_path: Path):
    name, tokenizer = f"stream:{folder}/*.jsonl", small_tokenizer(folder)

    def build(**options) -> None:
        data = DataArgs(**({"train_data": (name,), "cache_dir": str(tmp_path)} | options))
        build_pretrain_loaders(data, BlockLMArgs(), TrainArgs(), tokenizer)

    with pytest.raises(ConfigError, match=r"--split=1000,1,1: .*cannot be divided; give --split=1"):
        build()
    with pytest.raises(ConfigError, match="must be the only corpus"):
        build(train_data=(name, str(folder / "a.jsonl")), split="1")
    with pytest.raises(ConfigError, match=r"--valid-data=stream:.*name files"):
        build(valid_data=(name,), split="1")
    with pytest.raises(ConfigError, match=r"--save-splits=x: .*streamed"):
        build(save_splits="x", split="1")
