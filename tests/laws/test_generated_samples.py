"""Law: padding of generated samples (--bert-prob below 1) never counts, with a teacher or without.

Samples of all kinds and unequal lengths in one batch; what stands in the padding changes nothing,
and neither does how much of it there is.
"""

import dataclasses
from random import Random

import pytest
import torch

from data_utils.batch import Batch
from data_utils.block import SpecialIds, collate
from data_utils.infilling import BlankInfilling
from tests.distill.runs import rows_of, toy_run, toy_step
from tests.laws.test_partition import same, step_gradient

IDS = SpecialIds(eos=0, ENC=60, MASK=61, sop=62, eop=63)
RUNS = {
    "plain": (),
    "kd on every token": (
        *("--student_model=kd", "--distill_pt_soft", "--distill_pt_hard"),
        *("--distill_wo_loss_mask", "--distill_logits_parallel"),
    ),
    "glmd": ("--student_model=logitsdistil", "--distill_temperature=15"),
    "tinybert": ("--student_model=tinybert",),
    "minilm": ("--student_model=minilm",),
}


def generated() -> Batch:
    """8 samples of 8 to 26 tokens: rests, spans anywhere, several documents, short spans."""
    corrupt = BlankInfilling(IDS, seq_length=32, bert_prob=0.25, gpt_infill_prob=0.5)
    samples = []
    for number in range(8):
        rng = Random(number)
        tokens = [60, *(rng.randrange(1, 60) for _ in range(5 + rng.randrange(18))), 0]
        if number % 3 == 2:  # two documents: always their rest
            tokens[len(tokens) // 2] = 0
        samples.append(corrupt(tokens, rng))
        samples[-1].index = number
    assert {sample.kind for sample in samples} == {"bert", "gpt"}
    assert len({len(sample.text) for sample in samples}) > 4
    assert all(position > 0 for sample in samples for position in sample.position[1:])
    return collate(samples)


def spoiled(batch: Batch) -> Batch:
    """The same with other tokens and labels in the padding."""
    used = batch.position_ids[:, 0] > 0
    used[:, 0] = True
    draw = torch.Generator().manual_seed(9)
    noise = torch.randint(1, 60, (2, *used.shape), generator=draw)
    assert (~used).any(1).sum() > 4
    return dataclasses.replace(
        batch,
        tokens=torch.where(used, batch.tokens, noise[0]),
        labels=torch.where(used, batch.labels, noise[1]),
    )


@pytest.mark.parametrize("name", RUNS)
def test_padding_never_counts(name):
    batch = generated()
    whole = step_gradient(toy_step(toy_run(*RUNS[name])), [batch])
    same(step_gradient(toy_step(toy_run(*RUNS[name])), [spoiled(batch)]), whole)
    alone = [rows_of(batch, number, number + 1) for number in range(8)]
    run = toy_run(*RUNS[name], "--gradient-accumulation-steps=8")
    same(step_gradient(toy_step(run), alone), whole)
    assert max(float(grad.abs().max()) for grad in whole[1].values()) > 1e-3
