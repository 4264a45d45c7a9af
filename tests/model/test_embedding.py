"""Words of neighbours and narrow tables, against loops over positions."""

import pytest
import torch
from torch.testing import assert_close

from model.downstream import GLMForMultiTokenClozeFast, GLMForSequenceClassification
from model.embedding import NeighbourWords, OwnWords
from model.init import normal
from tests.toy import randomize, rank_grads, toy_cloze_batch, toy_glm, toy_lm_batch


def mixer(word_size=3, output_size=8):
    fill = normal(0.02, torch.Generator())
    return randomize(NeighbourWords(word_size, output_size, fill))


def words(batch=4, length=6):
    return torch.randn(batch, length, 5, generator=torch.Generator().manual_seed(1))


def test_own_words_are_left_alone():
    x = words()
    assert OwnWords()(x, 3, True) is x
    assert OwnWords().state_dict() == {}


def test_neighbours_by_hand():
    module, x = mixer(), words(1, 5)
    a, b, c, d, e = x[0, :, :3]
    zero = torch.zeros(3)
    # The context has 3 words: the last of them and the rest look two back.
    rows = [(b, a, zero), (c, b, a), (a, c, b), (b, d, c), (c, e, d)]
    expected = torch.stack([torch.cat(row) for row in rows]) @ module.weight.T + module.bias
    assert_close(module(x, torch.tensor([3]), False)[0], expected)


def test_one_separator_for_all_is_one_each():
    module, x = mixer(), words()
    expected = module(x, torch.tensor([4] * 4), False)
    assert torch.equal(module(x, 4, False), expected)
    assert torch.equal(module(x, torch.tensor([4]), False), expected)


@pytest.mark.parametrize("sep", [0, 1, 3, 6])
def test_no_position_sees_a_later_word_of_the_answer(sep):
    module, x = mixer(), words().requires_grad_()
    mixed = module(x, torch.tensor([sep] * 4), False)
    for i in range(6):
        (grad,) = torch.autograd.grad(mixed[:, i].sum(), x, retain_graph=True)
        seen = {int(j) for j in grad.abs().sum((0, 2)).nonzero()}
        assert seen == {j for j in (i + 1 if i < sep - 1 else i - 2, i, i - 1) if 0 <= j < 6}
    assert x.shape[-1] == 5
    assert not grad[..., 3:].any()  # only the first entries of a word count


def test_one_position():
    module, x = mixer(), words(2, 1)
    expected = module.weight[:, 3:6] @ x[0, 0, :3] + module.bias
    assert_close(module(x, torch.tensor([1, 0]), False)[0, 0], expected)


def test_what_hides_the_neighbours_is_an_error():
    model, batch = toy_glm(ib_word_emb=4), toy_lm_batch()
    whole = torch.ones(1, 1, *2 * batch.tokens.shape[1:])
    with pytest.raises(ValueError, match=r"^ib_word_emb=4: .* a mask \[1, 1, .*separators \[b\]"):
        model(batch.tokens, batch.position_ids, whole)
    _, *mems = model(batch.tokens, batch.position_ids, batch.attention_mask, return_memory=True)
    with pytest.raises(ValueError, match=r"ib_word_emb=4: .* a memory"):
        model(batch.tokens, batch.position_ids, 0, *mems)


def test_fast_decoding_needs_own_words():
    batch = toy_cloze_batch()
    head = GLMForMultiTokenClozeFast(toy_glm(ib_word_emb=4, parallel_output=False))
    inputs = (batch.tokens[:, 0], batch.position_ids[:, 0], batch.attention_mask[:, 0])
    answers = (batch.dec_tokens, batch.dec_position_ids, batch.dec_target_ids)
    with pytest.raises(ValueError, match="ib_word_emb=4"):
        head(*inputs, *answers, batch.dec_logit_mask)


def test_padding_behind_a_sample_changes_nothing():
    model, batch, wider = toy_glm(ib_word_emb=4), toy_lm_batch(), toy_lm_batch(pad_to=33)
    expected, *_ = model(batch.tokens, batch.position_ids, batch.attention_mask)
    actual, *_ = model(wider.tokens, wider.position_ids, wider.attention_mask)
    assert_close(actual[:, : expected.size(1)], expected)


# Narrow tables ---------------------------------------------------------------------------------------


def test_a_narrow_table_meets_the_stack_at_its_width():
    model, batch = toy_glm(compress_word_emb=4), toy_lm_batch()
    assert model.word_embeddings.weight.shape == (64, 4)
    hook = {"words_embeddings": None, "transformer": {"output": None}}
    (logits, *_), captured = model(
        batch.tokens, batch.position_ids, batch.attention_mask, hook=hook
    )
    table, up, down = model.word_embeddings.weight, model.compress_emb_mlp, model.decompress_emb_mlp
    expected = table[batch.tokens] @ up.weight.T + up.bias
    assert_close(captured[("words_embeddings",)], expected)
    hidden = captured[("transformer", "output")]  # before the way down
    assert hidden.shape[-1] == 16
    assert_close(logits, (hidden @ down.weight.T + down.bias) @ table.T)


def test_without_prediction_there_is_no_way_down():
    # D18: the seed pools the narrow states, which do not fit its head.
    model, batch = toy_glm(compress_word_emb=4, output_predict=False), toy_lm_batch()
    inputs = (batch.tokens, batch.position_ids, batch.attention_mask)
    hook = {"transformer": {"output": None}}
    (hidden, *_), captured = model(*inputs, hook=hook)
    assert hidden is captured[("transformer", "output")]
    head = GLMForSequenceClassification(model, 16, 0.0, "cls", 3)
    scores, *_ = head(*inputs)
    assert scores.shape == (4, 3)
    scores.sum().backward()
    unused = {name for name, p in head.named_parameters() if p.grad is None}
    assert unused == {"model.decompress_emb_mlp.weight", "model.decompress_emb_mlp.bias"}
    assert not any(p.requires_grad for p in model.decompress_emb_mlp.parameters())


def test_checkpoints_fit_with_and_without_prediction():
    model, bare = toy_glm(compress_word_emb=4), toy_glm(compress_word_emb=4, output_predict=False)
    assert list(bare.state_dict()) == list(model.state_dict())
    bare.load_state_dict(model.state_dict())


def test_the_way_down_is_made_for_chosen_rows_only():
    model, batch = toy_glm(compress_word_emb=4), toy_lm_batch()
    seen = []
    model.decompress_emb_mlp.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape))
    inputs = (batch.tokens, batch.position_ids, batch.attention_mask)
    rows = torch.tensor([3, 0, 40])
    actual, *_ = model(*inputs, output_rows=rows)
    expected = model(*inputs)[0].flatten(0, 1)[rows]
    assert_close(actual, expected)
    assert [tuple(shape) for shape in seen] == [(3, 16), (*batch.tokens.shape, 16)]


def test_the_table_learns_from_both_ends():
    model, batch = toy_glm(compress_word_emb=4), toy_lm_batch()
    logits, *_ = model(batch.tokens, batch.position_ids, batch.attention_mask)
    logits.pow(2).sum().backward()
    absent = [i for i in range(64) if i not in batch.tokens]
    grads = rank_grads(model)["word_embeddings.weight"]
    assert absent
    assert grads[absent].abs().sum() > 0  # by the vocabulary product
    assert grads.abs().sum() > grads[absent].abs().sum()
