"""Law: any re-partition of a global batch gives the same gradient (design decision 4).

A global batch of 8 samples is cut into micro-batches and over data-parallel ranks, each piece
padded on its own, some of its rows fillers; losses are averaged as the engines do.
"""

import dataclasses

import pytest
import torch
from torch import Tensor

import mpu
from config import RunArgs
from data_utils.batch import Batch
from distill.step import DistillStep
from tests.distill.runs import grads_of, rows_of, toy_run, toy_step
from tests.ranks import run_ranks
from tests.toy import toy_cloze_batch, toy_lm_batch

RUNS = {
    "plain": ("pretrain",),
    "kd pretraining": (
        "pretrain",
        "--student_model=kd",
        "--distill_pt_soft",
        "--distill_pt_hard",
        "--distill_temperature=3",
    ),
    "kd pretraining, all tokens": (
        "pretrain",
        "--student_model=kd",
        "--distill_pt_soft",
        "--distill_wo_loss_mask",
        "--distill_pt_soft_mse",
    ),
    "kd fine-tuning": (
        "finetune",
        "--student_model=kd",
        "--distill_ft_soft",
        "--distill_ft_hard",
        "--distill_temperature=3",
        "--distill_logits_parallel",
    ),
    "glmd": ("pretrain", "--student_model=logitsdistil", "--distill_temperature=15"),
    "glmd top-n": (
        "pretrain",
        "--student_model=logitsdistil",
        "--distill_temperature=5",
        "--logitsdistil_top_n=7",
    ),
    "glmd fine-tuning": ("finetune", "--student_model=logitsdistil", "--logitsdistil_mask_a"),
    "tinybert": ("pretrain", "--student_model=tinybert"),
    "tinybert fine-tuning": ("finetune", "--student_model=tinybert"),
    "minilm": ("pretrain", "--student_model=minilm"),
    "minilmv2 fine-tuning": (
        "finetune",
        "--student_model=minilmv2",
        "--minilmv2_relation_heads=4",
        "--minilmv2_teacher_layer=-2",
    ),
    "ckd": ("pretrain", "--student_model=ckd", "--ckd_window_size=7"),
    "ckd fine-tuning": ("finetune", "--student_model=ckd"),
    "mgskd tokens and spans": (
        "pretrain",
        "--student_model=mgskd",
        "--mgskd_multi_heads=4",
        "--mgskd_sample_level_m=9",
    ),
    "mgskd tokens and spans, fine-tuning": (
        "finetune",
        "--student_model=mgskd",
        "--mgskd_multi_heads=4",
        "--mgskd_sample_level_m=9",
        "--mgskd_triplet_k1=5",
        "--mgskd_triplet_k2=4",
    ),
    "distilbert": ("pretrain", "--student_model=distilbert", "--teacher_hidden_size=16"),
    "distilbert fine-tuning": (
        "finetune",
        "--student_model=distilbert",
        "--teacher_hidden_size=16",
    ),
    "pkd": ("pretrain", "--student_model=pkd", "--teacher_hidden_size=16"),
    "pkd fine-tuning": (
        "finetune",
        "--student_model=pkd",
        "--teacher_hidden_size=16",
        "--pkd_only_cls",
        "--pkd_normalized_patience",
        "--distill_ft_soft",
    ),
    "rail_kd": ("pretrain", "--student_model=rail_kd", "--rail_kd_has_final"),
    "rail_kd fine-tuning": ("finetune", "--student_model=rail_kd", "--rail_kd_concatenated"),
    "alp_kd": ("finetune", "--student_model=alp_kd", "--teacher_hidden_size=16"),
    "universal_kd": ("finetune", "--student_model=universal_kd", "--universal_kd_avg"),
    "sid": ("pretrain", "--student_model=sid", "--teacher_hidden_size=16"),
    "sid fine-tuning": ("finetune", "--student_model=sid", "--teacher_hidden_size=16"),
    "mobilebert": ("pretrain", "--student_model=mobilebert", "--teacher_hidden_size=16"),
    "annealing_kd": (
        "finetune",
        "--student_model=annealing_kd",
        "--distill_ft_soft",
        "--distill_ft_soft_mse",
    ),
    "continuation_kd": (
        "finetune",
        "--student_model=continuation_kd",
        "--continuation_kd_margin=300",
        "--distill_ft_soft",
        "--distill_ft_soft_mse",
    ),
    "continuation_kd pretraining": (
        "pretrain",
        "--student_model=continuation_kd",
        "--continuation_kd_margin=9",
        "--distill_pt_soft",
        "--distill_pt_soft_mse",
    ),
    "random data": (
        "pretrain",
        "--student_model=kd",
        "--distill_pt_soft",
        "--distill_pt_hard",
        "--forward_repeat_num=1",
        "--distill_random_data=replace",
        "--distill_random_data_n=1",
        "--distill_random_data_method=sample",
    ),
    "random data beside the data": (
        "finetune",
        "--student_model=kd",
        "--distill_ft_soft",
        "--distill_logits_parallel",
        "--distill_random_data=dual",
        "--distill_random_data_method=sample",
    ),
    "mix": (
        "pretrain",
        "--student_model=mixbaseline",
        "--mixbaseline_inter_bl=TinyBERT,logitsdistil,RAIL_KD",
        "--mixbaseline_pre_bl_pt_soft=DistilBERT",
        "--mixbaseline_weights=1,2,0.5,1",
        "--mixbaseline_temperatures=1,9,1,2",
    ),
    "erdistill": ("pretrain", "--student_model=erdistill"),
    "erdistill fine-tuning": ("finetune", "--student_model=erdistill", "--erdistill_inter_mse"),
    "average of two": (
        "pretrain",
        "--student_model=tinybert",
        "--distill_pt_soft",
        "--tinybert_fit_compatible_mt",
        "--mt_num_layers=4:3",
        "--mt_hidden_size=24:16",
        "--multi_teacher_model=tmkd",
    ),
    "average of two, fine-tuning": (
        "finetune",
        "--student_model=kd",
        "--distill_ft_soft",
        "--mt_num_layers=4:3",
        "--avgmt_sum_loss",
    ),
    "mt_bert": (
        "pretrain",
        "--student_model=pkd",
        "--distill_pt_soft",
        "--mt_num_layers=4:3",
        "--mt_hidden_size=24:16",
        "--multi_teacher_model=mt_bert",
        "--mt_bert_fix_layernorm",
    ),
    "mt_bert fine-tuning": (
        "finetune",
        "--student_model=pkd",
        "--distill_ft_soft",
        "--mt_num_layers=4:3",
        "--multi_teacher_model=mt_bert",
        "--mt_bert_fit_teacher",
    ),
    "uncertainty": (  # hard selection ranks the samples of a micro-batch
        "pretrain",
        "--student_model=kd",
        "--distill_pt_soft",
        "--mt_num_layers=4:3",
        "--multi_teacher_model=uncertainty",
    ),
    "uncertainty fine-tuning": (
        "finetune",
        "--student_model=minilm",
        "--distill_ft_soft",
        "--mt_num_layers=4:3",
        "--multi_teacher_model=uncertainty",
        "--uncertainty_inter_entropy",
    ),
    "diito, nothing swapped": (  # what is swapped depends on the micro-batch
        "pretrain",
        "--student_model=diito",
        "--teacher_hidden_size=16",
        "--forward_repeat_num=1",
        "--distill_pt_soft",
        "--distill_pt_hard",
        "--diito_interchange_prop=0",
    ),
}


def run_of(name: str, accumulation: int) -> RunArgs:
    program, *flags = RUNS[name]
    return toy_run(*flags, f"--gradient-accumulation-steps={accumulation}", program=program)


def global_batch(name: str) -> Batch:
    """8 samples of unequal length; the last one only fills the batch."""
    if RUNS[name][0] == "pretrain":
        batch = toy_lm_batch(8, seed=3)
    else:
        batch = toy_cloze_batch(8, choices=3, variable=True, seed=3)
        batch.choice_mask[1, 1:] = 0
        batch.choice_mask[4, 2] = 0
        batch.labels = batch.labels * (batch.choice_mask.sum(1) == 3)
    weight = torch.ones(8)
    weight[-1] = 0
    return dataclasses.replace(batch, weight=weight)


def pieces(batch: Batch, number: int) -> list[Batch]:
    """The batch in equal parts, each padded on its own: the k-th by k more positions."""
    size = len(batch) // number
    return [rows_of(batch, k * size, (k + 1) * size, longer=k % 3) for k in range(number)]


def step_gradient(
    step: DistillStep, micro_batches: list[Batch]
) -> tuple[Tensor, dict[str, Tensor]]:
    """One rank's optimizer step as an engine does it: divided by the accumulation configured."""
    accumulation = step.run.train.gradient_accumulation_steps
    counts, total = step.count(micro_batches), torch.zeros(())
    for batch in micro_batches:
        loss = step(batch, counts).loss / accumulation
        loss.backward()
        total += loss.detach()
    return total, grads_of(step.student.module)


def on_rank(
    rank: int, world_size: int, name: str, accumulation: int
) -> tuple[Tensor, dict[str, Tensor]]:
    mpu.initialize_model_parallel(1)
    parts = pieces(global_batch(name), accumulation * world_size)
    mine = parts[rank * accumulation : (rank + 1) * accumulation]
    return step_gradient(toy_step(run_of(name, accumulation)), mine)


def same(
    actual: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]
) -> None:
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-6, atol=1e-7)
    largest = max(float(g.abs().max()) for g in expected[1].values())
    for key, grad in expected[1].items():
        torch.testing.assert_close(actual[1][key], grad, rtol=0, atol=1e-6 * largest, msg=key)


@pytest.mark.parametrize("name", RUNS)
def test_accumulation_changes_nothing(name):
    whole = step_gradient(toy_step(run_of(name, 1)), [global_batch(name)])
    for accumulation in (2, 4):
        parts = pieces(global_batch(name), accumulation)
        same(step_gradient(toy_step(run_of(name, accumulation)), parts), whole)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_data_parallel_ranks_change_nothing(name, accumulation):
    whole = step_gradient(toy_step(run_of(name, 1)), [global_batch(name)])
    ranks = run_ranks(2, on_rank, name, accumulation)
    loss = sum(rank[0] for rank in ranks) / 2
    grads = {key: sum(rank[1][key] for rank in ranks) / 2 for key in whole[1]}
    same((loss, grads), whole)


def test_fewer_micro_batches_than_configured_still_divide_by_all_rows():
    batch = global_batch("glmd")
    whole = step_gradient(toy_step(run_of("glmd", 1)), [batch])
    same(step_gradient(toy_step(run_of("glmd", 4)), pieces(batch, 2)), whole)


@pytest.mark.parametrize("name", RUNS)
def test_a_filler_sample_adds_nothing(name):
    batch = global_batch(name)
    with_filler = step_gradient(toy_step(run_of(name, 1)), [batch])
    without = step_gradient(toy_step(run_of(name, 1)), [rows_of(batch, 0, 7)])
    same(without, with_filler)


@pytest.mark.parametrize("name", RUNS)
def test_an_empty_mask_gives_zero_not_nan(name):
    batch = dataclasses.replace(global_batch(name), weight=torch.zeros(8))
    loss, grads = step_gradient(toy_step(run_of(name, 1)), [batch])
    assert float(loss) == 0.0
    assert all(float(g.abs().max()) == 0.0 for g in grads.values())


def test_the_law_sees_local_means():
    # The seed's divisors (D3) depend on the partition.
    def gradient(accumulation: int) -> tuple[Tensor, dict[str, Tensor]]:
        run = toy_run(
            *RUNS["glmd"][1:], "--compat=D3", f"--gradient-accumulation-steps={accumulation}"
        )
        return step_gradient(toy_step(run), pieces(global_batch("glmd"), accumulation))

    with pytest.raises(AssertionError):
        same(gradient(4), gradient(1))
