"""Distillation with a compressed vocabulary: losses against dense formulas, the map that is built."""

import dataclasses
import logging

import pytest
import torch
import torch.nn.functional as F

import mpu
from config import ConfigError
from config.vocabulary import with_vocabulary
from data_utils.ranking import order_of, write_ranking
from distill.context import TrainState
from distill.engine.evaluate import evaluate
from distill.step import DistillStep
from distill.vocabulary import build_map, build_tables
from distill.warm_start import warm_start
from model.vocab_map import TABLES, vocab_map_of
from tests.distill.runs import (
    Local,
    cloze_task,
    lm_task,
    take,
    toy_run,
    toy_student,
    toy_teachers,
)
from tests.model.test_downstream import fast_inputs
from tests.model.test_vocab_map import ROWS, tables
from tests.ranks import run_ranks
from tests.toy import VOCAB, merged, rank_grads, toy_cloze_batch, toy_lm_batch

GLMD = ["--student_model=logitsdistil", "--distill_temperature=3", f"--map_vocab_size={ROWS}"]
UNMAP, MASK = "--unmap_vocab_output", "--distill_logit_mask_map"
POSITION, KEPT = tables()[TABLES[0]], tables()[TABLES[2]][:ROWS]
THEIR_ROWS = 40
THEIRS = tables(seed=3, rows=THEIR_ROWS)


def parts(run, task=None):
    """Student and teachers of a run, with drawn maps where they have one."""
    task = task or lm_task()
    module, teachers = toy_student(run, task), toy_teachers(run, task)
    for model, drawn in ((module, tables()), *((t.module, THEIRS) for t in teachers)):
        found = vocab_map_of(model)
        if found is not None:
            found.set_tables(drawn)
    return module, teachers


def one_step(flags, task=None, batch=None):
    """(loss, terms, gradients by checkpoint name) of a step on this rank's shards."""
    program = "finetune" if task else "pretrain"
    run, task = toy_run(*flags, program=program), task or lm_task()
    module, teachers = parts(run, task)
    step = DistillStep(task, Local(module), teachers, run, TrainState())
    output = take(step, batch or toy_lm_batch())
    grads = {k: v for k, v in rank_grads(module).items() if "vocab_map" not in k}
    terms = {k: float(v) for k, v in output.terms.items()}
    return output.loss.detach(), terms, grads


def run_step(rank, size, flags):
    mpu.initialize_model_parallel(size)
    return one_step(flags)


def dense(run, batch):
    """Logits of all ids, student (with gradient) and teacher, and the student."""
    run = dataclasses.replace(run, model=dataclasses.replace(run.model, unmap_vocab_output=False))
    module, teachers = parts(run)
    inputs = lm_task().inputs(batch)
    return module(*inputs)[0], teachers[0](inputs).logits, module


def expected_of(flags):
    """The loss by its formula on dense logits of all ids, and the student's gradients."""
    run, batch = toy_run(*flags), toy_lm_batch()
    student, teacher, module = dense(run, batch)
    unmapped, masked = run.model.unmap_vocab_output, MASK in flags
    s_kept, t_kept = student[..., KEPT], teacher[..., KEPT]
    pair = (s_kept, t_kept) if unmapped or masked else (student, teacher)
    tokens = (batch.position_ids[:, 0] > 0).float()
    tokens[:, 0] = 1.0
    q, p = ((x / 3).log_softmax(-1) for x in pair)
    loss = 9 * ((p.exp() * (p - q)).sum(-1) * tokens).sum() / tokens.sum()
    labels = POSITION[batch.labels] if unmapped else batch.labels
    own, its = (s_kept, t_kept) if unmapped else (student, teacher)
    targets = batch.loss_mask
    hard = F.cross_entropy(own.flatten(0, 1), labels.flatten(), reduction="none")
    hard = (hard * targets.flatten()).sum() / targets.sum()
    if "--distill_pt_hard" in flags:
        loss = loss + hard
    if "--distill_pt_soft" in flags:
        q, p = ((x / 3).log_softmax(-1) for x in (own, its))
        loss = loss + 9 * ((p.exp() * (p - q)).sum(-1) * targets).sum() / targets.sum()
    loss.backward()
    grads = {k: v for k, v in rank_grads(module).items() if "vocab_map" not in k}
    return loss.detach(), float(hard.detach()), grads


CASES = {
    "rows": [UNMAP, MASK, "--distill_pt_soft", "--distill_pt_hard"],
    "ids": ["--distill_pt_soft", "--distill_pt_hard"],
    "kept ids": [MASK],
    "two maps, narrow": [
        *(UNMAP, MASK, "--compress_word_emb=8", f"--teacher_map_vocab_size={THEIR_ROWS}"),
        *("--distill_pt_soft", "--distill_pt_hard"),
    ],
}


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("case", CASES)
def test_a_step_has_the_dense_loss_and_gradient(case, size):
    flags = [*GLMD, *CASES[case]]
    expected, hard, expected_grads = expected_of(flags)
    results = run_ranks(size, run_step, flags)
    for loss, terms, _ in results:
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
        assert terms["Train/hard_loss"] == pytest.approx(hard, rel=1e-4)
    like = toy_student(toy_run(*flags), lm_task())
    like.origin_model.vocab_map = None
    actual = merged([grads for _, _, grads in results], like)
    assert actual.keys() == expected_grads.keys()
    for name, grad in expected_grads.items():
        atol = 1e-4 * float(grad.abs().max()) + 1e-8
        torch.testing.assert_close(actual[name], grad, rtol=1e-3, atol=atol, msg=name)


def test_a_trained_teacher_has_its_gradient_through_the_kept_ids():
    flags = [*GLMD, UNMAP, "--mt_has_grad", "--mt_has_loss"]
    run, batch = toy_run(*flags), toy_lm_batch()
    module, teachers = parts(run)
    step = DistillStep(lm_task(), Local(module), teachers, run, TrainState())
    output = step(batch, step.count([batch]))
    logits = teachers[0].module(*lm_task().inputs(batch))[0]
    raw = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none")
    expected = (raw * batch.loss_mask.flatten()).sum().detach() / batch.loss_mask.sum()
    assert float(output.terms["teacher_loss/hard_t0"]) == pytest.approx(float(expected), rel=1e-4)
    output.loss.backward()
    grad = teachers[0].module.word_embeddings.weight.grad
    assert bool(grad.abs().sum(1)[KEPT].gt(0).all())


@pytest.mark.parametrize("kind", ["multi_token", "single_token", "multi_token_fast"])
def test_answers_are_scored_by_kept_ids(kind):
    run = toy_run(*GLMD, UNMAP, program="finetune")
    task = cloze_task(kind)
    batch = toy_cloze_batch(multi_token=kind != "single_token")
    inputs = fast_inputs(batch) if kind == "multi_token_fast" else task.inputs(batch)
    actual = parts(run, task)[0](*inputs)[0]
    whole, _ = parts(toy_run(*GLMD, program="finetune"), task)
    expected = []
    if kind == "single_token":
        _, logits, *_ = whole(*task.inputs(batch))
        expected = logits[:, KEPT].gather(1, POSITION[batch.target_ids])
    else:
        lm, shape = whole.model, batch.tokens.shape
        logits, *_ = lm(
            batch.tokens.flatten(0, 1),
            batch.position_ids.flatten(0, 1),
            batch.attention_mask.flatten(),
        )
        words = logits[..., KEPT].log_softmax(-1)
        targets = POSITION[batch.target_ids.flatten(0, 1)]
        each = words.gather(-1, targets[..., None])[..., 0] * batch.logit_mask.flatten(0, 1)
        expected = each.sum(-1).view(shape[:2])
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_evaluation_counts_labels_as_the_model_does():
    run, batch = toy_run(*GLMD, UNMAP), toy_lm_batch()
    module, _ = parts(run)
    batch = dataclasses.replace(batch, sample_ids=torch.arange(len(batch.tokens)))
    found = evaluate(Local(module), lm_task(), [[batch]], split="val").metrics["loss"]
    student, _, _ = dense(run, batch)
    losses = F.cross_entropy(
        student[..., KEPT].flatten(0, 1), POSITION[batch.labels].flatten(), reduction="none"
    )
    expected = (losses * batch.loss_mask.flatten()).sum() / batch.loss_mask.sum()
    assert found == pytest.approx(float(expected.detach()), rel=1e-4)


def test_the_teacher_reads_substitutes():
    flags = [*GLMD, "--logitsdistil_teacher_input_ids_map"]
    run, batch = toy_run(*flags), toy_lm_batch()
    module, teachers = parts(run)
    step = DistillStep(lm_task(), Local(module), teachers, run, TrainState())
    actual = take(step, batch).terms["inter_loss/logits_parallel_t0"]
    ids = KEPT[POSITION[batch.tokens]]
    assert not torch.equal(ids, batch.tokens)
    teacher = teachers[0].module(ids, *lm_task().inputs(batch)[1:])[0]
    tokens = (batch.position_ids[:, 0] > 0).float()
    tokens[:, 0] = 1.0
    student = module(*lm_task().inputs(batch))[0]
    q, p = ((x / 3).log_softmax(-1) for x in (student, teacher))
    expected = 9 * ((p.exp() * (p - q)).sum(-1) * tokens).sum() / tokens.sum()
    torch.testing.assert_close(actual, expected.detach(), rtol=1e-4, atol=1e-5)


# The map that is built.


class Words:
    """A tokenizer of 61 words."""

    num_tokens = 61

    def padded_size(self, multiple):
        return -(-61 // multiple) * multiple


@pytest.fixture
def ranking(tmp_path, monkeypatch):
    """A ranking of 61 ids, 6 ([UNK]) first; the run's tokenizer has as many."""
    counts = torch.randperm(61, generator=torch.Generator().manual_seed(4)).numpy()
    order = order_of(counts, {6})
    write_ranking(tmp_path / "ranking.txt", order, counts, [str(i) for i in range(61)])

    class Tokenizer(Words):
        def get_command(self, name):
            assert name == "unk"
            return type("Command", (), {"Id": 6})

    monkeypatch.setattr("distill.vocabulary.build_tokenizer", lambda *_: Tokenizer())
    return tmp_path / "ranking.txt", torch.from_numpy(order)


def building(path, *flags):
    return toy_run(
        *("--student_model=kd", f"--map_vocab_size={ROWS}", "--student_build_map_vocab"),
        f"--student_map_vocab_ranking={path}",
        *flags,
    )


def built(run):
    task = lm_task()
    module, teachers = toy_student(run, task), toy_teachers(run, task)
    if teachers and vocab_map_of(teachers[0].module) is not None:
        vocab_map_of(teachers[0].module).set_tables(THEIRS)
    build_map(module, teachers, run)
    warm_start(module, teachers, run)
    whole = mpu.gather_from_model_parallel_region(module.origin_model.word_embeddings.weight.t())
    return vocab_map_of(module).state_dict(), whole.t().detach(), teachers


def likeness(method, a, b):
    """By the book, one pair at a time."""
    if method == "decoder":
        return float(a @ b)
    return float(a @ b / (a.norm() * b.norm())) if method == "cosine" else -float((a - b).norm())


@pytest.mark.parametrize("method", ["decoder", "cosine", "euclidean"])
@pytest.mark.parametrize("theirs", [0, THEIR_ROWS])
def test_substitutes_are_the_most_alike_words_of_the_teacher(ranking, method, theirs):
    path, order = ranking
    flags = ["--student_map_vocab_tn=0", f"--student_map_vocab_method={method}"]
    flags += ["--student_truncate_tn=0", f"--teacher_map_vocab_size={theirs}"]
    actual, words, teachers = built(building(path, *flags))
    kept = torch.cat((order, torch.arange(61, VOCAB)))[:ROWS].tolist()
    table = teachers[0].module.word_embeddings.weight
    vector = table[THEIRS[TABLES[0]]] if theirs else table
    for i in range(VOCAB):
        if i in kept:
            expected = i
        else:
            expected = max(kept, key=lambda k, i=i: likeness(method, vector[i], vector[k]))
        assert kept[int(actual[TABLES[0]][i])] == expected, i
        assert bool(actual[TABLES[1]][i]) == (i in kept)
    for row, i in enumerate(kept):  # the warm start's rows follow their ids
        assert torch.equal(words[row], vector[i][:16]), i


def run_build(rank, size, path, counted):
    mpu.initialize_model_parallel(size)
    import distill.vocabulary

    class Tokenizer(Words):
        def get_command(self, name):
            return type("Command", (), {"Id": 6})

    distill.vocabulary.build_tokenizer = lambda *_: Tokenizer()
    flags = ["--student_map_vocab_tn=0", "--student_truncate_tn=0"]
    flags += [f"--teacher_map_vocab_size={THEIR_ROWS}", "--student_map_vocab_method=cosine"]
    return built(building(path, *flags))[:2]


@pytest.mark.parametrize("size", [2, 4])
def test_map_and_start_do_not_depend_on_p(ranking, size):
    path, order = ranking
    (alone,) = run_ranks(1, run_build, path, order)
    for state, words in run_ranks(size, run_build, path, order):
        assert all(torch.equal(state[name], alone[0][name]) for name in TABLES)
        torch.testing.assert_close(words, alone[1])


def test_without_a_teacher_unk_stands_for_what_is_dropped(ranking):
    path, order = ranking
    actual, _, _ = built(building(path))
    kept = order[:ROWS].tolist()
    assert kept[0] == 6
    rows = [kept.index(i) if i in kept else 0 for i in range(VOCAB)]
    assert actual[TABLES[0]].tolist() == rows
    assert actual[TABLES[2]].tolist() == [*kept, *[6] * (VOCAB - ROWS)]


def test_unk_must_be_kept_to_stand_for_others(ranking, monkeypatch):
    path, order = ranking
    monkeypatch.setattr("distill.vocabulary.load_ranking", lambda *_: order.flip(0))
    with pytest.raises(ConfigError, match=r"ranks \[UNK\] behind the 24 ids"):
        built(building(path))


def test_all_other_entries_of_a_student_with_another_vocabulary_start_from_the_teacher():
    run = toy_run("--student_model=kd", "--student_truncate_tn=0", "--teacher_map_vocab_size=40")
    module, teachers = parts(run)
    warm_start(module, teachers, run)
    table = teachers[0].module.word_embeddings.weight
    expected = table[THEIRS[TABLES[0]]][:, :16]
    assert torch.equal(module.origin_model.word_embeddings.weight, expected)


# Sizes and flags.


@pytest.mark.parametrize(
    ("size", "rows"), [("0.5", 32.0), ("0.51", 32.0), ("20", 24.0), ("24", 24.0), ("0", 0.0)]
)
def test_sizes_are_rounded_up(size, rows):
    flags = ["--make-vocab-size-divisible-by=8", f"--map_vocab_size={size}", "--student_model=kd"]
    flags += [f"--mt_map_vocab_size={size}:0.1", "--mt_load_pretrained=a:b"]
    run = with_vocabulary(toy_run(*flags), Words())
    assert run.model.map_vocab_size == rows
    assert [t.map_vocab_size for t in run.teachers] == [rows, 8.0]  # each its own (D19)
    assert run.model.vocab_size == 64
    assert run.model.table_rows == (rows or 64)


def test_a_size_of_all_ids_has_no_effect(caplog):
    with caplog.at_level(logging.WARNING):
        run = with_vocabulary(toy_run("--map_vocab_size=0.99"), Words())
    assert run.model.map_vocab_size == 0
    assert "--map_vocab_size=0.99: has no effect on a vocabulary of 128" in caplog.text


def test_a_table_that_cannot_be_cut_is_named():
    flags = ["--make-vocab-size-divisible-by=8", "--map_vocab_size=24", "--model-parallel-size=16"]
    with pytest.raises(ConfigError, match="does not divide the 24 rows of --map_vocab_size=24; gi"):
        with_vocabulary(toy_run(*flags), Words())


def test_padding_ranks_last_and_equal_words_take_the_first():
    vectors = torch.ones(6, 2)
    found = build_tables(
        torch.tensor([3, 1, 0, 2]),
        vocab_size=6,
        num_rows=2,
        unk=3,
        vectors=vectors,
        method="decoder",
    )
    assert found[TABLES[0]].tolist() == [0, 1, 0, 0, 0, 0]
    assert found[TABLES[2]].tolist() == [3, 1, 3, 3, 3, 3]
