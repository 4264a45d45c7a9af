"""Heads: scores from first principles, cheap rows, hooks, checkpoint keys, shards."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import mpu
from model.build import HeadSpec, add_head, build_model
from model.downstream import GLMForSequenceClassification
from mpu import hook_model
from tests.model.reference import assert_grads_close
from tests.ranks import run_ranks
from tests.toy import (
    merged,
    randomize,
    rank_grads,
    toy_cloze_batch,
    toy_glm,
    toy_lm_batch,
    toy_model_args,
)

SINGLE, MULTI = HeadSpec("single_token"), HeadSpec("multi_token")


def lm_and_head(spec, **changes):
    args = toy_model_args(**changes)
    lm = randomize(build_model(args, spec))
    head = add_head(lm, spec, args)
    if spec.kind == "classification":
        randomize(head.pool_layer, 3), randomize(head.multichoice_head, 4)
    return lm, head


def single_inputs(batch):
    return batch.tokens, batch.position_ids, batch.attention_mask, batch.target_ids


def multi_inputs(batch):
    return *single_inputs(batch), batch.logit_mask


def fast_inputs(batch):
    context = (batch.tokens[:, 0], batch.position_ids[:, 0], batch.attention_mask[:, 0])
    dec = (batch.dec_tokens, batch.dec_position_ids, batch.dec_target_ids, batch.dec_logit_mask)
    return *context, *dec


@pytest.mark.parametrize("take_softmax", [False, True])
def test_single_token_scores_are_logits_at_the_separator(take_softmax):
    spec = HeadSpec("single_token", take_softmax=take_softmax)
    lm, head = lm_and_head(spec)
    batch = toy_cloze_batch(4, choices=3, multi_token=False)
    scores, logits, *mems = head(*single_inputs(batch))
    whole, *_ = lm(batch.tokens, batch.position_ids, batch.attention_mask)
    for i, sep in enumerate(batch.attention_mask.tolist()):
        row = whole[i, sep]
        assert_close(logits[i], row)
        values = row.log_softmax(0) if take_softmax else row
        assert_close(scores[i], values[batch.target_ids[i]])
    assert mems == []


def test_an_answer_s_score_is_the_sum_of_its_parts():
    _, head = lm_and_head(MULTI)
    batch = toy_cloze_batch(2, choices=5)
    segments = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 1, 1]]).expand(2, 2, 5).clone().float()
    segments[1, 1, 4] = 0  # a row that only fills
    rows = head(*multi_inputs(batch))[0]
    scores = head(*multi_inputs(batch), segments)[0]
    assert_close(scores[:, 0], rows[:, 0] + rows[:, 1])
    assert_close(scores[0, 1], rows[0, 2:].sum())
    assert_close(scores[1, 1], rows[1, 2] + rows[1, 3])


@pytest.mark.parametrize("penalty", [0.0, 0.5, 1.0])
def test_multi_token_scores_sum_log_probabilities(penalty):
    lm, head = lm_and_head(HeadSpec("multi_token", length_penalty=penalty))
    batch = toy_cloze_batch(3, choices=4)
    scores, *_ = head(*multi_inputs(batch))
    for i in range(3):
        for c in range(4):
            one = (x[i, c][None] for x in single_inputs(batch)[:3])
            log_probs = lm(*one)[0][0].log_softmax(-1)
            where = batch.logit_mask[i, c].nonzero()[:, 0].tolist()
            expected = sum(log_probs[s, batch.target_ids[i, c, s]] for s in where)
            assert_close(scores[i, c], expected / len(where) ** penalty)


def test_an_answer_without_tokens_scores_zero():
    _, head = lm_and_head(HeadSpec("multi_token", length_penalty=1.0))
    batch = toy_cloze_batch(2)
    batch.logit_mask[1] = 0
    scores, *_ = head(*multi_inputs(batch))
    assert scores[1].tolist() == [0.0, 0.0]
    scores.sum().backward()


def test_fast_decoding_scores_the_same():
    lm, head = lm_and_head(MULTI)
    fast = add_head(lm, HeadSpec("multi_token_fast"), toy_model_args())
    batch = toy_cloze_batch(3, choices=3, longest=22)
    expected, *_ = head(*multi_inputs(batch))
    actual, *rest = fast(*fast_inputs(batch))
    assert rest == []
    assert_close(actual, expected)
    expected.pow(2).sum().backward()
    expected_grads = rank_grads(lm)
    lm.zero_grad()
    actual.pow(2).sum().backward()
    assert_grads_close(rank_grads(lm), expected_grads)


@pytest.mark.parametrize("pool", ["cls", "start", "pad"])
def test_classification_pools_one_hidden_state(pool):
    lm, head = lm_and_head(HeadSpec("classification", num_classes=3, pool_token=pool))
    batch = toy_cloze_batch(4, multi_token=False)
    inputs = single_inputs(batch)[:3]
    scores, *_ = head(*inputs)
    hidden, *_ = lm(*inputs)
    for i, sep in enumerate(batch.attention_mask.tolist()):
        pooled = hidden[i, {"cls": 0, "start": sep, "pad": sep - 1}[pool]]
        inner = torch.tanh(head.pool_layer.weight @ pooled + head.pool_layer.bias)
        assert_close(scores[i], head.multichoice_head.weight @ inner + head.multichoice_head.bias)


def test_classification_of_choices_has_one_score_a_choice():
    _, head = lm_and_head(HeadSpec("classification", num_classes=1))
    batch = toy_cloze_batch(3, choices=4)
    scores, *_ = head(*single_inputs(batch)[:3])
    assert scores.shape == (3, 4)
    one, *_ = head(*(x[2] for x in single_inputs(batch)[:3]))
    assert_close(scores[2], one[:, 0])


def test_classification_drops_out_while_training_only():
    args = toy_model_args(output_dropout=0.5)
    spec = HeadSpec("classification", num_classes=2)
    head = add_head(randomize(build_model(args, spec)), spec, args)
    inputs = single_inputs(toy_cloze_batch(multi_token=False))[:3]
    torch.manual_seed(0)
    assert not torch.equal(head(*inputs)[0], head(*inputs)[0])
    head.eval()
    assert torch.equal(head(*inputs)[0], head(*inputs)[0])


def test_new_classification_layers_depend_on_the_seed_alone():
    args, spec = toy_model_args(), HeadSpec("classification", num_classes=2)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    lm = build_model(args, spec)
    first, again, other = (add_head(lm, spec, args, seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first["pool_layer.weight"], again["pool_layer.weight"])
    assert not torch.equal(first["pool_layer.weight"], other["pool_layer.weight"])
    assert first["multichoice_head.bias"].tolist() == [0.0, 0.0]
    assert 0.015 < first["pool_layer.weight"].std() < 0.025


CASES = [
    (SINGLE, toy_cloze_batch(multi_token=False), single_inputs),
    (MULTI, toy_cloze_batch(), multi_inputs),
    (HeadSpec("multi_token_fast"), toy_cloze_batch(), fast_inputs),
]


@pytest.mark.parametrize(("spec", "batch", "inputs"), CASES)
def test_the_vocabulary_product_is_made_for_scored_rows_only(spec, batch, inputs, monkeypatch):
    lm, head = lm_and_head(spec)
    rows, product = [], torch.nn.functional.linear

    def counted(x, weight, bias=None):
        if weight is lm.word_embeddings.weight:
            rows.append(x.numel() // x.size(-1))
        return product(x, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    cheap = head(*inputs(batch))
    scored = len(batch.tokens) if spec.kind == "single_token" else int(batch.logit_mask.sum())
    assert sum(rows) == scored

    rows.clear()
    hook, variables = {"logits_parallel": None}, []
    whole = hook_model(hook, variables, head, *inputs(batch))
    places = batch.dec_tokens if spec.kind == "multi_token_fast" else batch.tokens
    assert sum(rows) == places.numel()
    assert variables[0].shape == (places.numel() // places.size(-1), places.size(-1), 64)
    assert_close(whole[0], cheap[0])


def test_hooks_go_down_unchanged():
    lm, head = lm_and_head(MULTI)
    batch = toy_cloze_batch(3, choices=2)
    hook = {
        "position_ids": None,
        "transformer": {"output": None, "layers": {1: {"attention_probs": None}}},
    }
    variables = []
    scores, *_ = hook_model(hook, variables, head, *multi_inputs(batch))
    expected = batch.position_ids.flatten(0, 1)
    assert torch.equal(variables[hook["position_ids"]], expected)
    assert variables[hook["transformer"]["output"]].shape == (6, expected.size(-1), 16)
    assert_close(scores, head(*multi_inputs(batch))[0])
    (again, *_), captured = head(*multi_inputs(batch), hook={"transformer": {"output": None}})
    assert list(captured) == [("transformer", "output")]
    assert_close(again, scores)


def test_edits_go_down_unchanged():
    lm, head = lm_and_head(MULTI)
    batch, expected = toy_cloze_batch(), toy_cloze_batch()
    expected.tokens = expected.tokens.clamp(max=40)
    hook_op = {"input_ids": lambda input_ids: input_ids.clamp(max=40)}
    assert_close(head(*multi_inputs(batch), hook_op=hook_op)[0], head(*multi_inputs(expected))[0])


class Student(nn.Module):
    """What a distillation method is to a head: a GLM inside, a forward of its own."""

    def __init__(self, lm):
        super().__init__()
        self.origin_model = lm
        self.calls = 0

    def forward(self, *inputs, hook=None, **kwargs):
        self.calls += 1
        variables = []
        outputs = hook_model(hook, variables, self.origin_model, *inputs, **kwargs)
        if hook is None:
            return outputs
        index = {("transformer", "output"): variables[hook["transformer"]["output"]] * 2}
        return outputs, index


def test_a_head_calls_the_student_around_the_glm():
    lm, head = lm_and_head(MULTI)
    student = Student(lm)
    wrapped = add_head(student, MULTI, toy_model_args())
    batch = toy_cloze_batch()
    assert_close(wrapped(*multi_inputs(batch))[0], head(*multi_inputs(batch))[0])
    assert student.calls == 1
    _, captured = wrapped(*multi_inputs(batch), hook={"transformer": {"output": None}})
    _, plain = head(*multi_inputs(batch), hook={"transformer": {"output": None}})
    assert_close(captured[("transformer", "output")], 2 * plain[("transformer", "output")])


@pytest.mark.parametrize(
    "kind", ["single_token", "multi_token", "multi_token_fast", "classification"]
)
def test_checkpoint_keys_are_the_glms_own(kind):
    spec = HeadSpec(kind, num_classes=2)
    lm, head = lm_and_head(spec)
    own = [
        "pool_layer.weight",
        "pool_layer.bias",
        "multichoice_head.weight",
        "multichoice_head.bias",
    ]
    state = head.state_dict()
    assert list(state) == list(lm.state_dict()) + own * (kind == "classification")
    fresh = add_head(build_model(toy_model_args(), spec), spec, toy_model_args())
    result = fresh.load_state_dict(state)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert all(torch.equal(tensor, state[name]) for name, tensor in fresh.state_dict().items())


def test_copies_and_pickles_keep_the_names():
    _, head = lm_and_head(MULTI)
    for other in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert list(other.state_dict()) == list(head.state_dict())
        other.load_state_dict(head.state_dict())


def test_loading_is_strict():
    _, head = lm_and_head(MULTI)
    state = head.state_dict()
    state["student.fit_dense.weight"] = torch.zeros(1)
    del state["word_embeddings.weight"]
    with pytest.raises(RuntimeError, match="word_embeddings.weight") as error:
        head.load_state_dict(state)
    assert "student.fit_dense.weight" in str(error.value)


def test_pool_token_is_checked():
    with pytest.raises(AssertionError, match="mean"):
        GLMForSequenceClassification(toy_glm(output_predict=False), 16, 0.0, "mean", 2)


def scores_and_grads(rank, size, kind):
    mpu.initialize_model_parallel(size)
    spec = HeadSpec(kind, num_classes=3)
    _, head = lm_and_head(spec)
    batch = toy_cloze_batch(multi_token=kind.startswith("multi"))
    inputs = {
        "single_token": single_inputs,
        "multi_token": multi_inputs,
        "multi_token_fast": fast_inputs,
    }
    given = inputs[kind](batch) if kind in inputs else single_inputs(batch)[:3]
    scores, *_ = head(*given)
    scores.pow(2).sum().backward()
    return scores.detach(), rank_grads(head)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(
    "kind", ["single_token", "multi_token", "multi_token_fast", "classification"]
)
def test_scores_and_gradients_do_not_depend_on_the_model_parallel_size(size, kind):
    expected, expected_grads = scores_and_grads(0, 1, kind)
    like = lm_and_head(HeadSpec(kind, num_classes=3))[1]
    results = run_ranks(size, scores_and_grads, kind)
    for scores, _ in results:
        assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    assert_grads_close(merged([grads for _, grads in results], like), expected_grads)


def through_head(rank, world_size, kind):
    """Loss and gradient norm of the language model below a cloze head, on any p."""
    mpu.initialize_model_parallel(world_size)
    _, head = lm_and_head(HeadSpec(kind))
    batch = toy_lm_batch(3, seed=4)
    logits, *_ = head(batch.tokens, batch.position_ids, batch.attention_mask)
    losses = mpu.vocab_parallel_cross_entropy(logits, batch.labels) * batch.loss_mask
    losses.sum().backward()
    norm = mpu.grad_norm(head.parameters())
    return float(losses.sum()), float(norm)


@pytest.mark.parametrize("spec", [SINGLE, MULTI, HeadSpec("multi_token_fast")])
def test_a_cloze_head_without_answers_is_the_language_model(spec):
    lm, head = lm_and_head(spec)
    batch = toy_lm_batch(3, seed=4)
    inputs = batch.tokens, batch.position_ids, batch.attention_mask
    whole = lm(*inputs)[0]
    assert_close(head(*inputs)[0], whole)
    rows = torch.tensor([1, 5, 30])
    assert_close(head(*inputs, output_rows=rows)[0], whole.flatten(0, 1)[rows])


def test_its_gradient_is_the_same_on_shards():
    (expected,) = run_ranks(1, through_head, "single_token")
    for actual in run_ranks(2, through_head, "single_token"):
        assert actual == pytest.approx(expected, rel=1e-5)
