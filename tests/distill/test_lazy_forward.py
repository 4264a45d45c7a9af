"""Steps whose logits are never whole are the steps of whole logits: loss, terms, gradients."""

import pytest
import torch
from torch import Tensor

import distill.lazy_forward
import mpu.row_losses
from distill.lazy_logits import Logits
from distill.offload import Slot
from distill.step import StepOutput
from distill.student import GLMStudent
from model.glm import VocabularyOutput
from tasks.block_lm import BlockLM
from tasks.choice import ChoiceTask
from tasks.superglue.generative import GenerativeTask
from tests.distill.runs import grads_of, lm_task, rows_of, take, toy_run, toy_step
from tests.toy import toy_lm_batch

SOFT, HARD = "--distill_pt_soft", "--distill_pt_hard"
T = "--distill_temperature=3"
KINDS = {
    "kd": ["--student_model=kd", SOFT, HARD, T],
    "kd_rates": ["--student_model=kd", SOFT, HARD, "--distill_soft_rate=0.3"],
    "kd_mse": ["--student_model=kd", SOFT, HARD, "--distill_pt_soft_mse"],
    "kd_ce": ["--student_model=kd", SOFT, "--distill_pt_soft_ce", T, "--distill_only_mask_pad"],
    "pd": ["--student_model=kd", HARD],
    "glmd": ["--student_model=glmd", T],
    "glmd_mse": ["--student_model=glmd", "--logitsdistil_mse"],
    "glmd_all": ["--student_model=glmd", T, SOFT, HARD, "--distill_logits_parallel"],
    "glmd_targets": ["--student_model=glmd", T, HARD, "--logitsdistil_mask_a"],
    "glmd_top_n": ["--student_model=glmd", T, "--logitsdistil_top_n=5"],
    "glmd_floor": ["--student_model=glmd", "--logitsdistil_top_n=0.2", "--logitsdistil_teacher_min"],
    "logits_parallel": ["--student_model=kd", SOFT, "--distill_logits_parallel"],
    "logits_mse": ["--student_model=minilm", "--distill_logits_parallel", "--distill_logit_mse"],
    "tinybert": ["--student_model=tinybert", SOFT, HARD],
    "distilbert": ["--student_model=distilbert", T, "--teacher_hidden_size=16"],
    "pkd": ["--student_model=pkd", SOFT, HARD, "--teacher_hidden_size=16"],
    "mix": ["--student_model=mixbaseline", "--mixbaseline_inter_bl=TinyBERT,LogitsDistil", SOFT],
    "mix_pre": ["--student_model=mixbaseline", "--mixbaseline_inter_bl=LogitsDistil", SOFT, HARD, T,
                "--mixbaseline_pre_bl_pt_soft=KD,DistilBERT", "--mixbaseline_weights=0.5,2,1",
                "--teacher_hidden_size=16"],
    "map": ["--student_model=glmd", T, SOFT, HARD, "--map_vocab_size=40"],
    "map_masked": ["--student_model=glmd", T, SOFT, HARD, "--map_vocab_size=40",
                   "--distill_logit_mask_map"],
    "map_unmapped": ["--student_model=glmd", T, SOFT, HARD, "--map_vocab_size=40",
                     "--unmap_vocab_output", "--logitsdistil_top_n=0.2"],
    "map_of_both": ["--student_model=kd", SOFT, HARD, "--map_vocab_size=40", "--compress_word_emb=8",
                    "--unmap_vocab_output", "--teacher_map_vocab_size=48"],
    "two_teachers": ["--student_model=kd", SOFT, HARD, "--mt_num_layers=4:2", "--mt_hidden_size=24:16",
                     "--mt_num_attention_heads=4:4", "--mt_max_position_embeddings=40:40"],
    "recomputed": ["--student_model=glmd", SOFT, "--avgmt_pre_checkpoint", "--avgmt_inter_checkpoint"],
    "repeated": ["--student_model=kd", SOFT, HARD, "--forward_repeat_num=1"],
    "checkpointed": ["--student_model=glmd", SOFT, HARD, "--checkpoint-activations"],
}  # fmt: skip
# Weights that are not known beforehand: the gradient is computed in the backward pass.
LATE = {"two_teachers"}


@pytest.fixture
def backwards(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Tiny chunks; whether each backward pass met the weights that were expected."""
    seen: list[bool] = []
    compare = mpu.row_losses._common_factor

    def watched(expected: object, grads: object) -> Tensor | None:
        factor = compare(expected, grads)
        seen.append(factor is not None)
        return factor

    monkeypatch.setattr(mpu.row_losses, "_common_factor", watched)
    monkeypatch.setattr(mpu.row_losses, "CHUNK_ELEMENTS", 400)
    monkeypatch.setattr(mpu.row_losses, "BLOCK_ELEMENTS", 200)
    return seen


def outcome(
    kind: list[str], lazy: bool, monkeypatch: pytest.MonkeyPatch
) -> tuple[StepOutput, dict[str, Tensor]]:
    """A step of two ragged micro-batches."""
    monkeypatch.setattr(distill.lazy_forward, "FEW", 0 if lazy else 1 << 40)
    step = toy_step(toy_run(*kind, "--gradient-accumulation-steps=2"), lm_task())
    batch = toy_lm_batch(4)
    parts = [rows_of(batch, 0, 1), rows_of(batch, 1, 4, longer=2)]
    counts = step.count(parts)
    for number, part in enumerate(parts):
        output = step(part, counts, number)
        output.loss.backward()
    grads = grads_of(step.student.module)
    return output, {name: grad for name, grad in grads.items() if grad.is_floating_point()}


@pytest.mark.parametrize("name", KINDS)
def test_a_step_without_logits_is_the_step_with_them(name, backwards, monkeypatch):
    expected, wanted = outcome(KINDS[name], False, monkeypatch)
    assert not backwards
    actual, found = outcome(KINDS[name], True, monkeypatch)
    assert backwards
    assert all(backwards) or name in LATE
    torch.testing.assert_close(actual.loss, expected.loss, rtol=1e-5, atol=1e-6)
    assert list(actual.terms) == list(expected.terms)
    for key, value in expected.terms.items():
        torch.testing.assert_close(
            torch.as_tensor(actual.terms[key]), torch.as_tensor(value), rtol=1e-4, atol=1e-6
        )
    largest = max(float(grad.abs().max()) for grad in wanted.values())
    for key, grad in wanted.items():
        torch.testing.assert_close(found[key], grad, rtol=1e-4, atol=1e-6 * largest, msg=key)


def test_only_rows_that_count_meet_the_table(monkeypatch, backwards):
    sizes: list[int] = []
    product = VocabularyOutput.forward

    def noted(self: VocabularyOutput, states: Tensor, *rest: object, **options: object) -> object:
        sizes.append(states.numel() // states.size(-1))
        return product(self, states, *rest, **options)

    monkeypatch.setattr(VocabularyOutput, "forward", noted)
    monkeypatch.setattr(distill.lazy_forward, "FEW", 0)
    batch = toy_lm_batch(4)
    targets = int(batch.loss_mask.sum())
    assert 0 < targets < batch.tokens.numel()
    take(toy_step(toy_run(*KINDS["kd"])), batch)
    assert sorted(sizes) == [0, 0, targets, targets]  # forwards; teacher and student in the loss


def test_a_method_that_looks_into_logits_is_given_numbers(monkeypatch):
    monkeypatch.setattr(distill.lazy_forward, "FEW", 0)
    step = toy_step(toy_run(*KINDS["kd"]))
    seen: list[object] = []

    class Looks(GLMStudent):
        def prediction_terms(self, given, ctx):
            seen.append(given.student)
            return super().prediction_terms(given, ctx)

    assert step.method.takes_lazy_logits()
    step.method.__class__ = Looks
    assert not step.method.takes_lazy_logits()
    again = type(step)(step.task, step.student, step.teachers, step.run, step.state)
    take(again, toy_lm_batch(2))
    assert isinstance(seen[0], Tensor)
    assert not isinstance(seen[0], Logits)


def test_a_capture_of_lazy_logits_is_a_tensor_for_who_does_not_say_otherwise(monkeypatch):
    outputs = {}
    for few in (0, 1 << 40):
        monkeypatch.setattr(distill.lazy_forward, "FEW", few)
        step = toy_step(toy_run("--student_model=glmd"))
        seen: list[Tensor] = []

        class Looks(GLMStudent):
            def layer_losses(self, student, teacher, ctx, seen=seen):
                from distill.capture import logits

                seen += [student[logits()], teacher[logits()]]
                yield "difference", (seen[0] - seen[1]).square().mean()

        step.method.__class__ = type("Looks", (Looks, type(step.method)), {})
        again = type(step)(step.task, step.student, step.teachers, step.run, step.state)
        take(again, toy_lm_batch(2))
        outputs[few] = [seen[0].detach(), seen[1], *grads_of(step.student.module).values()]
    for actual, expected in zip(outputs[0], outputs[1 << 40], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def test_few_logits_are_computed_whole(backwards):
    take(toy_step(toy_run(*KINDS["kd"])), toy_lm_batch(2))
    assert not backwards


def test_a_task_with_another_hard_loss_needs_its_logits():
    class Other(BlockLM):
        def hard_loss(self, logits, batch):
            return 2 * super().hard_loss(logits, batch)

    class OtherInRows(Other):
        def hard_rows_term(self, batch):
            return None

    assert BlockLM.hard_loss_by_rows()
    assert BlockLM.predicts_by_rows()
    assert not Other.hard_loss_by_rows()
    assert not Other.predicts_by_rows()
    assert OtherInRows.hard_loss_by_rows()
    assert not GenerativeTask.predicts_by_rows()
    assert not ChoiceTask.hard_loss_by_rows()


def test_an_offloaded_teacher_leaves_its_table(monkeypatch, backwards):
    monkeypatch.setattr(distill.lazy_forward, "FEW", 0)
    batch, found = toy_lm_batch(3), []
    for away in (False, True):
        step = toy_step(toy_run(*KINDS["kd"], "--teacher_map_vocab_size=48"))
        if away:
            step.teachers[0].offload(Slot("cpu"))
        output = take(step, batch)
        found.append([output.loss.detach(), *grads_of(step.student.module).values()])
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected)
