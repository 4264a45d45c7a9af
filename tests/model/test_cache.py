"""A cache changes nothing but the work: logits are those of a whole forward."""

import pytest
import torch

from model.cache import KeyValueCache
from tests.toy import SHAPES, toy_glm, toy_lm_batch


@pytest.mark.parametrize("shape", ["plain", "everything", "wide"])
@torch.no_grad()
def test_tokens_one_by_one_give_the_logits_of_the_whole_sequence(shape):
    changes = SHAPES[shape] | {"ib_word_emb": 0}
    model = toy_glm(seed=3, **changes).eval()
    ids = torch.randint(10, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    places = torch.stack((torch.arange(9), torch.zeros(9, dtype=torch.long))).expand(2, 2, 9)
    expected = model(ids, places, torch.tensor([4, 4]))[0]
    cache = KeyValueCache()
    parts = [model(ids[:, :4], places[..., :4], torch.tensor([4, 4]), cache=cache)[0]]
    for i in (4, 5, 6, 7):
        assert len(cache) == cache.get_seq_length() == i
        parts.append(model(ids[:, i : i + 1], places[..., i : i + 1], 0, cache=cache)[0])
    parts.append(model(ids[:, 8:], places[..., 8:], 0, cache=cache)[0])
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-5, atol=1e-5)


def test_beams_share_their_context_and_change_places_behind_it():
    def keys(rows, columns):
        return torch.arange(rows * columns, dtype=torch.float).view(rows, 1, columns, 1)

    context = KeyValueCache()
    context.update(keys(2, 3), -keys(2, 3), 0)
    cache = context.beams(2, room=2)
    new = torch.tensor([10.0, 11.0, 12.0, 13.0]).view(4, 1, 1, 1)
    cache.update(new, -new, 0)
    cache.reorder_cache(torch.tensor([1, 1, 3, 2]))
    key, value = cache.update(new + 10, -new - 10, 0)
    expected = [[0, 1, 2, 11, 20], [0, 1, 2, 11, 21], [3, 4, 5, 13, 22], [3, 4, 5, 12, 23]]
    assert key.squeeze().tolist() == expected
    assert torch.equal(value, -key)
    assert len(context) == 3  # untouched


def test_a_cache_is_refused_where_gradients_are_wanted():
    model, batch = toy_glm(), toy_lm_batch(2)
    with pytest.raises(AssertionError, match="decoding"):
        model(batch.tokens, batch.position_ids, batch.attention_mask, cache=KeyValueCache())
