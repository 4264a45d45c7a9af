"""A memory carried from batch to batch, against one dense forward over the whole text in float64."""

import pytest
import torch
import torch.nn.functional as F

from model.carried import CarriedMemory
from tasks.text import own_document
from tests.model.dense_xl import dense_logits
from tests.toy import toy_glm, toy_model_args

LENGTH, CHUNKS = 6, 4
FIRST = torch.tensor([0] * 24 + [0] * 9 + [9] * 5 + [14] * 10).view(2, 24)  # of each document


def text():
    """Two rows of 24 ids; the first is one document, the second three."""
    return torch.randint(10, 64, (2, 24), generator=torch.Generator().manual_seed(7))


def model(memory=24, **changes):
    glm = toy_glm(transformer_xl=True, mem_length=memory, **changes).double()
    glm.carried = CarriedMemory()
    return glm


def chunk(glm, number, *, slot=0, moment=None, rows=slice(None), ids=None):
    """Logits [b, 6, v] of a chunk, as the training loop asks for them."""
    ids = text() if ids is None else ids
    part = slice(number * LENGTH, (number + 1) * LENGTH)
    positions = (torch.arange(24) - FIRST + 1)[rows, part]
    glm.carried.begin(slot, number if moment is None else moment)
    mask = own_document(positions, glm.transformer.max_memory_length)
    return glm(ids[rows, part], positions, mask)[0]


def dense(glm, row, *, start=0):
    """Logits [24, v] of a whole row."""
    args = toy_model_args(num_layers=len(glm.transformer.layers))
    return dense_logits(args, dict(glm.named_parameters()), text()[row], FIRST[row], start=start)


@pytest.mark.parametrize("memory", [18, 40])
def test_chunks_with_a_memory_of_everything_equal_the_whole_text(memory):
    glm = model(memory)
    actual = torch.cat([chunk(glm, k) for k in range(CHUNKS)], dim=1)
    for row in range(2):
        expected = dense(glm, row)
        torch.testing.assert_close(actual[row], expected, rtol=0, atol=1e-10)
        labels = text()[row, 1:]
        losses = [F.cross_entropy(z[:-1], labels) for z in (actual[row], expected)]
        torch.testing.assert_close(*losses, rtol=1e-12, atol=0)


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_those_of_a_memory_that_gets_none(recompute):
    glm = model(checkpoint_activations=recompute)
    for number in range(CHUNKS):
        glm.zero_grad()
        start, labels = number * LENGTH, text().roll(-1, 1)[:, number * LENGTH :][:, :LENGTH]
        F.cross_entropy(chunk(glm, number).flatten(0, 1), labels.flatten()).backward()
        actual = {name: p.grad for name, p in glm.named_parameters()}
        glm.zero_grad()
        rows = [dense(glm, row, start=start)[start : start + LENGTH] for row in range(2)]
        F.cross_entropy(torch.cat(rows), labels.flatten()).backward()
        expected = {name: p.grad for name, p in glm.named_parameters()}
        largest = max(float(grad.abs().max()) for grad in expected.values())
        for name, grad in expected.items():
            torch.testing.assert_close(actual[name], grad, rtol=0, atol=1e-11 * largest, msg=name)


def test_a_short_memory_forgets_what_is_farther_away():
    # With one layer a token's state depends on what it sees alone: the last 4 states and its chunk.
    glm = model(4, num_layers=1)
    changed = text()
    changed[:, :2] = changed[:, :2].flip(1) + 1 - 2 * (changed[:, :2].flip(1) == 63)
    one = [chunk(glm, k) for k in range(2)][1]
    glm.carried = CarriedMemory()
    other = [chunk(glm, k, ids=changed) for k in range(2)][1]
    assert torch.equal(one, other)
    assert not torch.equal(one, chunk(model(num_layers=1), 1))  # which remembers nothing at all


def test_slots_have_memories_of_their_own_and_a_gap_empties_them():
    glm, alone = model(), model()
    for number in range(2):
        mixed = [chunk(glm, number, slot=s, rows=slice(s, s + 1)) for s in range(2)]
    for number in range(2):
        both = chunk(alone, number)
    torch.testing.assert_close(torch.cat(mixed), both, rtol=0, atol=1e-12)
    fresh = chunk(model(), 3)
    assert torch.equal(chunk(alone, 3), fresh)  # chunk 2 was left out
    chunk(alone, 2)
    assert not torch.equal(chunk(alone, 3), fresh)


def test_only_the_first_forward_of_a_micro_batch_is_remembered():
    glm, other = model(), model()
    chunk(glm, 0)
    chunk(other, 0)
    expected = chunk(glm, 1)
    positions = (torch.arange(24) - FIRST + 1)[:, :LENGTH]
    other.carried.begin(0, 1)
    mask = own_document((torch.arange(24) - FIRST + 1)[:, LENGTH : 2 * LENGTH], 24)
    again = [
        other(ids, positions, mask)[0]
        for ids in (text()[:, LENGTH : 2 * LENGTH], text()[:, :LENGTH])
    ]
    assert torch.equal(again[0], expected)
    assert torch.equal(chunk(other, 2), chunk(glm, 2))


def test_a_row_with_a_state_that_is_not_finite_begins_anew():
    glm, broken, bad = model(), text(), 3
    broken[0, 2] = bad
    assert not (text() == bad).any()
    with torch.no_grad():
        glm.word_embeddings.weight[bad] = torch.nan
        assert chunk(glm, 0, ids=broken)[0].isnan().any()
        empty, whole = model(), model()
        chunk(whole, 0)
        for number in (1, 2):
            actual = chunk(glm, number)
            for row, other in enumerate((empty, whole)):  # which has not seen the first chunk; has
                expected = chunk(other, number)
                actual_row, expected_row = actual[row, :, 10:], expected[row, :, 10:]
                torch.testing.assert_close(actual_row, expected_row, rtol=0, atol=1e-12)
