"""Losses over choices against their formulas; masks; predictions."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from model.build import HeadSpec, add_head, build_model
from tasks.choice import LOSSES, ChoiceTask
from tests.toy import randomize, toy_cloze_batch, toy_glm, toy_model_args

Z = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]])
Y = torch.tensor([2, 1])


def batch_for(scores: torch.Tensor, labels: torch.Tensor, choice_mask: torch.Tensor | None = None):
    b, c = scores.shape
    batch = toy_cloze_batch(b, choices=c)
    return dataclasses.replace(batch, labels=labels, choice_mask=choice_mask)


def loss(name: str, z=Z, y=Y, choice_mask=None) -> torch.Tensor:
    task = ChoiceTask("toy", HeadSpec("multi_token"), name)
    return task.hard_loss(z, batch_for(z, y, choice_mask))


def test_cross_entropy_is_that_of_torch_for_each_sample():
    torch.testing.assert_close(loss("cross_entropy"), F.cross_entropy(Z, Y, reduction="none"))


def test_hinge_sums_the_margins_of_the_other_choices():
    expected = torch.tensor(
        [
            max(0.0, 1 + 0.5 - 2.0) + max(0.0, 1 - 1.0 - 2.0),
            max(0.0, 1 + 1.5 - 0.25) + max(0.0, 1 - 0.75 - 0.25),
        ]
    )
    torch.testing.assert_close(loss("hinge"), expected)


def test_generative_is_minus_the_score_of_the_answer():
    torch.testing.assert_close(loss("generative"), torch.tensor([-2.0, -0.25]))


def test_mix_is_generative_and_cross_entropy():
    expected = torch.tensor([-2.0, -0.25]) + F.cross_entropy(Z, Y, reduction="none")
    torch.testing.assert_close(loss("mix"), expected)


def test_adapet_pushes_the_answer_up_and_the_others_down():
    torch.testing.assert_close(loss("adapet"), torch.tensor([0.5 - 1.0 - 2.0, 1.5 - 0.75 - 0.25]))


@pytest.mark.parametrize("name", LOSSES)
def test_a_choice_that_fills_the_batch_changes_no_loss_and_gets_no_gradient(name):
    real = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    y = torch.tensor([1, 0])
    expected = loss(name, Z[:, :2].contiguous(), y)
    z = Z.clone().requires_grad_()
    actual = loss(name, z, y, real)
    torch.testing.assert_close(actual, expected)
    actual.sum().backward()
    assert z.grad[:, 2].tolist() == [0.0, 0.0]
    assert z.grad[:, :2].abs().sum() > 0


def test_a_sample_without_a_label_has_no_loss():
    actual = loss("cross_entropy", Z, torch.tensor([2, -1]))
    assert actual[0] > 0
    assert actual[1] == 0


def test_row_masks_leave_out_padding_fillers_and_missing_choices():
    batch = toy_cloze_batch(3, choices=3, variable=True, pad_to=30)
    weight = torch.tensor([1.0, 0.0, 1.0])
    batch = dataclasses.replace(batch, weight=weight)
    masks = ChoiceTask("toy", HeadSpec("multi_token")).row_masks(batch)
    assert masks["samples"].tolist() == [1.0, 0.0, 1.0]
    lengths = (batch.logit_mask.flatten(0, 1) * torch.arange(1, 31)).amax(
        -1
    )  # answers end the rows
    alive = torch.tensor([1, 1, 1, 0, 0, 0, 1, 1, 0])
    assert masks["tokens"].sum(-1).tolist() == (lengths * alive).tolist()
    assert (
        masks["answers"].sum(-1).tolist()
        == (batch.logit_mask.flatten(0, 1).sum(-1) * alive).tolist()
    )
    assert masks["tokens"].shape == (9, 30)


def test_predictions_are_never_missing_choices():
    scores = torch.tensor([[0.0, 1.0, 5.0], [3.0, 1.0, 2.0]])
    real = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    task = ChoiceTask("toy", HeadSpec("multi_token"))
    assert task.predict(scores, batch_for(scores, Y)) == [2, 0]
    assert task.predict(scores, batch_for(scores, Y, real)) == [1, 0]


@pytest.mark.parametrize(
    "kind", ["single_token", "multi_token", "multi_token_fast", "classification"]
)
def test_inputs_are_what_the_head_takes(kind):
    spec = HeadSpec(kind, num_classes=2)
    batch = toy_cloze_batch(3, choices=2, multi_token=kind.startswith("multi"))
    if kind == "multi_token_fast":  # one context for all choices
        names = ("tokens", "position_ids", "attention_mask")
        batch = dataclasses.replace(batch, **{name: getattr(batch, name)[:, 0] for name in names})
    lm = toy_glm(parallel_output=False, output_predict=kind != "classification")
    head = add_head(lm, spec, toy_model_args())
    scores = head(*ChoiceTask("toy", spec).inputs(batch))[0]
    assert scores.shape == (3, 2)
    assert ChoiceTask("toy", spec).hard_loss(scores, batch).shape == (3,)


@pytest.mark.parametrize("kind", ["multi_token", "classification"])
def test_evaluation_takes_many_choices_ten_at_a_time(kind):
    head = HeadSpec(kind, num_classes=1)
    args = toy_model_args()
    module = randomize(add_head(build_model(args, head), head, args)).eval()
    batch = toy_cloze_batch(3, choices=23)
    sizes = []
    module.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].size(1)))
    task = ChoiceTask("toy", head)
    with torch.no_grad():
        scores = module(*task.inputs(batch))[0]
        for wanted in (4, 13, 22):  # a choice of each forward must be able to win
            real = torch.zeros(3, 23)
            real[:, wanted - 3 : wanted + 1] = 1.0
            masked = dataclasses.replace(batch, choice_mask=real)
            actual = task.answers(module, masked)
            assert actual == task.predict(scores, masked)
            assert all(wanted - 3 <= k <= wanted for k in actual)
    assert sizes == [23, *[10, 10, 3] * 3]
