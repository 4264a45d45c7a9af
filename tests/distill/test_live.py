"""Live teachers: their gradient, on every engine and rank; saved, resumed, restored; none but them."""

import dataclasses
import logging

import pytest
import torch
import torch.nn.functional as F

import mpu
from config import CheckpointArgs, ConfigError
from distill.analysis import Analysis
from distill.context import TrainState
from distill.engine.build import build_module
from distill.engine.checkpoint import Checkpoints
from distill.engine.evaluate import evaluate
from distill.engine.wrap import wrap
from distill.live import EmptyGLM
from distill.step import DistillStep
from distill.student import find_student
from distill.teacher import build_teachers
from model.build import HeadSpec
from tasks.choice import ChoiceTask
from tests.distill import runs
from tests.distill.engine import small
from tests.distill.runs import Local, cloze_task, lm_task, rows_of, toy_run
from tests.ranks import run_ranks
from tests.toy import merged, randomize, rank_grads, toy_cloze_batch, toy_lm_batch

LIVE = ["--mt_has_grad", "--mt_has_loss", "--mt_num_layers=3:2", "--mt_hidden_size=24:16"]
LIVE += ["--teacher_num_attention_heads=4"]
KD = ["--student_model=kd", "--distill_pt_soft", "--distill_pt_hard"]
DROPOUT = ["--hidden-dropout=0.2", "--attention-dropout=0.2"]
TEACHERS = ("student.teacher_model_0.", "student.teacher_model_1.")


@pytest.fixture(autouse=True)
def one_process():
    yield
    mpu.destroy_model_parallel()


def parts(run, task):
    """Student and teachers as the programs build them, with lively weights."""
    teachers = build_teachers(run, task, "cpu")
    for number, teacher in enumerate(teachers):
        randomize(teacher.module, 100 + number)
    module = build_module(run, task, teachers)
    student = find_student(module)
    randomize(student.origin_model, 0)
    return module, teachers


def make_step(run, task):
    module, teachers = parts(run, task)
    module.train()
    return DistillStep(task, Local(module), teachers, run, TrainState())


def one(step, batch):
    output = step(batch, step.count([batch]))
    output.loss.backward()
    return output


def test_they_are_a_part_of_the_student():
    run = toy_run(*KD, *LIVE)
    module, teachers = parts(run, lm_task())
    names = list(module.state_dict())
    for prefix, teacher in zip(TEACHERS, teachers, strict=True):
        own = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        assert own == list(teacher.module.state_dict())
        assert all(p.requires_grad for p in teacher.module.parameters())
    module.train()
    assert all(teacher.module.training for teacher in teachers)
    frozen, _ = parts(toy_run(*KD, *LIVE[2:]), lm_task())
    assert not any(name.startswith("student.teacher") for name in frozen.state_dict())


@pytest.mark.parametrize("has_loss", [True, False])
def test_gradients_are_those_of_both_losses(has_loss):
    run = toy_run(*KD, *(LIVE if has_loss else [*LIVE[:1], *LIVE[2:]]), "--distill_temperature=2")
    step, batch = make_step(run, lm_task()), toy_lm_batch(4)
    output = one(step, batch)
    actual = rank_grads(step.student.module)
    step.student.module.zero_grad()
    at = batch.loss_mask > 0
    inputs = batch.tokens, batch.position_ids, batch.attention_mask
    student = step.method.origin_model(*inputs)[0][at]
    hard, losses, total = F.cross_entropy(student, batch.labels[at]), [], 0.0
    for t_no, teacher in enumerate(step.teachers):
        logits = teacher.module(*inputs)[0][at]
        log_p, log_q = ((x / 2).log_softmax(-1) for x in (logits, student))
        losses.append(4 * (log_p.exp() * (log_p - log_q)).sum(-1).mean() + hard)
        if has_loss:
            its_loss = F.cross_entropy(logits, batch.labels[at])
            total = total + its_loss
            told = output.terms[f"teacher_loss/hard_t{t_no}"]
            torch.testing.assert_close(told, its_loss.detach())
    expected = sum(losses) / 2 + total
    torch.testing.assert_close(output.loss, expected)
    expected.backward()
    for name, value in rank_grads(step.student.module).items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-6, msg=name)
        assert value.any(), name


@pytest.mark.parametrize("kind", ["multi_token", "single_token", "classification"])
def test_every_head(kind):
    task = cloze_task(kind) if kind != "classification" else classes()
    flags = ["--student_model=kd", "--distill_ft_soft", *LIVE]
    step = make_step(toy_run(*flags, program="finetune"), task)
    batch = toy_cloze_batch(3, multi_token=kind == "multi_token")
    one(step, batch)
    for t_no, teacher in enumerate(step.teachers):
        keys = [k for k in step.student.module.state_dict() if f"teacher_model_{t_no}." in k]
        assert {k.split(f"teacher_model_{t_no}.")[1] for k in keys} == set(
            teacher.module.state_dict()
        )
        grads = [p.grad for p in teacher.module.parameters() if p.requires_grad]
        assert all(grad is not None and bool(grad.isfinite().all()) for grad in grads)


def classes():
    return ChoiceTask("toy", HeadSpec("classification", num_classes=2))


def test_they_compute_in_the_runs_precision_and_answer_in_fp32():
    run = toy_run(*KD, *LIVE, "--bf16")
    step = make_step(run, lm_task())
    batch = toy_lm_batch(2)
    inputs = batch.tokens, batch.position_ids, batch.attention_mask
    (teacher, _), plain = step.teachers, make_step(toy_run(*KD, *LIVE), lm_task()).teachers[0]
    logits = teacher(inputs).logits
    assert logits.dtype is torch.float32
    assert logits.requires_grad
    assert torch.equal(logits, logits.bfloat16().float())
    torch.testing.assert_close(logits, plain(inputs).logits, rtol=0.1, atol=0.2)
    assert {p.dtype for p in teacher.module.parameters()} == {torch.float32}


def test_evaluation_is_the_students():
    run = toy_run(*KD, *LIVE)
    module, _ = parts(run, lm_task())
    alone, _ = parts(toy_run(*KD, *LIVE[2:]), lm_task())
    batch = dataclasses.replace(toy_lm_batch(4), sample_ids=torch.arange(4), weight=torch.ones(4))
    scores = []
    for each in (module, alone):
        each.train()
        for p in each.parameters():
            p.grad = None
        scores.append(evaluate(Local(each), lm_task(), [[batch]], split="val").metrics)
        assert all(m.training for m in each.modules())
    assert scores[0] == scores[1]


def test_the_analysis_changes_nothing():
    flags = [*KD, *LIVE, *DROPOUT, "--log-interval=1"]
    grads = []
    for more in ([], ["--distil_analysis_inter"]):
        step = make_step(toy_run(*flags, *more), lm_task())
        mpu.seed_step(1, 0, 0, 0)
        output = one(step, toy_lm_batch(4))
        grads.append(rank_grads(step.student.module))
        assert all(t.module.training for t in step.teachers)
    assert any(name.startswith("analysis/") for name in output.terms)
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])
    assert Analysis(step.run).on


def test_recomputed_losses_give_the_same_gradients():
    flags, grads = [*KD, *LIVE, "--distill_logits_parallel"], []
    for more in ([], ["--avgmt_pre_checkpoint", "--avgmt_inter_checkpoint"]):
        step = make_step(toy_run(*flags, *more), lm_task())
        one(step, toy_lm_batch(4))
        grads.append(rank_grads(step.student.module))
    for name, value in grads[0].items():
        torch.testing.assert_close(grads[1][name], value, msg=name)


@pytest.mark.parametrize("name", ["ckd", "mgskd", "pkd", "minilm", "tinybert"])
def test_losses_inside_the_models_teach_the_teachers_too(name):
    widths = [f for f in LIVE if "has_loss" not in f and "hidden" not in f]
    flags = [
        f"--student_model={name}",
        *widths,
        "--teacher_hidden_size=16",
        "--mgskd_multi_heads=4",
    ]
    step = make_step(toy_run(*flags, program="finetune"), cloze_task())
    one(step, toy_cloze_batch(3))
    for teacher in step.teachers:
        grad = teacher.module.model.transformer.layers[0].mlp.dense_h_to_4h.weight.grad
        assert bool(grad.isfinite().all())
        assert bool(grad.any())


# Engines and ranks --------------------------------------------------------------------------------


def train(rank, world_size, stage, flags):
    """Losses of 3 optimizer steps of 8 samples, and the weights after them."""
    mpu.initialize_model_parallel(1)
    run = toy_run(*KD, *LIVE, "--weight-decay=0.1", *flags)
    if stage is not None:
        json = small.deepspeed_json(stage, 1, False, 1.0)
        parallel = dataclasses.replace(run.parallel, deepspeed=True)
        run = dataclasses.replace(run, parallel=parallel, deepspeed=json)
    task = lm_task()
    module, teachers = parts(run, task)
    engine = wrap(module, run, small.runtime(rank, world_size))
    engine.module.train()
    step, losses = DistillStep(task, engine, teachers, run, TrainState()), []
    for number in range(3):
        step.state.iteration, size = number, 8 // world_size
        batch = rows_of(toy_lm_batch(8, seed=number), rank * size, (rank + 1) * size)
        counts = step.count([batch])
        with engine.micro_step(last=True):
            loss = step(batch, counts).loss
            engine.backward(loss)
        engine.step(1e-3)
        losses.append(float(loss.detach()))
    return losses, {k: v.detach().clone() for k, v in engine.module.state_dict().items()}


EMPTY = ["--student_use_empty_glm", "--distill_soft_rate=0", "--distill_hard_rate=0"]


@pytest.fixture(scope="module", params=[(), tuple(EMPTY)], ids=["student", "empty"])
def alone(request):
    """One process, plain engine."""
    return request.param, *run_ranks(1, train, None, request.param)[0]


@pytest.mark.parametrize("stage", [None, 0, 1])
def test_two_ranks_of_every_engine_equal_one_process(alone, stage):
    flags, losses, weights = alone
    preload = "torch" if stage is None else "deepspeed"
    ranks = run_ranks(2, train, stage, flags, preload=preload)
    for number, expected in enumerate(losses):
        assert sum(r[0][number] for r in ranks) / 2 == pytest.approx(expected, rel=1e-5)
    for _, actual in ranks:
        assert actual.keys() == weights.keys()
        for key, expected in weights.items():
            if not key.endswith("query_key_value.bias"):
                torch.testing.assert_close(actual[key], expected, rtol=1e-4, atol=2e-5, msg=key)


def test_all_of_a_live_teacher_is_trained(alone):
    flags, _, weights = alone
    before, _ = parts(toy_run(*KD, *LIVE, *flags), lm_task())
    for name, old in before.state_dict().items():
        assert not torch.equal(weights[name], old), name


def sharded(rank, world_size):
    """Loss and gradients with weights cut over the ranks."""
    mpu.initialize_model_parallel(world_size)
    step = make_step(toy_run(*KD, *LIVE, "--distill_logits_parallel"), lm_task())
    output = one(step, toy_lm_batch(4))
    return float(output.loss.detach()), rank_grads(step.student.module)


def test_model_parallel_gradients_are_equal():
    expected, grads = run_ranks(1, sharded)[0]
    ranks = run_ranks(2, sharded)
    like, _ = parts(toy_run(*KD, *LIVE), lm_task())
    whole = merged([found for _, found in ranks], like)
    for loss, _ in ranks:
        assert loss == pytest.approx(expected, rel=1e-5)
    for name, value in grads.items():
        torch.testing.assert_close(whole[name], value, rtol=1e-3, atol=1e-5, msg=name)


# Checkpoints --------------------------------------------------------------------------------------


class Saved:
    """A run of some steps in a folder, as the programs have it."""

    def __init__(self, folder, *flags, load=None):
        saving = CheckpointArgs(save=str(folder.parent), load=load)
        self.run = dataclasses.replace(toy_run("--lr=0.01", *flags), checkpoint=saving)
        self.task = lm_task()
        folder.mkdir(exist_ok=True)
        mpu.initialize_model_parallel(1)
        runtime = small.runtime(run_dir=folder)
        self.teachers = build_teachers(self.run, self.task, "cpu")
        self.engine = wrap(build_module(self.run, self.task, self.teachers), self.run, runtime)
        self.checkpoints = Checkpoints(self.run, runtime, "abc")
        self.state = TrainState()
        if load is not None:
            self.state.load_state_dict(self.checkpoints.resume(self.engine, load))
        self.step = DistillStep(self.task, self.engine, self.teachers, self.run, self.state)

    def train(self, until):
        self.engine.module.train()
        while self.state.iteration < until:
            batch = toy_lm_batch(seed=self.state.iteration)
            mpu.seed_step(1, self.state.iteration, 0, 0)
            self.engine.backward(self.step(batch, self.step.count([batch])).loss)
            self.engine.step(0.01)
            self.state.iteration += 1
        return self

    def save(self):
        self.step.remember()
        self.checkpoints.write_config()
        self.checkpoints.save(self.engine, self.state.state_dict())
        return self

    @property
    def weights(self):
        return {k: v.detach().clone() for k, v in self.engine.module.state_dict().items()}


MT_BERT = ["--multi_teacher_model=mt_bert", "--mt_bert_wo_hard", "--distill_logits_parallel"]


def test_resuming_is_exact(tmp_path):
    flags = [*KD, *LIVE, *DROPOUT]
    straight = Saved(tmp_path / "a", *flags).train(6).weights
    Saved(tmp_path / "b", *flags).train(3).save()
    resumed = Saved(tmp_path / "b", *flags, load=str(tmp_path / "b")).train(6).weights
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())


@pytest.mark.parametrize("live", [True, False])
def test_teachers_come_back_from_the_students_checkpoint(tmp_path, live):
    first = Saved(tmp_path / "a", *KD, *LIVE).train(2).save()
    flags = LIVE if live else LIVE[2:]
    second = Saved(tmp_path / "b", *KD, *flags, f"--mt_load_from_s={tmp_path / 'a'}")
    for old, new in zip(first.teachers, second.teachers, strict=True):
        assert new.live == live
        expected = old.module.state_dict()
        for name, value in new.module.state_dict().items():
            assert torch.equal(value, expected[name])


def test_the_checkpoint_says_how_many_teachers_there_are_and_of_what_shape(tmp_path):
    Saved(tmp_path / "a", *KD, *LIVE).save()
    sizes = ["--teacher_num_layers", "--teacher_hidden_size"]
    known = [s for s in runs.SIZES if not s.startswith((*sizes, "--teacher_num_att"))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "SIZES", known)
        run = toy_run(*KD, f"--mt_load_from_s={tmp_path / 'a'}")
    assert [(t.num_layers, t.hidden_size) for t in run.teachers] == [(3, 24), (2, 16)]


@pytest.mark.parametrize(
    ("layers", "widths", "expected"),
    [
        ("3:2:2", "24:16:16", r"has no student.teacher_model_2.\*; beside the GLM it has \["),
        ("3:2", "32:16", r"teacher_model_0.\*\) does not fit.*\n.*\[64, 24\], the model has"),
        ("3:3", "24:16", r"teacher_model_1.\*\) does not fit.*\n.*layers.2.*: missing"),
        ("2:2", "24:16", r"teacher_model_0.\*\) does not fit.*\n.*the model has none"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path, layers, widths, expected):
    Saved(tmp_path / "a", *KD, *LIVE).save()
    lists = [f"--mt_num_layers={layers}", f"--mt_hidden_size={widths}"]
    with pytest.raises(ValueError, match=expected) as caught:
        Saved(tmp_path / "b", *KD, *LIVE, *lists, f"--mt_load_from_s={tmp_path / 'a'}")
    assert str(caught.value).startswith(f"--mt_load_from_s: {tmp_path / 'a'}")


def test_the_combiners_parameters_come_from_a_checkpoint(tmp_path, caplog):
    flags = ["--student_model=kd", "--distill_pt_soft", *LIVE, *MT_BERT]
    first = Saved(tmp_path / "a", *flags).train(2).save()
    second = Saved(tmp_path / "b", *flags, f"--mt_model_load={tmp_path / 'a'}")
    own = [name for name in first.weights if name.startswith("student.multi_teacher_model.")]
    assert len(own) == 4
    assert all(torch.equal(first.weights[name], second.weights[name]) for name in own)
    name = "student.teacher_model_0.word_embeddings.weight"
    assert not torch.equal(first.weights[name], second.weights[name])
    Saved(tmp_path / "c", *KD, *LIVE, f"--mt_model_load={tmp_path / 'a'}")
    assert "--mt_model_load: has no effect with --multi_teacher_model=avg" in caplog.text
    Saved(tmp_path / "d", *KD, *LIVE).save()
    with pytest.raises(ValueError, match=r"--mt_model_load: .*has no student.multi_teacher_model"):
        Saved(tmp_path / "e", *flags, f"--mt_model_load={tmp_path / 'd'}")


def test_a_student_alone_leaves_them_out_and_says_so_in_one_word(tmp_path, caplog):
    Saved(tmp_path / "a", *KD, *LIVE).save()
    caplog.set_level(logging.INFO)
    run = toy_run()
    pretrained = CheckpointArgs(load_pretrained=str(tmp_path / "a"))
    mpu.initialize_model_parallel(1)
    build_module(dataclasses.replace(run, checkpoint=pretrained), lm_task())
    assert "left out: student.teacher_model_0.*, student.teacher_model_1.*" in caplog.text


# No student ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "rows", "shape"),
    [
        (HeadSpec("lm"), None, (2, 5, 64)),
        (HeadSpec("lm"), 3, (3, 64)),
        (HeadSpec("multi_token"), 4, (4, 64)),
        (HeadSpec("classification", num_classes=2), None, (2, 5, 16)),
    ],
)
def test_the_empty_glm(head, rows, shape):
    glm = EmptyGLM(toy_run().model, head)
    assert not list(glm.parameters())
    ids, positions = torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 2, 5, dtype=torch.long)
    picked = None if rows is None else torch.arange(rows)
    (output,), captured = glm(ids, positions, torch.ones(2), output_rows=picked, hook={})
    assert torch.equal(output, torch.ones(shape))
    assert captured == {}


@pytest.mark.parametrize("kind", ["lm", "multi_token", "single_token", "classification"])
def test_teachers_alone_learn_from_the_data(kind):
    program = "pretrain" if kind == "lm" else "finetune"
    flags = ["--student_model=kd", "--student_use_empty_glm", *LIVE]
    tasks = {"lm": lm_task, "classification": classes}
    task = tasks.get(kind, lambda: cloze_task(kind))()
    step = make_step(toy_run(*flags, program=program), task)
    batch = toy_lm_batch(4) if kind == "lm" else toy_cloze_batch(multi_token=kind == "multi_token")
    output = one(step, batch)
    hard = [output.terms[f"teacher_loss/hard_t{t_no}"] for t_no in range(2)]
    torch.testing.assert_close(output.loss.detach(), sum(hard))
    for teacher in step.teachers:
        assert all(p.grad is not None for p in teacher.module.parameters() if p.requires_grad)


def test_a_method_that_looks_into_the_student_needs_one():
    run = toy_run("--student_model=minilm", "--student_use_empty_glm", *LIVE)
    with pytest.raises(ConfigError, match="--student_use_empty_glm: --student_model=minilm"):
        build_module(run, lm_task())
