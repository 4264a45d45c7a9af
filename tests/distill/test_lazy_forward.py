"""Steps whose logits are never whole are the steps of whole logits: loss, terms, gradients."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import distill.lazy_forward
import distill.lazy_logits
import mpu.row_losses
from distill.capture import logits
from distill.live import add_live_teachers
from distill.losses import mse
from distill.methods.glmd import GLMD
from distill.methods.kd import KD
from distill.offload import Slot
from distill.registry import METHODS
from distill.step import StepOutput
from model.glm import VocabularyOutput
from tasks.block_lm import BlockLM
from tasks.choice import ChoiceTask
from tasks.superglue.generative import GenerativeTask
from tests.distill.runs import grads_of, rows_of, take, toy_run, toy_step
from tests.toy import toy_cloze_batch, toy_lm_batch

SOFT, HARD = "--distill_pt_soft", "--distill_pt_hard"
T = "--distill_temperature=3"
SEVERAL = ["--mt_num_layers=4:2", "--mt_hidden_size=24:16", "--mt_num_attention_heads=4:4",
           "--mt_max_position_embeddings=40:40"]  # fmt: skip
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
    "two_teachers": ["--student_model=kd", SOFT, HARD, *SEVERAL],
    "recomputed": ["--student_model=glmd", SOFT, "--avgmt_pre_checkpoint", "--avgmt_inter_checkpoint"],
    "repeated": ["--student_model=kd", SOFT, HARD, "--forward_repeat_num=1"],
    "checkpointed": ["--student_model=glmd", SOFT, HARD, "--checkpoint-activations"],
    "perturbed": ["--student_model=lrc_bert", SOFT, HARD, T, "--lrc_bert_gard_perturb",
                  "--forward_repeat_num=1", "--ignore_first_backward_gard"],
    "live": ["--student_model=glmd", SOFT, HARD, T, "--mt_has_grad", "--mt_has_loss"],
    "live_mse": ["--student_model=glmd", SOFT, "--distill_pt_soft_mse", "--logitsdistil_top_n=5",
                 *SEVERAL, "--mt_has_grad"],
    "mt_bert": ["--student_model=glmd", SOFT, *SEVERAL, "--multi_teacher_model=mt_bert"],
    "uncertainty": ["--student_model=kd", SOFT, *SEVERAL, "--multi_teacher_model=uncertainty"],
    "uncertainty_all": ["--student_model=glmd", SOFT, *SEVERAL, "--multi_teacher_model=uncertainty",
                        "--uncertainty_only_mask_pad", "--uncertainty_inter_entropy"],
    "uncertainty_seed": ["--student_model=kd", SOFT, *SEVERAL, "--multi_teacher_model=uncertainty",
                         "--compat=MT"],
    "rl_kd": ["--student_model=kd", SOFT, *SEVERAL, "--multi_teacher_model=rl_kd",
              "--rl_kd_semantic_model_dim=5"],
    "rl_kd_all": ["--student_model=kd", SOFT, *SEVERAL, "--multi_teacher_model=rl_kd",
                  "--rl_kd_semantic_model=0", "--rl_kd_reward=2", "--rl_kd_wo_loss_mask"],
    "rl_kd_seed": ["--student_model=glmd", SOFT, *SEVERAL, "--multi_teacher_model=rl_kd",
                   "--rl_kd_semantic_model=0", "--compat=glmkd", "--map_vocab_size=40",
                   "--unmap_vocab_output"],
    "mixmt": ["--student_model=kd", SOFT, *SEVERAL, "--multi_teacher_model=mixmt",
              "--mixmt_model=Uncertainty,AvgTeacher,RL_KD", "--rl_kd_semantic_model_dim=5"],
}  # fmt: skip
# Fine-tuning with a cloze head: the vocabulary is only captured.
CLOZE = {
    "cloze_glmd": ["--student_model=glmd", T, "--distill_ft_soft"],
    "cloze_answers": ["--student_model=glmd", "--logitsdistil_mask_a", "--logitsdistil_top_n=5"],
    "cloze_parallel": ["--student_model=kd", "--distill_ft_hard", "--distill_logits_parallel"],
    "cloze_map": ["--student_model=glmd", T, "--map_vocab_size=40", "--unmap_vocab_output"],
    "cloze_uncertainty": ["--student_model=glmd", "--distill_ft_soft", *SEVERAL,
                          "--multi_teacher_model=uncertainty"],
}  # fmt: skip
# Weights that are not known beforehand: the gradient is computed in the backward pass.
LATE = {"mt_bert", "cloze_uncertainty"} | {
    name for name in KINDS if name.startswith(("uncertainty", "rl_kd", "mixmt"))
}


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


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of terms of each pass over rows."""
    seen: list[int] = []
    compute = distill.lazy_logits.row_losses

    def watched(terms: list[object], *rest: object) -> object:
        seen.append(len(terms))
        return compute(terms, *rest)

    monkeypatch.setattr(distill.lazy_logits, "row_losses", watched)
    return seen


def outcome(
    name: str, lazy: bool, monkeypatch: pytest.MonkeyPatch
) -> tuple[StepOutput, dict[str, Tensor]]:
    """A step of two ragged micro-batches."""
    monkeypatch.setattr(distill.lazy_forward, "FEW", 0 if lazy else 1 << 40)
    flags = [*(KINDS | CLOZE)[name], "--gradient-accumulation-steps=2"]
    if name in CLOZE:
        step, batch = toy_step(toy_run(*flags, program="finetune")), toy_cloze_batch(4)
    else:
        step, batch = toy_step(toy_run(*flags)), toy_lm_batch(4)
    add_live_teachers(step.student.module, step.teachers)
    parts = [rows_of(batch, 0, 1), rows_of(batch, 1, 4, longer=2)]
    counts = step.count(parts)
    for number, part in enumerate(parts):
        output = step(part, counts, number)
        output.loss.backward()
    grads = grads_of(step.student.module)
    return output, {name: grad for name, grad in grads.items() if grad.is_floating_point()}


@pytest.mark.parametrize("name", KINDS | CLOZE)
def test_a_step_without_logits_is_the_step_with_them(name, backwards, passes, monkeypatch):
    expected, wanted = outcome(name, False, monkeypatch)
    assert not passes
    actual, found = outcome(name, True, monkeypatch)
    assert passes
    assert name in LATE or (backwards and all(backwards))
    torch.testing.assert_close(actual.loss, expected.loss, rtol=1e-5, atol=1e-6)
    assert list(actual.terms) == list(expected.terms)
    for key, value in expected.terms.items():
        torch.testing.assert_close(
            torch.as_tensor(actual.terms[key]), torch.as_tensor(value), rtol=1e-4, atol=1e-6
        )
    largest = max(float(grad.abs().max()) for grad in wanted.values())
    for key, grad in wanted.items():
        torch.testing.assert_close(found[key], grad, rtol=1e-4, atol=1e-6 * largest, msg=key)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Of each product with a table how many rows it has, and whether a loss uses it up."""
    sizes: list[tuple[int, bool]] = []
    product = VocabularyOutput.forward

    def noted(self: VocabularyOutput, states: Tensor, *rest: object, **options: object) -> object:
        sizes.append((states.numel() // states.size(-1), "use" in options))
        return product(self, states, *rest, **options)

    monkeypatch.setattr(VocabularyOutput, "forward", noted)
    return sizes


def test_only_rows_that_count_meet_the_table(monkeypatch, products):
    monkeypatch.setattr(distill.lazy_forward, "FEW", 0)
    batch = toy_lm_batch(4)
    targets = int(batch.loss_mask.sum())
    assert 0 < targets < batch.tokens.numel()
    take(toy_step(toy_run(*KINDS["kd"])), batch)
    forwards, losses = [(0, False)] * 2, [(targets, True)] * 2  # of student and teacher
    assert sorted(products) == forwards + losses


@pytest.mark.parametrize("name", ["rl_kd_all", "rl_kd_seed", "uncertainty_seed", "perturbed"])
def test_nobody_makes_logits_whole(name, monkeypatch, products):
    outcome(name, True, monkeypatch)
    samples = 4
    assert max(rows for rows, used_up in products if not used_up) <= samples


# Methods of a user's own --------------------------------------------------------------------------


class LooksAtLabels(GLMD):
    """Prediction terms of its own, from numbers."""

    def prediction_terms(self, given, ctx):
        options = {"layout": ctx.layout, "rows": ctx.first_rows("targets")}
        difference = mse(given.student, given.teacher, **options)
        return super().prediction_terms(given, ctx) | {"own": difference}


class LooksAtLayers(GLMD):
    """Losses of captured points, from numbers."""

    def layer_losses(self, student, teacher, ctx):
        yield "difference", (student[logits()] - teacher[logits()]).square().mean()


class LooksAtCaptures(GLMD):
    """The seed's function for them."""

    def inter_loss(self, s_inter_vars, t_inter_vars, s_hook, t_hook, **kwargs):
        s, t = s_inter_vars[s_hook["logits_parallel"]], t_inter_vars[t_hook["logits_parallel"]]
        rest = super().inter_loss(s_inter_vars, t_inter_vars, s_hook, t_hook, **kwargs)
        return (s - t).square().mean() + rest


class LooksAtPredictions(GLMD):
    """The seed's function for them."""

    def pre_loss(self, s_logits, t_logits, loss, **kwargs):
        rest = super().pre_loss(s_logits, t_logits, loss, **kwargs)
        return (s_logits - t_logits).square().mean() + rest


class HandsOn(GLMD):
    """Never looks into logits."""

    def prediction_terms(self, given, ctx):
        terms = super().prediction_terms(replace(given, teacher_weight=0.5), ctx)
        return {name: 2.0 * value for name, value in terms.items()}

    def layer_losses(self, student, teacher, ctx):
        for name, loss in super().layer_losses(student, teacher, ctx):
            yield name, 3.0 * loss


class HandsOnAsInTheSeed(KD):
    """The seed's function without a look at logits, which are not captured."""

    def inter_loss(self, s_inter_vars, t_inter_vars, s_hook, t_hook, **kwargs):
        return 1.5 + super().inter_loss(s_inter_vars, t_inter_vars, s_hook, t_hook, **kwargs)


class SaysSo(LooksAtPredictions):
    """Its own function hands logits on."""

    lazy_logits = True

    def pre_loss(self, s_logits, t_logits, loss, **kwargs):
        return 0.5 * GLMD.pre_loss(self, s_logits, t_logits, loss, **kwargs)


@pytest.mark.parametrize("again", [[], ["--avgmt_pre_checkpoint", "--avgmt_inter_checkpoint"]])
@pytest.mark.parametrize(
    ("kind", "looks"),
    [(LooksAtLabels, "targets"), (LooksAtLayers, "all"), (LooksAtCaptures, "all")]
    + [(LooksAtPredictions, "all"), (HandsOn, "no"), (HandsOnAsInTheSeed, "no"), (SaysSo, "no")],
)
def test_who_looks_into_logits_is_given_numbers(kind, looks, again, monkeypatch, products):
    found, batch = [], toy_lm_batch(3)
    rows = {"no": 0, "targets": int(batch.loss_mask.sum()), "all": batch.tokens.numel()}
    for few in (1 << 40, 0):
        products.clear()
        monkeypatch.setattr(distill.lazy_forward, "FEW", few)
        name = "glmd" if issubclass(kind, GLMD) else "kd"
        monkeypatch.setattr("distill.student.METHODS", METHODS | {name: kind})
        step = toy_step(toy_run(f"--student_model={name}", SOFT, HARD, T, *again))
        output = take(step, batch)
        found.append([output.loss.detach(), *grads_of(step.student.module).values()])
    assert max(number for number, used_up in products if not used_up) == rows[looks]
    for expected, actual in zip(*found, strict=True):
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
