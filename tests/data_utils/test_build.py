"""From arguments to tokenizers and loaders: choices, splits, and the laws of batches."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from config.data import BlockLMArgs, DataArgs, TokenizerArgs
from config.errors import ConfigError
from config.training import EvalArgs, TrainArgs
from data_utils import Batch, Loaders, build_pretrain_loaders, build_tokenizer
from data_utils.build import load_parts
from data_utils.parts import split_documents
from tests.data_utils.samples import sentence, small_tokenizer, write_vocabulary

BLOCKS = BlockLMArgs(bert_prob=1.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_vocabulary(folder)
    texts = [" ".join(sentence(i * 20 + j) for j in range(1 + i % 9)) for i in range(40)]
    (folder / "corpus.txt").write_text("\n".join(texts) + "\n")
    return folder


def loaders(
    corpus: Path,
    partition: tuple[int, int, int] = (8, 1, 1),
    rank: int = 0,
    start: int = 0,
    seed: int = 3,
    block_position: bool = True,
    **options,
) -> Loaders:
    micro, accumulation, ranks = partition
    values = {"seq_length": 32, "num_workers": 0, "split": "8,1,1"} | options
    data = DataArgs(
        train_data=(str(corpus / "corpus.txt"),), cache_dir=str(corpus / "cache"), **values
    )
    train = TrainArgs(
        batch_size=micro, gradient_accumulation_steps=accumulation, train_iters=6, seed=seed
    )
    evaluation = EvalArgs(eval_batch_size=4, eval_iters=2)
    tokenizer = small_tokenizer(corpus)
    return build_pretrain_loaders(
        *(data, BLOCKS, train, tokenizer, rank, ranks, start),
        evaluation=evaluation,
        block_position=block_position,
    )


def rows(batches: list[Batch]) -> Iterator[tuple]:
    """The rows of batches without padding, in the order of their samples."""
    found = []
    for batch in batches:
        for i, number in enumerate(batch.sample_ids.tolist()):
            end = int(batch.loss_mask[i].nonzero().max()) + 1
            found.append(
                (
                    number,
                    batch.tokens[i, :end].tolist(),
                    batch.labels[i, :end].tolist(),
                    batch.position_ids[i, :, :end].tolist(),
                    int(batch.attention_mask[i]),
                )
            )
    return iter(sorted(found))


# ---- tokenizers


def test_which_tokenizer(tmp_path: Path):
    bert = build_tokenizer(TokenizerArgs(), BLOCKS)
    named = build_tokenizer(TokenizerArgs(tokenizer_model_type="bert-base-uncased"), BLOCKS)
    assert bert.padded_size() == 30592
    assert bert.fingerprint == named.fingerprint
    gpt2 = build_tokenizer(TokenizerArgs(tokenizer_type="GPT2BPETokenizer"), BLOCKS)
    assert gpt2.num_tokens == 50263
    chinese = build_tokenizer(
        TokenizerArgs(tokenizer_type="ChineseSPTokenizer", fix_command_token=True, task_mask=True),
        BlockLMArgs(block_mask_prob=0.1),
    )
    assert chinese.get_command("dBLOCK").Id == 50010
    sentinels = build_tokenizer(TokenizerArgs(), BlockLMArgs(sentinel_token=True), 16)
    assert sentinels.num_tokens == 30524 + 2 * 15
    masks = build_tokenizer(TokenizerArgs(task_mask=True), BLOCKS)
    assert masks.get_command("gMASK").Id == 30524
    write_vocabulary(tmp_path)
    for path in (tmp_path, tmp_path / "vocab.txt"):
        own = build_tokenizer(TokenizerArgs(tokenizer_path=str(path)), BLOCKS)
        assert own.fingerprint == small_tokenizer(tmp_path).fingerprint


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"tokenizer_type": "Bert"}, r"--tokenizer-type=Bert: .*BertWordPieceTokenizer"),
        (
            {"tokenizer_model_type": "bert-huge"},
            r"--tokenizer-model-type=bert-huge: .*bert-base-uncased",
        ),
        (
            {"tokenizer_model_type": "bert-base-uncased", "tokenizer_path": "x"},
            "give one of the two",
        ),
        ({"tokenizer_type": "GPT2BPETokenizer", "tokenizer_model_type": "roberta"}, "=roberta"),
        ({"tokenizer_type": "GPT2BPETokenizer", "tokenizer_model_type": "opt"}, "=opt: is no"),
    ],
)
def test_unknown_tokenizers(flags: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        build_tokenizer(TokenizerArgs(**flags), BLOCKS)


def test_a_vocabulary_that_is_not_there(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="none.txt"):
        build_tokenizer(TokenizerArgs(tokenizer_path=str(tmp_path / "none.txt")), BLOCKS)


# ---- parts


@pytest.mark.parametrize(
    ("number", "shares", "expected"),
    [
        (1000, (0.949, 0.05, 0.001), [949, 50, 1]),
        (1000, (0.998, 0.001, 0.001), [998, 1, 1]),
        (10, (0.999, 0.0005, 0.0005), [8, 1, 1]),
        (3, (0.998, 0.001, 0.001), [1, 1, 1]),
        (3, (0.1, 0.9, 0.0), [1, 2, 0]),
        (4, (0.01, 0.5, 0.49), [1, 1, 2]),
        (5, (1.0, 0.0, 0.0), [5, 0, 0]),
        (2, (0.9, 0.1, 0.0), [1, 1, 0]),
    ],
)
def test_parts_are_disjoint_and_not_empty(number: int, shares: tuple, expected: list[int]):
    parts = split_documents(number, shares, "a,b,c")
    assert sorted(map(len, parts)) == sorted(expected)
    assert [bool(len(p)) for p in parts] == [bool(s) for s in shares]
    assert sorted(i for p in parts for i in p.tolist()) == list(range(number))
    again = split_documents(number, shares, "a,b,c")
    assert all(a.tolist() == b.tolist() for a, b in zip(parts, again, strict=True))


def test_the_split_is_a_permutation():
    parts = split_documents(1000, (0.5, 0.25, 0.25), "2,1,1")
    assert parts[0].tolist() != list(range(500))
    assert 400 < parts[0].mean() < 600


def test_too_few_documents():
    with pytest.raises(ConfigError, match=r"--split=1000,1,1: .*2 document.*too few for 3 parts"):
        split_documents(2, (0.998, 0.001, 0.001), "1000,1,1")


def test_own_validation_data_replaces_its_share(corpus: Path, tmp_path: Path):
    file = tmp_path / "valid.txt"
    file.write_text("the cat\nthe dog\n")
    tokenizer = small_tokenizer(corpus)
    common = {"train_data": (str(corpus / "corpus.txt"),), "cache_dir": str(tmp_path / "cache")}
    data = DataArgs(**common, valid_data=(str(file),), split="8,1,1")
    train, valid, test = load_parts(data, tokenizer)
    assert (len(train), len(valid), len(test)) == (36, 2, 4)
    assert [tokenizer.decode(d.tolist()) for d in valid.documents] == ["the cat", "the dog"]
    data = DataArgs(**common, valid_data=(str(file),), test_data=(str(file),), split="8,1,1")
    assert [len(part) for part in load_parts(data, tokenizer)] == [40, 2, 2]
    with pytest.raises(ConfigError, match=r"--train-data: missing"):
        load_parts(DataArgs(), tokenizer)
    with pytest.raises(ConfigError, match=r"--valid-data=nowhere: neither"):
        load_parts(DataArgs(**common, valid_data=("nowhere",)), tokenizer)


def test_a_part_without_documents_has_no_loader(corpus: Path):
    built = loaders(corpus, split="1,1")
    assert built.valid is not None
    assert built.test is None


# ---- loaders


@pytest.mark.parametrize("partition", [(4, 2, 1), (2, 4, 1), (4, 1, 2), (1, 4, 2), (2, 1, 4)])
def test_any_partition_trains_on_the_same_samples(corpus: Path, partition: tuple[int, int, int]):
    expected = list(loaders(corpus).train)
    ranks = [list(loaders(corpus, partition, rank).train) for rank in range(partition[2])]
    assert len(expected) == 6
    for k, step in enumerate(expected):
        mine = [rank[k] for rank in ranks]
        assert {len(batches) for batches in mine} == {partition[1]}
        assert {len(batch) for batches in mine for batch in batches} == {partition[0]}
        assert list(rows(sum(mine, []))) == list(rows(step))
    numbers = [n for step in expected for b in step for n in b.sample_ids.tolist()]
    assert sorted(numbers) == list(range(48))


def test_ranks_train_on_different_samples(corpus: Path):
    ranks = [list(loaders(corpus, (4, 1, 2), rank).train) for rank in (0, 1)]
    for a, b in zip(*ranks, strict=True):
        assert not set(a[0].sample_ids.tolist()) & set(b[0].sample_ids.tolist())


def test_resuming_and_workers_change_nothing(corpus: Path):
    whole = list(loaders(corpus, (2, 2, 1)).train)
    rest = list(loaders(corpus, (2, 2, 1), start=4).train)
    parallel = list(loaders(corpus, (2, 2, 1), num_workers=2).train)
    for expected, actual in ((whole[4:], rest), (whole, parallel)):
        assert len(actual) == len(expected)
        for step, other in zip(expected, actual, strict=True):
            for batch, same in zip(step, other, strict=True):
                for name, tensor in batch.tensors().items():
                    torch.testing.assert_close(getattr(same, name), tensor, rtol=0, atol=0)


def test_evaluation_is_the_same_each_time_and_not_training_data(corpus: Path):
    built = loaders(corpus)
    assert built.valid is not None
    assert built.test is not None
    first, second = list(built.valid), list(built.valid)
    assert [len(step) for step in first] == [1, 1]
    assert list(rows(sum(first, []))) == list(rows(sum(second, [])))
    assert list(rows(sum(first, []))) != list(rows(sum(built.test, [])))
    parts = [set(x.dataset.part.numbers.tolist()) for x in (built.train, built.valid, built.test)]
    assert [len(p) for p in parts] == [32, 4, 4]
    assert set.union(*parts) == set(range(40))


def test_a_seed_changes_what_trains_and_not_what_validates(corpus: Path):
    one, other = loaders(corpus, seed=3), loaders(corpus, seed=4)
    assert list(rows(next(iter(one.train)))) != list(rows(next(iter(other.train))))
    for a, b in ((one.valid, other.valid), (one.test, other.test)):
        assert list(rows(sum(a, []))) == list(rows(sum(b, [])))
    assert one.train.dataset.part.numbers.tolist() == other.train.dataset.part.numbers.tolist()


def test_samples_fit_the_sequence_length(corpus: Path):
    for step in loaders(corpus).train:
        for batch in step:
            assert int(batch.position_ids.max()) < 32
            assert int(batch.attention_mask.max()) <= 32
            assert batch.tokens.dtype == batch.labels.dtype == torch.int64
            longest = (batch.attention_mask + batch.loss_mask.sum(-1).long()).max()
            assert batch.tokens.size(1) == longest  # padded to the longest, not to seq_length
            assert bool((batch.weight == 1).all())


def test_block_positions_can_be_left_out(corpus: Path):
    for flag in (True, False):
        built = loaders(corpus, block_position=flag)
        for loader in (built.train, built.valid, built.test):
            for batch in sum(loader, []):
                inside = batch.position_ids[:, 1][batch.loss_mask.bool()]
                assert inside.min() == 1
                assert (inside.max() > 1) == flag
                assert batch.position_ids[:, 1][~batch.loss_mask.bool()].eq(0).all()


def test_an_endless_stream(corpus: Path):
    data = DataArgs(
        train_data=(str(corpus / "corpus.txt"),),
        cache_dir=str(corpus / "cache"),
        seq_length=32,
        num_workers=0,
    )
    built = build_pretrain_loaders(data, BLOCKS, TrainArgs(batch_size=2), small_tokenizer(corpus))
    assert len(list(islice(built.train, 30))) == 30


def test_the_seeds_default_mixture(corpus: Path):
    """Half of the samples have short spans, half are generated; all ranks agree on them."""
    data = {"train_data": (str(corpus / "corpus.txt"),), "cache_dir": str(corpus / "cache")}
    args = (DataArgs(**data, num_workers=0, seq_length=64), BlockLMArgs(), TrainArgs(batch_size=8))
    built = build_pretrain_loaders(*args, small_tokenizer(corpus))
    batches = [step[0] for step in islice(built.train, 50)]
    kinds = torch.cat([batch.kinds for batch in batches])
    assert set(kinds.tolist()) == {0, 2}
    assert 0.4 < kinds.eq(0).float().mean() < 0.6
    for batch in batches:
        generated = batch.kinds == 2
        pieces = batch.tokens == small_tokenizer(corpus).get_command("sop").Id
        assert pieces[generated].sum(1).eq(1).all()


def test_evaluation_may_have_another_length(corpus: Path):
    built = loaders(corpus, seq_length=32, eval_seq_length=16)
    assert built.valid is not None
    assert max(int(b.position_ids[:, 0].max()) for step in built.valid for b in step) < 16
    assert max(int(b.position_ids[:, 0].max()) for step in built.train for b in step) > 16


def test_splits_are_saved_and_loaded(corpus: Path, tmp_path: Path):
    common = {"train_data": (str(corpus / "corpus.txt"),), "cache_dir": str(tmp_path / "cache")}
    tokenizer = small_tokenizer(corpus)
    files = {"save_splits": str(tmp_path / "order"), "save_test_data": str(tmp_path / "test.txt")}
    first = load_parts(DataArgs(**common, **files, split="8,1,1"), tokenizer)
    lines = (tmp_path / "test.txt").read_text().splitlines()
    held = [first[2].documents[int(n)].tolist() for n in first[2].numbers]
    assert lines == [tokenizer.decode(ids) for ids in held]
    order = np.load(tmp_path / "order.npy")
    np.save(tmp_path / "mine.npy", order[::-1])
    mine = load_parts(
        DataArgs(**common, load_splits=str(tmp_path / "mine.npy"), split="8,1,1"), tokenizer
    )
    assert sorted(mine[2].numbers.tolist()) == sorted(order[:4].tolist())


def test_weights_of_corpora(corpus: Path, tmp_path: Path):
    (tmp_path / "b.txt").write_text("the cat sat\n" * 5)
    data = DataArgs(
        train_data=(str(corpus / "corpus.txt"), str(tmp_path / "b.txt")),
        train_data_weights=(0.0, 1.0),
        cache_dir=str(tmp_path / "cache"),
        num_workers=0,
        seq_length=32,
        split="1",
    )
    built = build_pretrain_loaders(data, BLOCKS, TrainArgs(batch_size=8), small_tokenizer(corpus))
    tokenizer = small_tokenizer(corpus)
    words = set(tokenizer.decode(next(iter(built.train))[0].tokens.flatten().tolist()).split())
    assert words & {"dog", "ran", "mat"} == set()
    assert "cat" in words
