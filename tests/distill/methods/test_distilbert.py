"""DistilBERT against its formula: soft labels, hard labels, direction of the output."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import ConfigError, RunArgs
from distill.capture import block_output, output
from distill.context import LossContext
from distill.methods.distilbert import DistilBERT, DistilBERTArgs
from distill.registry import METHODS
from model.build import HeadSpec, parameter_groups
from tests.distill.methods.seen import kl_rows, mean_over_tokens, seen
from tests.distill.runs import take, toy_run, toy_step
from tests.toy import toy_cloze_batch, toy_lm_batch

T = 2.0
ASKED = ("--student_model=distilbert", "--teacher_hidden_size=16", f"--distill_temperature={T}")
ALPHAS = ("--distilbert_alpha_ce=5", "--distilbert_alpha_mlm=2", "--distilbert_alpha_cos=3")


def step_of(*flags: str, program: str = "pretrain"):
    return toy_step(toy_run(*ASKED, *flags, program=program))


def lm() -> object:
    return toy_lm_batch(3, pad_to=30)


def cloze() -> object:
    batch = toy_cloze_batch(3, choices=3, variable=True, pad_to=30)
    batch.labels[-1] = 0  # a real choice
    return batch


def logits_of(step, batch) -> tuple[Tensor, Tensor]:
    models = step.student.module, step.teachers[0].module
    with torch.no_grad():
        return tuple(model(*step.task.inputs(batch))[0] for model in models)


def outputs_of(step, batch, t_no: int = 0) -> list[Tensor]:
    """Outputs of student and teacher, or what takes their place."""
    with torch.no_grad():
        pair = seen(step, batch, t_no)
        if not step.run.method.distilbert_fix_layernorm:
            return [x.state(x.num_layers) for x in pair]
        norms = step.method.layernorm, step.method.t_layernorm
        states = [x.layer(x.num_layers, "tf_output") for x in pair]
        return [norm(x) for norm, x in zip(norms, states, strict=True)]


def distances(student: Tensor, teacher: Tensor) -> Tensor:
    return 1 - torch.cosine_similarity(student, teacher, dim=-1)


def mean(losses: Tensor, mask: Tensor) -> float:
    return float((losses * mask).sum() / mask.sum())


def tokens_of(batch) -> Tensor:
    mask = batch.position_ids[:, 0] > 0
    mask[:, 0] = True
    return mask.float()


TERMS = {
    "ce": "pre_loss/distilbert_alpha_ce_t0",
    "mlm": "pre_loss/distilbert_alpha_mlm_t0",
    "cos": "inter_loss/distilbert_alpha_cos_t0",
}


def terms_of(result) -> dict[str, float]:
    return {name: float(result.terms[key]) for name, key in TERMS.items() if key in result.terms}


@pytest.mark.parametrize("ce_padding", [False, True])
@pytest.mark.parametrize("cos_padding", [False, True])
def test_a_language_model_at_its_targets_or_at_all_tokens(ce_padding, cos_padding):
    flags = ["--distilbert_ce_mask_padding"] * ce_padding
    flags += ["--distilbert_cos_mask_padding"] * cos_padding
    step, batch = step_of(*ALPHAS, *flags), lm()
    result = take(step, batch)
    s, t = logits_of(step, batch)
    masks = batch.loss_mask, tokens_of(batch)
    hard = F.cross_entropy(s.transpose(1, 2), batch.labels, reduction="none")
    expected = {
        "ce": 5 * T**2 * mean(kl_rows(s / T, t / T), masks[ce_padding]),
        "mlm": 2 * mean(hard, masks[0]),
        "cos": 3 * mean(distances(*outputs_of(step, batch)), masks[cos_padding]),
    }
    assert terms_of(result) == pytest.approx(expected, rel=1e-4)
    assert float(result.loss.detach()) == pytest.approx(sum(expected.values()), rel=1e-4)


def test_all_tokens_also_with_the_flag_of_all_methods():
    flag, batch = "--distill_wo_loss_mask", lm()
    step = step_of(flag)
    s, t = logits_of(step, batch)
    actual = terms_of(take(step, batch))
    assert actual["ce"] == pytest.approx(
        T**2 * mean(kl_rows(s / T, t / T), tokens_of(batch)), rel=1e-4
    )
    cos = mean(distances(*outputs_of(step, batch)), batch.loss_mask)
    assert actual["cos"] == pytest.approx(cos, rel=1e-4)


def test_choices_one_row_a_sample_and_the_output_of_all_tokens():
    step, batch = step_of(*ALPHAS, program="finetune"), cloze()
    result = take(step, batch)
    s, t = (x.masked_fill(batch.choice_mask == 0, -1e9) for x in logits_of(step, batch))
    student, teacher = outputs_of(step, batch)
    cos = mean_over_tokens(batch, lambda i, n: distances(student[i, :n], teacher[i, :n]))
    expected = {
        "ce": 5 * T**2 * float(kl_rows(s / T, t / T).mean()),
        "mlm": 2 * float(F.cross_entropy(s, batch.labels)),
        "cos": 3 * float(cos),
    }
    assert terms_of(result) == pytest.approx(expected, rel=1e-4)


def test_the_seed_does_not_compare_the_output_of_choices():
    step = step_of("--compat=D6", program="finetune")
    assert terms_of(take(step, cloze())).keys() == {"ce", "mlm"}
    step = step_of("--compat=D6")
    assert terms_of(take(step, lm())).keys() == {"ce", "mlm", "cos"}


@pytest.mark.parametrize("padding", [False, True])
def test_the_seed_divides_by_all_positions_and_a_masked_row_has_distance_one(padding):
    flags = ["--distilbert_cos_mask_padding", "--distilbert_ce_mask_padding"] * padding
    step, batch = step_of("--compat=D3", *flags), lm()
    batch.labels[:, 4] = 0  # a token whose label is the padding's
    actual = terms_of(take(step, batch))
    mask = (batch.labels > 0).float() if padding else batch.loss_mask
    s, t = logits_of(step, batch)
    cos = distances(*outputs_of(step, batch)) * mask + (1 - mask)
    assert actual["cos"] == pytest.approx(float(cos.mean()), rel=1e-4)
    ce = T**2 * (kl_rows(s / T, t / T) * mask).mean()
    assert actual["ce"] == pytest.approx(float(ce), rel=1e-4)


def test_the_seed_in_fine_tuning_without_the_choices_defect():
    batch = cloze()
    step = step_of("--compat=D3", "--distilbert_cos_mask_padding", program="finetune")
    actual = terms_of(take(step, batch))["cos"]
    student, teacher = outputs_of(step, batch)
    mask = torch.zeros(student.shape[:2])
    mean_over_tokens(batch, lambda i, n: mask[i, :n].fill_(1.0))
    cos = distances(student, teacher) * mask + (1 - mask)
    assert actual == pytest.approx(float(cos.mean()), rel=1e-4)


def test_own_layernorms_behind_the_last_block():
    step, batch = step_of("--distilbert_fix_layernorm"), lm()
    result = take(step, batch)
    cos = mean(distances(*outputs_of(step, batch)), batch.loss_mask)
    assert terms_of(result)["cos"] == pytest.approx(cos, rel=1e-4)
    plain = [x.state(x.num_layers).detach() for x in seen(step, batch)]
    assert cos != pytest.approx(mean(distances(*plain), batch.loss_mask), rel=1e-3)
    method = step.method
    assert method.layernorm.weight.grad.any()
    assert all(p.grad is None and not p.requires_grad for p in method.t_layernorm.parameters())
    trained = [p for group in parameter_groups(method, 0.1) for p in group["params"]]
    assert any(p is method.layernorm.weight for p in trained)
    assert not any(p is method.t_layernorm.weight for p in trained)
    keys = {k for k in step.student.module.state_dict() if k.startswith("student.")}
    assert keys == {f"student.{n}.{p}" for n in ("layernorm", "t_layernorm") for p in WEIGHTS}


WEIGHTS = ("weight", "bias")


def test_the_teachers_layernorm_starts_as_the_identity():
    run = toy_run(*ASKED, "--distilbert_fix_layernorm")
    method = DistilBERT(nn.Identity(), run)
    for norm in (method.layernorm, method.t_layernorm):
        assert bool((norm.weight == 1).all())
        assert not norm.bias.any()
        assert norm.eps == 1e-5


def test_every_teachers_own_last_block():
    run = toy_run(*ASKED, "--distilbert_fix_layernorm")
    (first,) = run.teachers
    second = dataclasses.replace(first, num_layers=3)
    step, batch = toy_step(dataclasses.replace(run, teachers=(first, second))), lm()
    result = take(step, batch)
    for t_no in (0, 1):
        cos = mean(distances(*outputs_of(step, batch, t_no)), batch.loss_mask)
        actual = float(result.terms[f"inter_loss/distilbert_alpha_cos_t{t_no}"])
        assert actual == pytest.approx(cos, rel=1e-4)


@pytest.mark.parametrize("off", ["ce", "mlm", "cos"])
def test_a_term_of_weight_zero_is_left_out(off):
    step = step_of(f"--distilbert_alpha_{off}=0")
    result = take(step, lm())
    assert terms_of(result).keys() == {"ce", "mlm", "cos"} - {off}
    points = step.method.student_points()
    assert points == ([] if off == "cos" else [output()])


def test_the_points():
    method = step_of("--distilbert_fix_layernorm").method
    assert method.student_points() == [block_output(2)]
    assert method.teacher_points(0) == [block_output(4)]


def test_switches_of_soft_and_hard_labels_do_nothing():
    switches = ["--distill_pt_hard", "--distill_soft_rate=7", "--distill_pt_soft_mse"]
    switches += ["--distill_only_mask_pad", "--distill_pt_soft_ce", "--distill_hard_rate=0"]
    expected, actual = (
        float(take(step_of(*flags), lm()).loss.detach()) for flags in ([], switches)
    )
    assert actual == expected


def test_logits_of_targets_are_all_that_is_computed_unless_all_tokens_count():
    assert step_of().method.needs_targets_only()
    assert not step_of("--distilbert_ce_mask_padding").method.needs_targets_only()
    assert not step_of("--distill_wo_loss_mask").method.needs_targets_only()
    flags = ["--distill_wo_loss_mask", "--distilbert_alpha_ce=0"]
    assert step_of(*flags).method.needs_targets_only()


def test_called_by_hand_it_gives_the_parts():
    method = step_of(*ALPHAS).method
    s, t = (torch.randn(3, 4, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    parts = method.pre_loss(s, t, torch.tensor(0.5), return_dict=True)
    soft = 5 * T**2 * float(kl_rows(s / T, t / T).mean())
    assert {k: float(v) for k, v in parts.items()} == pytest.approx(
        {"soft": soft, "hard": 1.0, "loss": soft + 1.0}
    )
    each = method.pre_loss(s, t, torch.full((3,), 0.5), keep_batch=True)
    assert each.shape == (3,)
    assert float(each.mean()) == pytest.approx(soft + 1.0)
    with pytest.raises(TypeError, match="maks"):
        method.pre_loss(s, t, torch.tensor(0.5), maks=None)


def test_a_row_of_zeros_has_distance_one_and_no_nan():
    method = step_of().method
    zeros = torch.zeros(2, 3, 16, requires_grad=True)
    loss = method.loss("", output(), zeros, torch.ones(2, 3, 16), LossContext())
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1.0)
    assert zeros.grad.isfinite().all()


def problems(*flags: str) -> list[str]:
    run: RunArgs = toy_run(*ASKED, *flags)
    return list(DistilBERT.problems(run, HeadSpec("lm")))


def test_what_it_needs():
    assert METHODS["distilbert"] is METHODS["DistilBERT"] is DistilBERT
    assert problems() == []
    wider = "--teacher_hidden_size=24"
    (line,) = problems(wider)
    assert line.startswith("--hidden-size=16")
    assert problems(wider, "--distilbert_alpha_cos=0") == []
    idle = "--mt_disable_operation=1"
    assert [line.partition(":")[0] for line in problems(idle)] == [idle]
    without = ["--distilbert_alpha_ce=0", "--distilbert_alpha_cos=0"]
    assert problems(idle, *without) == []
    (line,) = problems(*without, "--distilbert_alpha_mlm=0")
    assert "no loss is on" in line


def test_weights_are_not_negative():
    for name in ("ce", "mlm", "cos"):
        with pytest.raises(ConfigError, match=f"--distilbert_alpha_{name}=-1"):
            DistilBERTArgs(**{f"distilbert_alpha_{name}": -1.0})
