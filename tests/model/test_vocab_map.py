"""Vocabulary compression of a model: word vectors and logits against dense PyTorch, for every p."""

import pytest
import torch
import torch.nn.functional as F

import mpu
from model.vocab_map import TABLES, VocabMap, VocabOutput, take_columns
from tests.ranks import run_ranks
from tests.toy import VOCAB, merged, rank_grads, toy_glm, toy_lm_batch
from tests.toy import toy_tables as tables

ROWS = 24


def mapped_glm(**changes):
    model = toy_glm(map_vocab_size=ROWS, **changes)
    model.vocab_map.set_tables(tables())
    return model


def run_model(rank: int, size: int, unmapped: bool, narrow: int):
    """(logits of all columns, gradients of the parameters) for a fixed weighting of the logits."""
    mpu.initialize_model_parallel(size)
    model = mapped_glm(unmap_vocab_output=unmapped, compress_word_emb=narrow)
    batch = toy_lm_batch()
    logits = model(batch.tokens, batch.position_ids, batch.attention_mask)[0]
    whole = mpu.gather_from_model_parallel_region(logits)
    weights = torch.randn(whole.shape, generator=torch.Generator().manual_seed(5))
    (whole * weights).sum().backward()
    grads = rank_grads(model)
    return whole.detach(), {k: v for k, v in grads.items() if not k.startswith("vocab_map")}


@pytest.mark.parametrize("unmapped", [False, True])
@pytest.mark.parametrize("narrow", [0, 12])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_mapped_model_is_the_dense_model_with_repeated_rows(size, narrow, unmapped):
    """The same GLM with the whole table E[row(id)]; the gradient of a row is the sum of its ids'."""
    map_ = tables()
    position = map_["origin_id_to_target_pos"]
    like = mapped_glm(compress_word_emb=narrow)
    dense = toy_glm(compress_word_emb=narrow)
    weights = {k: v for k, v in like.state_dict().items() if not k.startswith("vocab_map")}
    weights["word_embeddings.weight"] = weights["word_embeddings.weight"][position]
    dense.load_state_dict(weights)
    batch = toy_lm_batch()
    expected = dense(batch.tokens, batch.position_ids, batch.attention_mask)[0]
    if unmapped:
        expected = expected[..., map_["target_pos_to_origin_id"][:ROWS]]
    generator = torch.Generator().manual_seed(5)
    (expected * torch.randn(expected.shape, generator=generator)).sum().backward()
    expected_grads = rank_grads(dense)
    table = expected_grads["word_embeddings.weight"]
    expected_grads["word_embeddings.weight"] = torch.zeros(ROWS, table.size(1)).index_add(
        0, position, table
    )
    results = run_ranks(size, run_model, unmapped, narrow)
    actual_grads = merged([grads for _, grads in results], like_without_map(like))
    for actual, _ in results:
        torch.testing.assert_close(actual, expected.detach(), rtol=1e-4, atol=1e-5)
    for name, grad in expected_grads.items():
        torch.testing.assert_close(actual_grads[name], grad, rtol=1e-3, atol=1e-4, msg=name)


def like_without_map(model):
    model.vocab_map = None
    return model


def run_output(rank: int, size: int, columns: torch.Tensor):
    mpu.initialize_model_parallel(size)
    table, hidden = parts()
    shard = mpu.split(table, mpu.Partition(0), rank, size).requires_grad_()
    rows = tables()["origin_id_to_target_pos"]
    hidden.requires_grad_()
    output = VocabOutput(shard, rows)
    picked = output.of(columns).logits(hidden)
    taken = take_columns(output.logits(hidden.detach()), columns)
    whole = mpu.gather_from_model_parallel_region(picked)
    (whole**2).sum().backward()
    return (
        (output.width, output.of(columns).width, VocabOutput(shard).width),
        whole.detach(),
        mpu.gather_from_model_parallel_region(taken.detach()),
        hidden.grad,
        shard.grad,
    )


def parts():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(ROWS, 6, generator=generator), torch.randn(5, 6, generator=generator)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_an_output_of_some_columns_has_the_dense_value_and_gradient(size):
    columns = torch.tensor([63, 2, 2, 40, 5, 17, 31, 8])
    table, hidden = (x.requires_grad_() for x in parts())
    expected = F.linear(hidden, table[tables()["origin_id_to_target_pos"]][columns])
    (expected**2).sum().backward()
    results = run_ranks(size, run_output, columns)
    for widths, picked, taken, grad, _ in results:
        assert widths == (VOCAB, len(columns), ROWS)
        torch.testing.assert_close(picked, expected.detach())
        torch.testing.assert_close(taken, expected.detach())
        torch.testing.assert_close(grad, hidden.grad)
    torch.testing.assert_close(torch.cat([r[-1] for r in results]), table.grad)


def run_take(rank: int, size: int, columns: torch.Tensor):
    mpu.initialize_model_parallel(size)
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(2))
    shard = mpu.split(logits, mpu.Partition(1), rank, size).requires_grad_()
    whole = mpu.gather_from_model_parallel_region(take_columns(shard, columns))
    (whole**3).sum().backward()
    return shard.grad


@pytest.mark.parametrize("size", [1, 2, 4])
def test_columns_taken_give_their_gradient_back(size):
    columns = torch.tensor([3, 60, 3, 21])
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(2)).requires_grad_()
    (logits[:, columns] ** 3).sum().backward()
    shards = run_ranks(size, run_take, columns)
    torch.testing.assert_close(torch.cat(shards, dim=1), logits.grad)


def test_tables_are_saved_with_the_model_and_the_official_keys_come_first():
    names = list(mapped_glm().state_dict())
    assert names[:-3] == list(toy_glm().state_dict())
    assert names[-3:] == ["vocab_map." + name for name in TABLES]


def test_substitutes():
    map_ = VocabMap(VOCAB, ROWS)
    map_.set_tables(tables())
    ids = torch.arange(VOCAB)
    kept = tables()["origin_id_mask_map"]
    assert torch.equal(map_.substitutes(ids)[kept], ids[kept])
    assert bool(kept[map_.substitutes(ids)].all())
    assert torch.equal(map_(map_.substitutes(ids)), map_(ids))


def broken(name: str, at: int, value: int) -> dict[str, torch.Tensor]:
    changed = tables()
    changed[name] = changed[name].clone()
    changed[name][at] = value
    return changed


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (broken(TABLES[0], 5, ROWS), "origin_id_to_target_pos: has values outside 0 to 23"),
        (broken(TABLES[2], 5, VOCAB), "target_pos_to_origin_id: has values outside 0 to 63"),
        (broken(TABLES[1], int(tables()[TABLES[2]][0]), 0), "keeps 23 ids, the word table has 24"),
        (broken(TABLES[2], 0, int(tables()[TABLES[2]][1])), "do not have these rows"),
        (tables(rows=16), "keeps 16 ids, the word table has 24 rows"),
    ],
)
def test_tables_that_fit_no_map_of_this_size_are_refused(changed, words):
    with pytest.raises(ValueError, match=words):
        VocabMap(VOCAB, ROWS).set_tables(changed)
